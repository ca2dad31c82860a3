"""Mistakes of the user, and text of files made safe to print."""


class UserError(Exception):
    """Its text says what, where and the fix; the program ends with exit code 2."""


def printable(text):
    """Control characters but line breaks, and bytes that were no text, as escapes."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)
