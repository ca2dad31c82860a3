"""Where the content of each message lies in the rendered conversation.

    located = locate(render, messages, matters)     # Located: the text, the places of content, and what the template
                                                    # took out; render(messages) gives the text of a conversation
    spans = spans_of(located, messages, weights, regions={})        # formats of sample.Span

The conversation is rendered twice: as it is, and with the content between sentinels (noncharacters, which Unicode
reserves for internal use and which no content may hold). The second render tells the places; it counts only where it
equals the first one after the sentinels are taken out. Two ways to set them are tried:
    whole   around all of the content;
    cores   around what is left of it without outer white space, and in an assistant's content around each part between
            <think> tags, for templates that strip content or take thoughts out of it. One more render, of the cores
            alone, tells how much of the white space beside them is the content's own.
The names of called functions are marked too, as anchors: what a template writes of a call lies around them (turns.py).
Where neither way holds for all messages at once, each is marked alone; a message that no mark survives in is sought by
its text, which must stand in the render exactly once. What is still not found is an error if its place matters: if it
is trained, or if it could hold text of special tokens. What the template drops has no place and is listed.
"""

import functools
import re
from dataclasses import dataclass, field

from prepare.faithful import THINK_TAG, keeps_all
from prepare.messages import THOUGHTS
from prepare.sample import BadLine, Span
from prepare.template import TemplateRefused

_OPEN, _CLOSE = "\ufdee", "\ufdef"
_DIGITS = "".join(chr(0xFDD0 + d) for d in range(10))
_MARK = re.compile(f"([{_OPEN}{_CLOSE}][{_DIGITS}]+)\ufded")
NONCHARACTERS = re.compile("[\ufdd0-\ufdef]")
_TO_DIGITS = str.maketrans("0123456789", _DIGITS)
_TO_ASCII = str.maketrans(_DIGITS, "0123456789")

_THINK_TAGS = ("<think>", "</think>")
_THINK_OPENS = re.compile(r"<think>\s*\Z")
_FIELDS = (*THOUGHTS, "content")  # in the order in which templates write them
CALL = "call"  # the field of an anchor


@dataclass
class Part:
    """A marked stretch of a message: the index-th of this field; left and right are the white space beside it."""

    message: int
    field: str
    index: int
    text: str
    left: str = ""
    right: str = ""
    is_thought: bool = False  # it stands before </think>, or in a field for thoughts

    @property
    def label(self):
        return self.field, self.index


@dataclass
class Place:
    """Characters [start, end) of the rendered text, which are a part."""

    part: Part
    start: int
    end: int

    @property
    def message(self):
        return self.part.message

    @property
    def is_anchor(self):
        return self.part.field == CALL


@dataclass
class Located:
    text: str
    places: list
    missing: list = field(default_factory=list)  # parts of which the template leaves nothing


@functools.lru_cache(1 << 12)
def _digits(number):
    return str(number).translate(_TO_DIGITS)


@functools.lru_cache(1 << 12)
def _number(digits):
    return int(digits.translate(_TO_ASCII))


class _Marker:
    """Copies of messages with sentinels around their text; parts are numbered in the order of marking."""

    def __init__(self, whole, bare=False):
        self.whole, self.bare = whole, bare
        self.parts = []

    def message(self, number, message):
        marked = dict(message)
        in_pieces = not self.whole and message["role"] == "assistant"
        for key in _FIELDS:
            text = message.get(key)
            if not isinstance(text, str):
                continue
            if in_pieces and "think>" in text:
                marked[key] = self._pieces(number, key, text)
            elif text not in _THINK_TAGS:
                marked[key] = self._mark(Part(number, key, 0, text, is_thought=key != "content"))
        if "tool_calls" in message:
            marked["tool_calls"] = [
                {**c, "function": {**c["function"], "name": self._wrap(Part(number, CALL, i, c["function"]["name"]))}}
                for i, c in enumerate(message["tool_calls"])
            ]
        return marked

    def _pieces(self, number, key, text):
        pieces = THINK_TAG.split(text)
        closed = max((i for i, p in enumerate(pieces) if p == "</think>"), default=-1)
        return "".join(
            p if p in _THINK_TAGS else self._mark(Part(number, key, i, p, is_thought=key != "content" or i < closed))
            for i, p in enumerate(pieces)
        )

    def _wrap(self, part):
        number = _digits(len(self.parts))
        self.parts.append(part)
        return f"{_OPEN}{number}\ufded{part.text}{_CLOSE}{number}\ufded"

    def _mark(self, part):
        if self.whole:
            return self._wrap(part)
        text = part.text
        core = text.strip()
        if not core:
            return text
        at = text.index(core)
        part.left, part.text, part.right = text[:at], core, text[at + len(core) :]
        wrapped = self._wrap(part)
        return wrapped if self.bare else part.left + wrapped + part.right


