"""Line formats: which one a file has, and a line of it as a Sample.

    name = detect(value)                        # "messages", ..., or None
    sample = convert(name, value, line, has_template=True, train_on="assistant")

A Sample is one of three things: a conversation (messages, to be rendered by the chat template), a Text whose pieces are
known, or tokens that are there already. A mistake in a line raises BadLine(kind, fix, detail).
"""

from dataclasses import dataclass, field

# In order of precedence: an alpaca file, say, often carries a "text" column beside its own.
FORMATS = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "input_ids/labels": ("input_ids",),
    "prompt/completion": ("prompt", "completion"),
    "alpaca": ("instruction", "output"),
    "text": ("text",),
}
FORMAT_HELP = (
    '{"messages": [{"role", "content"}...]}, {"prompt", "completion"}, {"instruction", "input"?, "output"}, '
    '{"conversations": [{"from", "value"}...]}, {"text"} or {"input_ids", "labels"}'
)
SHAREGPT_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
IGNORED = -100


class BadLine(Exception):
    def __init__(self, kind, fix, detail=""):
        super().__init__(kind, fix, detail)


@dataclass(frozen=True)
class Span:
    """Characters [start, end) of a text that came from the data; the rest is the template's."""

    start: int
    end: int
    trained: bool
    reasoning_tags: bool = False  # <think> and </think> in it are the model's own tokens (assistant content)
    ends_turn: bool = False  # the end token behind it is trained with it


@dataclass
class Text:
    """A text to tokenise as a whole, with the places of content in it."""

    text: str
    spans: list
    framed: bool = False  # bos (if the tokenizer adds one) before it and a trained eos behind it

    @staticmethod
    def of(*pieces):
        """From pieces (string, trained), where trained None marks text that plays the template's part."""
        out, spans = "", []
        for text, trained in pieces:
            if trained is not None:
                spans.append(Span(len(out), len(out) + len(text), trained))
            out += text
        return Text(out, spans, framed=True)


@dataclass
class Sample:
    line: int
    id: object = None
    messages: list = None
    text: Text = None
    tokens: list = None
    labels: list = None
    trained: list = field(default_factory=list)  # of each message: whether its content is a target

    @property
    def size(self):
        """Characters or tokens, about."""
        if self.messages is not None:
            return sum(len(m["content"]) for m in self.messages)
        return len(self.text.text if self.text is not None else self.tokens)


def detect(value):
    """The format of a line by its keys, or None."""
    return next((name for name, keys in FORMATS.items() if all(k in value for k in keys)), None)


def _string(value, key, may_be_empty=True):
    text = value[key]
    if not isinstance(text, str):
        raise BadLine(f'"{key}" is not a string', f'give "{key}" as a string', f"a {type(text).__name__}")
    if not text and not may_be_empty:
        raise BadLine(f'"{key}" is empty', "remove the line or fill it in")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as e:
            raise BadLine(
                "half of a surrogate pair", "replace the \\ud800-\\udfff escape", f'character {e.start + 1} of "{key}"'
            ) from None
    return text


def _content(message):
    content = message.get("content")
    if isinstance(content, list):
        # The parts of a text-only message are joined; anything else has no meaning to a language model.
        if not all(isinstance(p, dict) and p.get("type") == "text" and isinstance(p.get("text"), str) for p in content):
            raise BadLine("content that is not text", "moetune trains on text: remove images and other parts")
        message = {"content": "".join(p["text"] for p in content)}
    return _string(message, "content")


def _messages(value, train_on):
    """Checked messages with role, content and reasoning_content, and for each whether it is trained."""
    turns = value["messages"]
    if not isinstance(turns, list) or not turns or not all(isinstance(m, dict) for m in turns):
        raise BadLine('"messages" is not a list of messages', 'give a list of {"role": ..., "content": ...}')
    if value.get("tools") or any(m.get("tool_calls") for m in turns):
        raise BadLine(
            "tool calls",
            "moetune does not train on tool calls through a template: give such lines as input_ids and labels",
        )
    messages, trained = [], []
    for m in turns:
        if "role" not in m or "content" not in m:
            raise BadLine(
                'a message without "role" or "content"',
                'give both; sharegpt lines have "conversations", "from", "value"',
                "keys " + ", ".join(map(str, list(m)[:6])),
            )
        message = {"role": _string(m, "role", may_be_empty=False), "content": _content(m)}
        if m.get("reasoning_content") is not None:
            message["reasoning_content"] = _string(m, "reasoning_content")
        train = m.get("train", message["role"] == "assistant" or train_on == "all")
        if not isinstance(train, bool):
            raise BadLine('"train" is not true or false', 'give "train": true or "train": false', repr(train)[:40])
        messages.append(message)
        trained.append(train)
    return messages, trained


