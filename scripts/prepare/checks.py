"""Checks of values that stand in several places of a line.

text = check_string(value, "prompt", may_be_empty=False)
check_text(value, "tools")              # no half of a surrogate pair in any string of it, keys too
check_weight(0.5, "weight")
"""

import math

from prepare.errors import printable
from prepare.sample import BadLine

MAX_WEIGHT = 1000


def _check_surrogates(text, what):
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as e:
            raise BadLine(
                "half of a surrogate pair", "replace the \\ud800-\\udfff escape", f"character {e.start + 1} of {what}"
            ) from None


def check_text(value, what):
    """Every string of a JSON value must be Unicode text, which half of a surrogate pair is not, and every number one
    that can be written again. Returns the value."""
    open_values = [value]
    while open_values:
        value_ = open_values.pop()
        if isinstance(value_, str):
            _check_surrogates(value_, what)
        elif isinstance(value_, dict):
            open_values += [*value_.keys(), *value_.values()]
        elif isinstance(value_, list):
            open_values += value_
        elif isinstance(value_, float) and not math.isfinite(value_):
            raise BadLine("a number that is too large", "write it as text, or below 1.8e308", f"in {what}")
    return value


def check_string(value, key, may_be_empty=True):
    if not isinstance(value, str):
        raise BadLine(f'"{key}" is not a string', f'give "{key}" as a string', f"a {type(value).__name__}")
    if not value and not may_be_empty:
        raise BadLine(f'"{key}" is empty', "remove the line or fill it in")
    _check_surrogates(value, f'"{key}"')
    return value


def check_weight(value, key):
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= MAX_WEIGHT:
        raise BadLine(
            f'"{key}" is not a number from 0 to {MAX_WEIGHT}',
            "0 is not trained, 1 is the usual, 0.5 counts half",
            printable(repr(value), 40),
        )
    return float(value)