def _unmark(marked):
    """(text without sentinels, [(part, start, end)]), or (None, None) where sentinels are not in matching pairs."""
    pieces = _MARK.split(marked)
    texts, marks = pieces[::2], pieces[1::2]
    if len(marks) % 2:
        return None, None
    places, start = [], 0
    for k in range(0, len(marks), 2):
        opening, closing = marks[k], marks[k + 1]
        if opening[0] != _OPEN or closing[0] != _CLOSE or opening[1:] != closing[1:]:
            return None, None
        start += len(texts[k])
        end = start + len(texts[k + 1])
        places.append((_number(opening[1:]), start, end))
        start = end
    return "".join(texts), places


def _render_marked(render, messages, numbers, marker):
    try:
        return _unmark(render([marker.message(i, m) if i in numbers else m for i, m in enumerate(messages)]))
    except TemplateRefused:
        return None, None


def _try(render, messages, text, numbers, whole):
    """Located, from one way of marking the messages of these numbers, or None where it does not hold."""
    marker = _Marker(whole)
    unmarked, places = _render_marked(render, messages, numbers, marker)
    if unmarked != text:
        return None
    if not whole and any(p.left or p.right for p in marker.parts):
        places = _with_white_space(render, messages, text, numbers, places, marker.parts)
    seen = {number for number, _, _ in places}
    missing = [p for i, p in enumerate(marker.parts) if i not in seen and p.text.strip()]
    return Located(text, [Place(marker.parts[number], start, end) for number, start, end in places], missing)


def _with_white_space(render, messages, text, numbers, places, parts):
    """The places of cores, widened by what the template leaves of the content's own white space beside them."""
    bare_text, bare = _render_marked(render, messages, numbers, _Marker(False, bare=True))
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


def locate_one(render, messages, text, number):
    """Located for the parts of one message, or None where no way of marking it holds."""
    return _try(render, messages, text, {number}, True) or _try(render, messages, text, {number}, False)


def _sought(message, number, text):
    """Located for a message whose content stands in the text exactly once, or None."""
    core = (message["content"] or "").strip()
    start = text.find(core) if core else -1
    if start < 0 or text.find(core, start + 1) >= 0 or "tool_calls" in message:
        return None
    thoughts = [Part(number, k, 0, message[k], is_thought=True) for k in THOUGHTS if k in message]
    place = Place(Part(number, "content", 0, core), start, start + len(core))
    return Located(text, [place], [p for p in thoughts if p.text.strip() and p.text.strip() not in text])


def _one_by_one(render, messages, text, matters):
    """Located when no way of marking holds for the whole conversation."""
    out = Located(text, [])
    for i, message in enumerate(messages):
        found = locate_one(render, messages, text, i)
        if found is None or not found.places:
            found = _sought(message, i, text) or found
        if found is not None:
            out.places += found.places
            out.missing += found.missing
        elif matters(i):
            raise BadLine(
                "the chat template changes content beyond recognition",
                "its place cannot be found for the loss mask: give such lines as prompt/completion or input_ids/labels",
                f"message {i + 1}, role {message['role']}",
            )
    out.places.sort(key=lambda p: p.start)
    if any(a.end > b.start for a, b in zip(out.places, out.places[1:])):
        raise BadLine(
            "the chat template mixes the contents of messages",
            "give such lines as prompt/completion or input_ids/labels",
        )
    return out


def locate(render, messages, matters):
    """Located, for the whole conversation. matters(i) tells whether the place of message i must be known. Raises
    TemplateRefused where the template takes the conversation as it is not."""
    text = render(messages)
    everyone = range(len(messages))
    whole = _try(render, messages, text, everyone, True)
    if whole and keeps_all(whole):
        return whole
    # Marks around all of a content also survive where the template takes thoughts out of its middle: cores tell.
    return _try(render, messages, text, everyone, False) or whole or _one_by_one(render, messages, text, matters)


def spans_of(located, messages, weights, regions):
    """Spans: one per place, those of one assistant turn joined over the tags and white space between them. In the
    region (start, end) of a message with calls what the template writes has the message's weight too."""
    text, spans = located.text, []
    for place in located.places:
        number, start, end = place.message, place.start, place.end
        if place.is_anchor:
            continue
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
    out = [
        Span(
            start,
            end,
            weights[number],
            reasoning_tags=messages[number]["role"] == "assistant",
            ends_turn=weights[number] > 0 and last[number] == k and number not in regions,
        )
        for k, (number, start, end) in enumerate(spans)
    ]
    for number, (start, end) in regions.items():
        for span in sorted((s for s in out if start <= s.start and s.end <= end), key=lambda s: s.start):
            if span.start > start:
                out.append(Span(start, span.start, weights[number], content=False))
            start = span.end
        if end > start:
            out.append(Span(start, end, weights[number], content=False, ends_turn=weights[number] > 0))
    return sorted(out, key=lambda s: (s.start, s.end))


def _thinks_first(message, piece):
    """Whether the piece is the message's reasoning rather than its answer."""
    content = message["content"] or ""
    reasoning = next((message[k] for k in THOUGHTS if k in message), None) or content.partition("</think>")[0]
    return bool(piece.strip()) and reasoning.strip().endswith(piece.strip())
