"""Where the content of each message lies in the rendered conversation.

    text, dropped = render_with_spans(template, sample, may_be_special)      # a formats.Text

The conversation is rendered twice: as it is, and with the content between sentinels (noncharacters, which Unicode
    reserves
for internal use and which no content may hold). The second render tells the places; it counts only where it equals the
    first
one after the sentinels are taken out. Two ways to set them are tried:
    whole   around all of the content;
    cores   around what is left of it without outer white space, and in an assistant's content around each part between
            <think> tags, for templates that strip content or take thoughts out of it. One more render, of the cores
                alone,
            tells how much of the white space beside them is the content's own.
Where neither holds for all messages at once, each is marked alone; a message that no mark survives in is sought by its
    text,
which must stand in the render exactly once. What is still not found is an error if its place matters: if it is
    trained, or
if it could hold text of special tokens. Content that the template drops (earlier thoughts) has no place and is only
    counted.
"""

import re
from dataclasses import dataclass

from prepare.formats import BadLine, Span, Text
from prepare.template import TemplateRefused

_OPEN, _CLOSE = "\ufdee", "\ufdef"
_DIGITS = "".join(chr(0xFDD0 + d) for d in range(10))
_MARK = re.compile(f"([{_OPEN}{_CLOSE}])([{_DIGITS}]+)\ufded")
NONCHARACTERS = re.compile("[\ufdd0-\ufdef]")
_TO_DIGITS = str.maketrans("0123456789", _DIGITS)
_TO_ASCII = str.maketrans(_DIGITS, "0123456789")

_THINK_TAG = re.compile(r"(</?think>)")
_THINK_OPENS = re.compile(r"<think>\s*\Z")
_FIELDS = ("reasoning_content", "content")  # in the order in which templates write them


@dataclass
class _Part:
    """A marked stretch of a message, and the white space of the content on its two sides."""

    message: int
    left: str
    right: str


class _Marker:
    """Copies of messages with sentinels around their text; parts are numbered in the order of marking."""

    def __init__(self, whole, bare=False):
        self.whole, self.bare = whole, bare
        self.parts = []

    def message(self, index, message):
        marked = dict(message)
        for key in _FIELDS:
            if key not in message:
                continue
            text = message[key]
            if self.whole:
                marked[key] = self._wrap(index, "", text, "")
            elif message["role"] == "assistant":
                marked[key] = "".join(
                    p if _THINK_TAG.fullmatch(p) else self._core(index, p) for p in _THINK_TAG.split(text)
                )
            else:
                marked[key] = self._core(index, text)
        return marked

    def _wrap(self, index, left, text, right):
        number = str(len(self.parts)).translate(_TO_DIGITS) + "\ufded"
        self.parts.append(_Part(index, left, right))
        return f"{_OPEN}{number}{text}{_CLOSE}{number}"

    def _core(self, index, text):
        core = text.strip()
        if not core:
            return text
        at = text.index(core)
        left, right = text[:at], text[at + len(core) :]
        wrapped = self._wrap(index, left, core, right)
        return wrapped if self.bare else left + wrapped + right


def _unmark(marked):
    """(text without sentinels, [(part, start, end)]), or (None, None) where sentinels are not in matching pairs."""
    places, out, at, opened, length = [], [], 0, None, 0
    for m in _MARK.finditer(marked):
        out.append(marked[at : m.start()])
        length += m.start() - at
        at = m.end()
        number = int(m[2].translate(_TO_ASCII))
        if (m[1] == _OPEN) != (opened is None) or (opened is not None and opened[0] != number):
            return None, None
        if opened is None:
            opened = (number, length)
        else:
            places.append((number, opened[1], length))
            opened = None
    out.append(marked[at:])
    return ("".join(out), places) if opened is None else (None, None)


def _render_marked(template, messages, numbers, marker):
    try:
        return _unmark(template.render([marker.message(i, m) if i in numbers else m for i, m in enumerate(messages)]))
    except TemplateRefused:
        return None, None


def _try(template, messages, text, numbers, whole):
    """[(message, start, end)] from one way of marking the messages of these numbers, or None where it does not hold."""
    marker = _Marker(whole)
    unmarked, places = _render_marked(template, messages, numbers, marker)
    if unmarked != text:
        return None
    if not whole and any(p.left or p.right for p in marker.parts):
        places = _with_white_space(template, messages, text, numbers, places, marker.parts)
    return [(marker.parts[number].message, start, end) for number, start, end in places]


