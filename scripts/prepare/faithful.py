"""Whether the template writes trained content as it stands in the line.

    number = changed_message(located, messages, weights)      # of the first message that it changes, or None

What a template adds around and inside content (line prefixes, JSON's escapes) is its own way to write it, and so is
white space. Characters that it takes out or replaces would be lost to the training in silence.
"""

import re

from prepare.messages import THOUGHTS

THINK_TAG = re.compile(r"(</?think>)")


def is_kept(content, written):
    """Whether all characters of the content but white space stand in what the template wrote, in their order."""
    if content == written:
        return True
    content, written = "".join(content.split()), "".join(written.split())
    if content in written:
        return True
    rest = iter(written)
    return all(c in rest for c in content)


def keeps_all(located):
    return all(is_kept(p.part.text, located.text[p.start : p.end]) for p in located.places)


def _keeps_tags(located, message, places):
    """Whether the tags beside each thought that is written are written too."""
    pieces, text = THINK_TAG.split(message["content"] or ""), located.text
    for p in places:
        if not p.part.is_thought or p.part.field != "content":
            continue
        i = p.part.index
        floor = max((q.end for q in located.places if q.end <= p.start), default=0)
        limit = min((q.start for q in located.places if q.start >= p.end), default=len(text))
        if pieces[i + 1] not in text[p.end : limit] or (i > 0 and pieces[i - 1] not in text[floor : p.start]):
            return False
    return True


def changed_message(located, messages, weights):
    for number, message in enumerate(messages):
        if weights[number] <= 0:
            continue
        places = [p for p in located.places if p.message == number and not p.is_anchor]
        for p in places:
            if not is_kept(p.part.text, located.text[p.start : p.end]):
                return number
        if message["role"] == "assistant" and not any(k in message for k in THOUGHTS):
            if not _keeps_tags(located, message, places):
                return number
    return None