def _sharegpt(value):
    turns = value["conversations"]
    if not isinstance(turns, list) or not all(isinstance(m, dict) and "from" in m and "value" in m for m in turns):
        raise BadLine(
            '"conversations" is not a list of {"from", "value"}', 'give that, or "messages" with "role" and "content"'
        )
    messages = []
    for m in turns:
        role = SHAREGPT_ROLES.get(m["from"]) if isinstance(m["from"], str) else None
        if role is None:
            raise BadLine(
                "a speaker that is not known", '"from" may be ' + ", ".join(SHAREGPT_ROLES), repr(m["from"])[:40]
            )
        messages.append(
            {"role": role, "content": _string(m, "value"), **({"train": m["train"]} if "train" in m else {})}
        )
    return {"messages": messages}


def _alpaca(value, has_template, train_all):
    for key in ("system", "history"):
        if value.get(key):
            raise BadLine(f'"{key}" in an alpaca line', 'give such conversations as "messages"')
    instruction, output = _string(value, "instruction", may_be_empty=False), _string(value, "output")
    extra = _string(value, "input") if value.get("input") is not None else ""
    if has_template:
        asked = f"{instruction}\n\n{extra}" if extra else instruction
        return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": output}]}, None
    if extra:
        pieces = [
            (
                "Below is an instruction that describes a task, paired with an input that provides further context. "
                "Write a response that appropriately completes the request.\n\n### Instruction:\n",
                None,
            ),
            (instruction, train_all),
            ("\n\n### Input:\n", None),
            (extra, train_all),
        ]
    else:
        pieces = [
            (
                "Below is an instruction that describes a task. "
                "Write a response that appropriately completes the request.\n\n### Instruction:\n",
                None,
            ),
            (instruction, train_all),
        ]
    return None, Text.of(*pieces, ("\n\n### Response:\n", None), (output, True))


def _ids(value):
    """Tokens and labels of a line that is tokenised already."""
    if "labels" not in value:
        raise BadLine('"input_ids" without "labels"', 'give "labels" of the same length; -100 is not trained')
    tokens, labels = value["input_ids"], value["labels"]
    for key, ids, least in (("input_ids", tokens, 0), ("labels", labels, IGNORED)):
        if not isinstance(ids, list) or not all(type(i) is int for i in ids):
            raise BadLine(f'"{key}" is not a list of whole numbers', "give token ids")
        bad = next((i for i in ids if not (0 <= i < 2**31 - 1 or i == least)), None)
        if bad is not None:
            raise BadLine(
                f'"{key}" holds an id out of range', "ids are 0 to 2147483646; a label may be -100 too", str(bad)
            )
    if len(tokens) != len(labels):
        raise BadLine(
            '"input_ids" and "labels" differ in length', "give one label a token", f"{len(tokens)} and {len(labels)}"
        )
    targets = [i for i, label in enumerate(labels) if label != IGNORED]
    last = len(tokens) - 1
    if (
        len(targets) > 1
        and any(labels[i] != tokens[i] for i in targets)
        and all(i < last and labels[i] == tokens[i + 1] or i == last for i in targets)
    ):
        raise BadLine(
            '"labels" are shifted', "labels[i] is the target that equals input_ids[i]; moetune shifts by itself"
        )
    return tokens, labels


def convert(name, value, line, has_template, train_on):
    """A line of the named format as a Sample."""
    sample = Sample(line, value.get("id"))
    train_all = train_on == "all"
    if name == "input_ids/labels":
        sample.tokens, sample.labels = _ids(value)
    elif name == "text":
        sample.text = Text.of((_string(value, "text", may_be_empty=False), True))
    elif name == "prompt/completion":
        sample.text = Text.of((_string(value, "prompt"), train_all), (_string(value, "completion"), True))
    else:
        if name == "alpaca":
            value, sample.text = _alpaca(value, has_template, train_all)
        elif name == "sharegpt":
            value = _sharegpt(value)
        if sample.text is None:
            sample.messages, sample.trained = _messages(value, train_on)
    return sample