def _with_white_space(template, messages, text, numbers, places, parts):
    """The places of cores, widened by what the template leaves of the content's own white space beside them."""
    bare_text, bare = _render_marked(template, messages, numbers, _Marker(False, bare=True))
    if bare is None or [p[0] for p in bare] != [p[0] for p in places]:
        return places
    widened = [list(p) for p in places]
    for k in range(len(places) + 1):
        # Between two cores stands: what is left of the right side of one, the template's own text, what is left of the
        # other's left side.
        start, bare_start = (places[k - 1][2], bare[k - 1][2]) if k else (0, 0)
        end, bare_end = (places[k][1], bare[k][1]) if k < len(places) else (len(text), len(bare_text))
        gap, own = text[start:end], bare_text[bare_start:bare_end]
        right = parts[places[k - 1][0]].right if k else ""
        left = parts[places[k][0]].left if k < len(places) else ""
        for kept in range(min(len(right), len(gap) - len(own)), -1, -1):
            before, rest = gap[kept + len(own) :], gap[kept : kept + len(own)]
            if rest == own and right.startswith(gap[:kept]) and left.endswith(before):
                if k:
                    widened[k - 1][2] += kept
                if k < len(places):
                    widened[k][1] -= len(before)
                break
    return widened


def _one_by_one(template, messages, text, matters):
    """The places when no way of marking holds for the whole conversation."""
    places = []
    for i, message in enumerate(messages):
        found = _try(template, messages, text, {i}, True) or _try(template, messages, text, {i}, False)
        if not found:
            core = message["content"].strip()
            start = text.find(core) if core else -1
            if start >= 0 and text.find(core, start + 1) < 0:
                found = [(i, start, start + len(core))]
        if found:
            places += found
        elif matters[i]:
            raise BadLine(
                "the chat template changes content beyond recognition",
                "its place cannot be found for the loss mask: give such lines as prompt/completion or input_ids/labels",
                f"message {i + 1}, role {message['role']}",
            )
    places.sort(key=lambda p: p[1])
    if any(a[2] > b[1] for a, b in zip(places, places[1:])):
        raise BadLine(
            "the chat template mixes the contents of messages",
            "give such lines as prompt/completion or input_ids/labels",
        )
    return places


def _spans(text, places, messages, trained):
    """One span per place, those of one assistant turn joined over the tags and white space between them."""
    spans = []
    for number, start, end in places:
        is_assistant = messages[number]["role"] == "assistant"
        if (
            spans
            and spans[-1][0] == number
            and is_assistant
            and not re.sub(r"</?think>|\s", "", text[spans[-1][2] : start])
        ):
            spans[-1][2] = end
            continue
        if (
            is_assistant
            and (opens := _THINK_OPENS.search(text, spans[-1][2] if spans else 0, start))
            and _thinks_first(messages[number], text[start:end])
        ):
            start = opens.start()  # the model writes the opening tag itself
        spans.append([number, start, end])
    last = {number: k for k, (number, _, _) in enumerate(spans)}
    return [
        Span(
            start,
            end,
            trained[number],
            reasoning_tags=messages[number]["role"] == "assistant",
            ends_turn=trained[number] and last[number] == k,
        )
        for k, (number, start, end) in enumerate(spans)
    ]


def _thinks_first(message, piece):
    """Whether the piece is the message's reasoning rather than its answer."""
    reasoning = message.get("reasoning_content") or message["content"].partition("</think>")[0]
    return bool(piece.strip()) and reasoning.strip().endswith(piece.strip())


def render_with_spans(template, sample, may_be_special):
    """A formats.Text of the sample's messages, and the number of messages of which nothing is left in it.

    may_be_special tells of a string whether it could hold the text of a special token."""
    messages = sample.messages
    for i, message in enumerate(messages):
        if any(NONCHARACTERS.search(v) for v in message.values()):
            raise BadLine(
                "content holds U+FDD0..U+FDEF",
                "Unicode reserves these for internal use, and so does moetune: remove them",
                f"message {i + 1}, role {message['role']}",
            )
    try:
        text = template.render(messages)
    except TemplateRefused as e:
        raise BadLine(
            "the chat template refuses the conversation",
            "bring it into the form that the model's template asks for",
            str(e),
        ) from None
    everyone = range(len(messages))
    places = _try(template, messages, text, everyone, True)
    if places is None:
        places = _try(template, messages, text, everyone, False)
    if places is None:
        matters = [t or may_be_special(m["content"]) for m, t in zip(messages, sample.trained)]
        places = _one_by_one(template, messages, text, matters)
    present = {p[0] for p in places}
    dropped = sum(1 for i, m in enumerate(messages) if i not in present and m["content"].strip())
    return Text(text, _spans(text, places, messages, sample.trained)), dropped
