"""A line on its way to tokens: what it is, before and after its chat template was rendered.

Text.of(("2 + 2 =", 0), (" 4", 1))               # a prompt that is not trained, and a completion that is
Sample(line=7, messages=[...], weights=[0, 1])   # a conversation, to be rendered
raise BadLine("what is wrong", "how to mend it", "what was seen")

A weight says how much the loss of a token counts: 0 is not trained, 1 is the usual, 0.5 half as much.
"""

from dataclasses import dataclass, field

IGNORED = -100  # the label of a token that is not trained


class BadLine(Exception):
    """A mistake in a line: its kind (lines are counted by it), the fix, and what was seen in this one."""

    def __init__(self, kind, fix, detail=""):
        super().__init__(kind, fix, detail)


@dataclass(frozen=True)
class Span:
    """Characters [start, end) of a text that came from the data, or whose loss counts other than the template's."""

    start: int
    end: int
    weight: float
    reasoning_tags: bool = False  # <think> and </think> in it are the model's own tokens (assistant content)
    ends_turn: bool = False  # the end token behind it is trained with it, unless it ends with one itself
    content: bool = True  # False: written by the template, so its special tokens are what they say


@dataclass
class Text:
    """A text to tokenise as a whole, with its spans in order and apart from each other; the rest is the template's."""

    text: str
    spans: list
    weight: float = 1.0  # of the template's own tokens where all are trained, and of a framed text's end
    framed: bool = False  # bos (if there is one to put) before it and a trained eos behind it
    raw: bool = False  # written by the user as the model is to see it: a text, a prompt with its completion

    @staticmethod
    def of(*pieces, weight=1.0, raw=False):
        """From pieces (string, weight), where weight None marks text that plays the template's part."""
        out, spans = "", []
        for text, own in pieces:
            if own is not None:
                spans.append(Span(len(out), len(out) + len(text), own * weight, reasoning_tags=raw))
            out += text
        return Text(out, spans, weight, framed=True, raw=raw)


@dataclass
class Sample:
    line: int
    id: object = None
    messages: list = None  # of a conversation: checked messages (messages.py)
    weights: list = field(default_factory=list)  # of each message
    tools: list = None  # what the assistant may call, for the template
    variables: dict = field(default_factory=dict)  # of the line, for the template
    text: Text = None
    tokens: list = None
    labels: list = None
    weight: float = 1.0  # of the whole line
    unused: tuple = ()  # keys of the line that nothing reads

    @property
    def size(self):
        """Characters or tokens, about."""
        if self.messages is not None:
            return sum(len(m["content"] or "") for m in self.messages)
        return len(self.text.text if self.text is not None else self.tokens)
