"""The regular expressions by which tokenizers split text into words, in Python's words.

    pattern = translated(r"\\p{N}{1,3}")    # source for Python's re, or None for what is not known to mean the same

Python's re knows no \\p{...}, and its \\s is another; both are written out here as the characters of ALPHABET, so that
a translation means the same in texts of these characters only. A character of EDGES stands where a text begins, ends or
is cut: no class matches it, a negated one neither.
"""

import re
import unicodedata

EDGES = "\U000f0000-\U000ffffd"  # of a class: characters that no one but programs among themselves may give a meaning


def _is_settled(character):
    """Whether it is a letter, number or sign of all versions of Unicode, in NFC whatever is beside it."""
    kind = unicodedata.category(character)
    return (kind[0] in "LNPSZ" or character in "\t\n\v\f\r") and unicodedata.normalize("NFC", character) == character


# Latin, Greek and Cyrillic with the signs and symbols in use beside them. Marks that join others are not among them.
_BLOCKS = (range(0x250), range(0x370, 0x530), range(0x2000, 0x2060), range(0x20A0, 0x20C0), range(0x2100, 0x2400))
ALPHABET = "".join(c for block in _BLOCKS for c in map(chr, block) if _is_settled(c))
SPACES = "".join(c for c in ALPHABET if c.isspace())

_TOKEN = re.compile(
    r"""(?P<property>\\p\{(?P<name>[LNPSMZ][a-z]?)\})
    | (?P<escape>\\[^a-zA-Z0-9] | \\[rnt])
    | (?P<space>\\[sS])
    | (?P<open>\[\^?)
    | (?P<group>\(\?: | \(\?i: | \(\?! | \( (?!\?))
    | (?P<rest>[|)] | [*+?]\+? | \{\d+(?:,\d*)?\}(?!\+))
    | (?P<plain>[^\\\[\](){}|*+?.^$])""",
    re.VERBOSE,
)
_IN_CLASS = re.compile(
    r"""(?P<property>\\p\{(?P<name>[LNPSMZ][a-z]?)\})
    | (?P<escape>\\[^a-zA-Z0-9] | \\[rnt])
    | (?P<space>\\s)
    | (?P<plain>&(?!&) | [^\\\[\]&])""",
    re.VERBOSE,
)


def characters(text):
    """Characters in their order, inside a class of Python's re: neighbours as one range, which compiles faster."""
    runs = []
    for c in text:
        if runs and ord(runs[-1][1]) + 1 == ord(c):
            runs[-1][1] = c
        else:
            runs.append([c, c])
    return "".join(re.escape(first) + ("-" + re.escape(last)) * (last > first) for first, last in runs)


def _plain(character):
    return "-" if character == "-" else re.escape(character)  # an unescaped one makes a range


def _property(name):
    return characters(c for c in ALPHABET if unicodedata.category(c).startswith(name))


def _class(source, at, negated):
    """(the class whose inside begins at `at`, where it ends), or None."""
    inside = EDGES if negated else ""
    while (m := _IN_CLASS.match(source, at)) is not None:
        at = m.end()
        if m["property"]:
            inside += _property(m["name"])
        else:
            inside += characters(SPACES) if m["space"] else m["escape"] or _plain(m["plain"])
    if source[at : at + 1] != "]" or not inside:
        return None
    return f"[{'^' if negated else ''}{inside}]", at + 1


def translated(source):
    out, at = "", 0
    while at < len(source):
        m = _TOKEN.match(source, at)
        if m is None:
            return None
        at = m.end()
        if m["open"]:
            found = _class(source, at, m["open"] == "[^")
            if found is None:
                return None
            piece, at = found
        elif m["property"]:
            # A property without any character of the alphabet matches nothing.
            piece = f"[{inside}]" if (inside := _property(m["name"])) else "(?!)"
        elif m["space"]:
            piece = f"[{characters(SPACES)}]" if m["space"] == r"\s" else f"[^{characters(SPACES)}{EDGES}]"
        elif m["group"] == "(":
            piece = "(?:"
        else:
            piece = m["escape"] or m["group"] or m["rest"] or m["plain"]
        out += piece
    try:
        return None if re.match(out, "") else out  # a word of nothing is a matter of its own
    except re.error:
        return None
