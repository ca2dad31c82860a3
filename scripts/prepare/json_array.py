"""One JSON array, read in a stream: blocks of the texts of its elements, as JSON lines have them.

for block in array_blocks(stream, path):      # jsonl.Lines; elements count from 1
    ...

Elements are parsed twice, here to find their ends and where the block is processed; parsing is the least of the work.
"""

import codecs
import json

from prepare import jsonl
from prepare.errors import UserError

READ_BYTES = 1 << 20
_decoder = json.JSONDecoder()
_BLANK = " \t\r\n"


class _Window:
    """The part of the text that is looked at, decoded as it is read."""

    def __init__(self, stream, path):
        self.stream, self.path = stream, path
        self.decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self.text, self.at, self.ended = "", 0, False

    def more(self):
        """Reads on, at least as much as there is: an element that spans many reads is not looked at anew for each."""
        raw = self.stream.read(max(READ_BYTES, len(self.text) - self.at))
        self.ended = not raw
        try:
            self.text = self.text[self.at :] + self.decoder.decode(raw, final=self.ended)
        except UnicodeDecodeError as e:
            raise UserError(
                f"{self.path}: not UTF-8: byte 0x{e.object[e.start]:02x}\n"
                "  fix: convert the file to UTF-8, for example with iconv"
            ) from None
        self.at = 0

    def peek(self):
        """The next character that is not blank, or "" at the end; it is looked at next."""
        while True:
            while self.at < len(self.text) and self.text[self.at] in _BLANK:
                self.at += 1
            if self.at < len(self.text) or self.ended:
                return self.text[self.at : self.at + 1]
            self.more()

    def element(self):
        """The text of the value that begins here, or None where it is longer than is allowed; ValueError for no JSON."""
        while True:
            try:
                _, end = _decoder.raw_decode(self.text, self.at)
                if end < len(self.text) or self.ended:  # otherwise a number may go on
                    text, self.at = self.text[self.at : end], end
                    return text
            except ValueError:
                if self.ended:
                    raise
            except RecursionError:
                raise ValueError("nested too deep") from None
            if len(self.text) - self.at > jsonl.MAX_LINE_BYTES:
                return None
            self.more()


def array_blocks(stream, path):
    window, block, number = _Window(stream, path), jsonl.Lines(), 0
    window.peek()
    window.at += 1  # the opening bracket
    closed = window.peek() == "]"
    window.at += closed
    while not closed:
        number += 1
        window.peek()
        try:
            text = window.element()
        except ValueError as e:
            detail = e.msg if isinstance(e, json.JSONDecodeError) else str(e)
            raise UserError(
                f"{path}: not valid JSON in element {number} of the array: {detail}\n  fix: compare it with the program"
                " that wrote the file; one object a line is easier to mend"
            ) from None
        if text is None:
            mistake = jsonl.too_long("element")
            raise UserError(f"{path}: element {number} of the array is {mistake.kind}\n  fix: {mistake.fix}")
        block.add(number, text)
        if block.full:
            yield block
            block = jsonl.Lines()
        following = window.peek()
        closed = following == "]"
        if not closed and following != ",":
            raise UserError(
                f"{path}: not valid JSON behind element {number} of the array: "
                + (f"{following!r} instead of a comma or ]" if following else "the file ends")
                + "\n  fix: the file is cut short or damaged: write it again"
            )
        window.at += 1
    if window.peek():
        raise UserError(
            f"{path}: {window.peek()!r} stands behind the array\n  fix: a file holds one array, or one object a line"
        )
    if block.rows:
        yield block
