"""Which keys a line and a message may have: each is honoured, refused or named. The table stands in docs/data.md.

unused = check_line("messages", value)           # () or keys to be named in a note; BadLine for those that would matter
check_message({"role": ..., "content": ...})     # BadLine for a key that nothing honours

A key that holds null, "", [] or {} counts as absent: tables turned into lines have every column in every line.
"""

import re

from prepare.errors import printable
from prepare.sample import BadLine

CONVERSATION = {"system", "tools", "functions", "chat_template_kwargs", "weight"}
LINE_KEYS = {
    "messages": {"messages"} | CONVERSATION,
    "sharegpt": {"conversations"} | CONVERSATION,
    "alpaca": {"instruction", "input", "output", "history"} | CONVERSATION,
    "prompt/completion messages": {"prompt", "completion"} | CONVERSATION,
    "prompt/completion": {"prompt", "completion", "weight"},
    "text": {"text", "weight"},
    "input_ids/labels": {"input_ids", "labels", "attention_mask", "position_ids"},
}


def _bare(key):
    """The key whatever its spelling: loss_mask, loss-mask, lossMask."""
    return re.sub(r"[^a-z0-9]", "", key.lower())


# Keys by which data of other programs says what is learnt, or with what before it: dropping one changes the training.
_DECISIVE = {
    _bare(key)
    for key in """assistant_masks attention_mask audio audios chat_template chat_template_kwargs chosen completion_mask document
    do_train documents function_call functions history image images input_values instruction is_train is_trained kto_tag
    labels_mask loss loss_mask loss_scale loss_weight loss_weights mask masks objects pixel_values position_ids prefix
    reasoning reasoning_content rejected rejected_response sample_weight suffix system system_message system_prompt
    target_mask thinking token_type_ids tool_calls tools train train_mask train_on trainable training video videos weight
    weights""".split()
}
# Parts of a question or an answer, in other programs' words for formats that have few keys.
_PARTS = {_bare(key) for key in "context query question response answer".split()}
_PARTED = ("alpaca", "prompt/completion")
MESSAGE_KEYS = {
    *("role", "content", "train", "weight", "loss", "name", "reasoning_content", "reasoning", "thinking"),
    *("tool_calls", "function_call", "tool_call_id"),
}


def is_absent(value):
    return value is None or (isinstance(value, (str, list, dict)) and not value)


def quoted(key):
    return f'"{printable(key, 40)}"'


def _would_matter(key, value, name):
    bare = _bare(key)
    if bare == "label":  # of KTO: whether the answer is a good one; classes of texts are numbers and words
        return isinstance(value, bool)
    if bare == "labels":
        return isinstance(value, list)
    return bare in _DECISIVE or (bare in _PARTS and name in _PARTED)


def check_line(name, value):
    """The keys of a line that nothing reads. Raises BadLine for one that would change what is learnt."""
    unknown = [k for k in value if k != "id" and k not in LINE_KEYS[name] and not is_absent(value[k])]
    tokenised = name == "input_ids/labels"
    for key in unknown:
        if tokenised or _would_matter(key, value[key], name):
            raise BadLine(
                f"the key {quoted(key)} is not honoured in a line of format {name}",
                f"write what it says as docs/data.md tells, remove it, or name it in data.ignore_keys: [{key}]",
            )
    return tuple(unknown)


def check_message(message):
    """Raises BadLine for a key of a message that nothing honours."""
    for key, value in message.items():
        if key not in MESSAGE_KEYS and not is_absent(value):
            raise BadLine(
                f"the key {quoted(key)} of a message is not honoured",
                f"remove it, or name it in data.ignore_keys: [{key}] if nothing is to be learnt from it",
            )
