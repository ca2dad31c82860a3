"""Line formats: which one a file has, and a line of it as a Sample.

    name = detect(value)                        # "messages", ..., or None
    sample = convert(name, value, line, has_template=True, rules=Rules())

A Sample is one of three things: a conversation (messages, to be rendered by the chat template), a Text whose pieces are
known, or tokens that are there already. A mistake in a line raises BadLine(kind, fix, detail).
"""

from prepare.checks import check_string, check_weight
from prepare.keys import check_line, is_absent
from prepare.messages import read_messages, sharegpt_turns, template_variables, with_system
from prepare.sample import IGNORED, BadLine, Sample, Text
from prepare.tokenised import read_ids
from prepare.tools import parse_tools

__all__ = ["CHAT_FORMATS", "FORMAT_HELP", "IGNORED", "BadLine", "convert", "detect"]

# In order of precedence: an alpaca file, say, often carries a "text" column beside its own.
FORMATS = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "input_ids/labels": ("input_ids",),
    "prompt/completion": ("prompt", "completion"),
    "alpaca": ("instruction", "output"),
    "text": ("text",),
}
_KEYS = {name: frozenset(keys) for name, keys in FORMATS.items()}
CHAT_FORMATS = ("messages", "sharegpt", "prompt/completion messages")  # nothing without a chat template
FORMAT_HELP = (
    '{"messages": [{"role", "content"}...]}, {"prompt", "completion"}, {"instruction", "input"?, "output"}, '
    '{"conversations": [{"from", "value"}...]}, {"text"} or {"input_ids", "labels"}'
)
_ALPACA = "Below is an instruction that describes a task"
_ALPACA_INPUT = ", paired with an input that provides further context"
_ALPACA_ASKS = ". Write a response that appropriately completes the request.\n\n### Instruction:\n"


def detect(value):
    """The format of a line by its keys, or None."""
    given = value.keys()
    name = next((name for name, keys in _KEYS.items() if keys <= given), None)
    if name == "prompt/completion" and isinstance(value["prompt"], list) and isinstance(value["completion"], list):
        return "prompt/completion messages"
    return name


def needed_keys(name):
    """The keys of which a line of this format, and its messages, consist: they cannot be ignored."""
    if name == "prompt/completion messages":
        return {"prompt", "completion", "role", "content"}
    inner = {"messages": {"role", "content"}, "sharegpt": {"from", "value"}}
    return {*FORMATS[name], *inner.get(name, ())}


def _alpaca_text(value, rules, weight):
    """Alpaca's own frame, for models without a chat template."""
    for key in ("system", "history", "tools", "functions", "chat_template_kwargs"):
        if not is_absent(value.get(key)):
            raise BadLine(
                f'"{key}" in an alpaca line, and no chat template to write it',
                'give the model a chat template (chat_template.jinja), or the line as "prompt" and "completion"',
            )
    instruction = check_string(value["instruction"], "instruction", may_be_empty=False)
    asked = 1.0 if rules.train_all else 0.0
    pieces = [(instruction, asked)]
    if not is_absent(value.get("input")):
        pieces += [("\n\n### Input:\n", None), (check_string(value["input"], "input"), asked)]
    frame = _ALPACA + (_ALPACA_INPUT if len(pieces) > 1 else "") + _ALPACA_ASKS
    output = check_string(value["output"], "output")
    return Text.of((frame, None), *pieces, ("\n\n### Response:\n", None), (output, 1.0), weight=weight)


def _alpaca_turns(value):
    """An alpaca line as messages: its history, its question with the input behind a blank line, its answer."""
    turns = []
    history = value.get("history")
    if not is_absent(history):
        if not isinstance(history, list) or not all(isinstance(h, list) and len(h) == 2 for h in history):
            raise BadLine('"history" is not a list of [question, answer]', "give pairs of strings, or messages")
        for question, answer in history:
            turns.append({"role": "user", "content": check_string(question, "history")})
            turns.append({"role": "assistant", "content": check_string(answer, "history")})
    asked = check_string(value["instruction"], "instruction", may_be_empty=False)
    if not is_absent(value.get("input")):
        asked += "\n\n" + check_string(value["input"], "input")
    output = check_string(value["output"], "output")
    return [*turns, {"role": "user", "content": asked}, {"role": "assistant", "content": output}]


def _prompt_turns(value):
    """TRL's conversational prompt and completion, lists of messages."""
    turns = value["prompt"] + value["completion"]
    if not value["completion"] or not all(isinstance(m, dict) for m in turns):
        raise BadLine('"prompt" or "completion" is not a list of messages', 'give {"role": ..., "content": ...}')
    return turns


def _tools(value):
    given = [k for k in ("tools", "functions") if not is_absent(value.get(k))]
    if len(given) > 1:
        raise BadLine('"tools" and "functions" in one line', "keep tools")
    return parse_tools(value[given[0]], given[0]) if given else None


def convert(name, value, line, has_template, rules):
    """A line of the named format as a Sample."""
    needed = needed_keys(name)
    if rules.ignore_keys:
        value = {k: v for k, v in value.items() if k not in rules.ignore_keys or k in needed}
    sample = Sample(line, value.get("id"), unused=check_line(name, value))
    if name == "input_ids/labels":
        sample.tokens, sample.labels = read_ids(value)
        return sample
    if value.get("weight") is not None:
        sample.weight = check_weight(value["weight"], "weight")
    if name == "text":
        text = check_string(value["text"], "text", may_be_empty=False)
        sample.text = Text.of((text, 1.0), weight=sample.weight, raw=True)
    elif name == "prompt/completion":
        prompt, completion = check_string(value["prompt"], "prompt"), check_string(value["completion"], "completion")
        asked = 1.0 if rules.train_all else 0.0
        sample.text = Text.of((prompt, asked), (completion, 1.0), weight=sample.weight, raw=True)
    elif name == "alpaca" and not has_template:
        sample.text = _alpaca_text(value, rules, sample.weight)
    else:
        if name == "sharegpt":
            turns = sharegpt_turns(value, rules.ignore_keys)
        elif name == "alpaca":
            turns = _alpaca_turns(value)
        elif name == "prompt/completion messages":
            turns = _prompt_turns(value)
        else:
            turns = value["messages"]
        turns = with_system(turns, value)
        # The answers in a prompt are no targets, only those in its completion.
        first_target = len(turns) - len(value["completion"]) if name == "prompt/completion messages" else 0
        sample.messages, weights = read_messages(turns, rules, first_target)
        sample.weights = [w * sample.weight for w in weights]
        sample.tools, sample.variables = _tools(value), template_variables(value)
    return sample
