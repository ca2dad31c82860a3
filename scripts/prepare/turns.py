"""Where a turn with calls lies: all that the model writes of it, the template's syntax of the calls included.

    region = call_region(render, messages, 3, located)        # (start, end) of message 3, with its end token

The turn begins where the generation prompt of the messages before it ends, and ends where the render of the
conversation up to it ends. Templates may render a message otherwise once others follow, so both are matched with the
text around the marks of the message, not taken as positions.
"""

import re
from os.path import commonprefix

from prepare.sample import BadLine
from prepare.spans import locate_one
from prepare.template import TemplateRefused

_NO_THOUGHTS = re.compile(r"\s*(<think>)?\s*</think>\s*")  # what templates write where there are none


def _unknown(number):
    return BadLine(
        "the chat template writes calls in a way that cannot be followed",
        "where the turn begins and ends cannot be found for the loss mask: give such lines as input_ids and labels",
        f"message {number + 1}",
    )


def _start(render, messages, number, located, first):
    """Where the turn begins, at or before the character `first` of its first mark."""
    text = located.text
    try:
        prompt = render(messages[:number], add_generation_prompt=True)
        before = render(messages[:number])
    except TemplateRefused:
        return None
    if text.startswith(prompt) and len(prompt) <= first:
        return len(prompt)
    floor = max((p.end for p in located.places if p.end <= first and p.message != number), default=0)
    opening, gap = prompt[len(before) :] if prompt.startswith(before) else "", text[floor:first]
    # History may lack the end of a generation prompt: an opened <think>, or white space.
    header = opening.partition("<think>")[0]
    for form in (opening, header, header.rstrip()):
        at = gap.rfind(form) if form else -1
        if at >= 0:
            return floor + at + len(form)
    return None


def _end(render, messages, number, located, own):
    """Where the turn ends: the text behind its last mark, as far as the render that ends with the turn goes too."""
    text = located.text
    try:
        whole = render(messages[: number + 1])
        alone = locate_one(render, messages[: number + 1], whole, number)
    except TemplateRefused:
        return None
    if alone is None or not alone.places:
        return None
    for mark in reversed(alone.places):
        # A name may stand in later messages too: as many marks count as there are in the turn alone.
        count = sum(p.part.label == mark.part.label for p in alone.places)
        same = [p for p in own if p.part.label == mark.part.label][:count]
        if same:
            tail = commonprefix([whole[mark.end :], text[same[-1].end :]])
            return same[-1].end + len(tail.rstrip())
    return None


def call_region(render, messages, number, located):
    """(start, end) of the message of this number, which has calls."""
    own = [p for p in located.places if p.message == number]
    if sum(p.is_anchor for p in own) < len(messages[number]["tool_calls"]):
        raise _unknown(number)
    first = own[0]
    start, end = _start(render, messages, number, located, first.start), _end(render, messages, number, located, own)
    if start is None and not first.is_anchor:
        start = first.start
    if start is None or end is None:
        raise _unknown(number)
    if start < first.start and (empty := _NO_THOUGHTS.match(located.text, start, first.start)):
        start = empty.end()
    return start, max(end, first.end)
