"""Lines that are tokenised already. trainer/data/documents_jsonl.cpp reads whole files of them and accepts the same.

tokens, labels = read_ids({"input_ids": [5, 6, 7], "labels": [-100, 6, 7]})
"""

from prepare.errors import printable
from prepare.keys import is_absent
from prepare.sample import IGNORED, BadLine


def _check_list(value, key, least):
    ids = value[key]
    if not isinstance(ids, list) or not all(type(i) is int for i in ids):
        raise BadLine(f'"{key}" is not a list of whole numbers', "give token ids")
    bad = next((i for i in ids if not (0 <= i < 2**31 - 1 or i == least)), None)
    if bad is not None:
        raise BadLine(
            f'"{key}" holds an id out of range',
            "ids are 0 to 2147483646; a label may be -100 too",
            printable(str(bad), 40),
        )
    return ids


def _check_plain(value, length):
    """Mask and positions may be there where they say nothing but what holds without them."""
    if not is_absent(value.get("attention_mask")) and value["attention_mask"] != [1] * length:
        raise BadLine(
            '"attention_mask" is not 1 for each token',
            "leave padding out of the line, and give each document a line of its own",
        )
    if not is_absent(value.get("position_ids")) and value["position_ids"] != list(range(length)):
        raise BadLine('"position_ids" do not count from 0', "give each document a line of its own; moetune packs them")


def _is_int_list(value):
    return isinstance(value, list) and all(type(i) is int for i in value)


def read_ids(value):
    """Tokens and labels."""
    if "labels" not in value:
        raise BadLine('"input_ids" without "labels"', 'give "labels" of the same length; -100 is not trained')
    tokens, labels = _check_list(value, "input_ids", 0), _check_list(value, "labels", IGNORED)
    if len(tokens) != len(labels):
        raise BadLine(
            '"input_ids" and "labels" differ in length', "give one label a token", f"{len(tokens)} and {len(labels)}"
        )
    for key in ("attention_mask", "position_ids"):
        if not is_absent(value.get(key)) and not _is_int_list(value[key]):
            raise BadLine(f'"{key}" is not a list of whole numbers', "take it out; it is not needed")
    _check_plain(value, len(tokens))
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
