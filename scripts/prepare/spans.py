"""Where the content of each message lies in the rendered conversation.

    rendered = render_with_spans(template, sample)       # a formats.Text

The conversation is rendered twice: as it is, and with the content between sentinels (noncharacters, which Unicode reserves
for internal use and which no content may hold). The second render tells the places; it counts only where it equals the first
one after the sentinels are taken out. Two ways to set them are tried:
    whole   around all of the content;
    cores   around what is left of it without outer white space, and in an assistant's content around each part between
            <think> tags, for templates that strip content or take thoughts out of it.
Where neither holds for all messages at once, each is marked alone; a message that no mark survives in is sought by its text,
which must stand in the render exactly once. What is still not found is an error if its place matters: if it is trained, or
if it could hold text of special tokens. Content that the template drops (earlier thoughts) has no place and is only counted.
"""
import re

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
_FIELDS = ("reasoning_content", "content")      # in the order in which templates write them


def _wrap(text, number):
    number = str(number).translate(_TO_DIGITS) + "\ufded"
    return f"{_OPEN}{number}{text}{_CLOSE}{number}"


def _wrap_core(text, number):
    core = text.strip()
    if not core:
        return text
    start = text.index(core)
    return text[:start] + _wrap(core, number) + text[start + len(core):]


def _mark(message, number, whole):
    """The message with sentinels of its number around its text."""
    marked = dict(message)
    for key in _FIELDS:
        if key not in message:
            continue
        text = message[key]
        if whole:
            marked[key] = _wrap(text, number)
        elif message["role"] == "assistant":
            marked[key] = "".join(p if _THINK_TAG.fullmatch(p) else _wrap_core(p, number) for p in _THINK_TAG.split(text))
        else:
            marked[key] = _wrap_core(text, number)
    return marked


def _places(marked, text):
    """[(message number, start, end)] if the marked render is the text with sentinels in matching pairs, else None."""
    places, out, at, opened = [], [], 0, None
    length = 0
    for m in _MARK.finditer(marked):
        out.append(marked[at:m.start()])
        length += m.start() - at
        at = m.end()
        number = int(m[2].translate(_TO_ASCII))
        if m[1] == _OPEN:
            if opened is not None:
                return None
            opened = (number, length)
        else:
            if opened is None or opened[0] != number:
                return None
            places.append((number, opened[1], length))
            opened = None
    out.append(marked[at:])
    return places if opened is None and "".join(out) == text else None


def _try(template, messages, text, numbers, whole):
    marked = [_mark(m, i, whole) if i in numbers else m for i, m in enumerate(messages)]
    try:
        return _places(template.render(marked), text)
    except TemplateRefused:
        return None


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
            raise BadLine("the chat template changes content beyond recognition",
                          "its place cannot be found for the loss mask: give such lines as prompt/completion or input_ids/labels",
                          f"message {i + 1}, role {message['role']}")
    places.sort(key=lambda p: p[1])
    if any(a[2] > b[1] for a, b in zip(places, places[1:])):
        raise BadLine("the chat template mixes the contents of messages", "give such lines as prompt/completion or input_ids/labels")
    return places


def _spans(text, places, messages, trained):
    """One span per place, those of one assistant turn joined over the tags and white space between them."""
    spans = []
    for number, start, end in places:
        is_assistant = messages[number]["role"] == "assistant"
        if spans and spans[-1][0] == number and is_assistant and not re.sub(r"</?think>|\s", "", text[spans[-1][2]:start]):
            spans[-1][2] = end
            continue
        if is_assistant and (opens := _THINK_OPENS.search(text, spans[-1][2] if spans else 0, start)) and _thinks_first(messages[number], text[start:end]):
            start = opens.start()     # the model writes the opening tag itself
        spans.append([number, start, end])
    last = {number: k for k, (number, _, _) in enumerate(spans)}
    return [Span(start, end, trained[number], reasoning_tags=messages[number]["role"] == "assistant",
                 ends_turn=trained[number] and last[number] == k)
            for k, (number, start, end) in enumerate(spans)]


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
            raise BadLine("content holds U+FDD0..U+FDEF", "Unicode reserves these for internal use, and so does moetune: remove them",
                          f"message {i + 1}, role {message['role']}")
    try:
        text = template.render(messages)
    except TemplateRefused as e:
        raise BadLine("the chat template refuses the conversation", "bring it into the form that the model's template asks for", str(e)) from None
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
