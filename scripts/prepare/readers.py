"""Data files of every kind as blocks of objects: JSON lines, one JSON array, Parquet; the first two gzip- or
zstd-compressed too. What a file is, its first bytes say, not its name. Nothing is ever read whole.

reader = Reader(path)
for block in reader.blocks():                          # picklable: any process may look into it
    for number, value in block.objects(problems):      # number counts lines, elements or rows, as reader.unit says
        ...
reader.done()                                          # part of the file that is read, 0 to 1
"""

import contextlib
import gzip
import io
import os
import zlib

from prepare.errors import UserError
from prepare.json_array import array_blocks
from prepare.jsonl import line_blocks
from prepare.parquet import parquet_blocks, require_pyarrow

GZIP, ZSTD, PARQUET = b"\x1f\x8b", b"(\xb5/\xfd", b"PAR1"
HEAD_BYTES = 1 << 16  # enough to see past blank lines before an array


def _is_array(head):
    return head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")


class Reader:
    def __init__(self, path):
        self.path = path
        self._file, self._rows, self.size = None, None, 0
        with self._errors():
            with open(path, "rb") as f:
                self.size = os.fstat(f.fileno()).st_size
                head = f.read(HEAD_BYTES)
            self.packing = next((m for m in (GZIP, ZSTD) if head.startswith(m)), None)
            if self.packing:
                with self._opened() as f:
                    head = f.read(HEAD_BYTES)
        self.is_parquet = head.startswith(PARQUET)
        self.is_array = _is_array(head)
        if self.packing and (self.is_parquet or head.startswith((GZIP, ZSTD))):
            raise UserError(
                f"{path}: compressed twice, or Parquet that was compressed once more\n  fix: unpack it once"
            )
        self.unit = "row" if self.is_parquet else "element" if self.is_array else "line"

    @contextlib.contextmanager
    def _errors(self):
        try:
            yield
        except IsADirectoryError:
            raise UserError(f"{self.path}: this is a folder\n  fix: name the files in it") from None
        except (EOFError, zlib.error, gzip.BadGzipFile) as e:
            raise UserError(
                f"{self.path}: gzip-compressed and damaged or cut short: {e}\n  fix: pack it again"
            ) from None
        except OSError as e:
            if e.errno is None:  # Arrow's own
                raise UserError(
                    f"{self.path}: zstd-compressed and damaged or cut short: {str(e)[:200]}\n  fix: pack it again"
                ) from None
            raise UserError(
                f"{self.path}: cannot be read: {e.strerror}\n  fix: check the path and its permissions"
            ) from None

    @contextlib.contextmanager
    def _opened(self):
        """The unpacked bytes of the file."""
        with open(self.path, "rb") as self._file:
            if self.packing == GZIP:
                with gzip.open(self._file) as stream:
                    yield io.BufferedReader(stream, 1 << 20)
            elif self.packing == ZSTD:
                pyarrow = require_pyarrow(self.path, "zstd")
                with pyarrow.CompressedInputStream(pyarrow.PythonFile(self._file, mode="r"), "zstd") as stream:
                    yield io.BufferedReader(_Raw(stream), 1 << 20)
            else:
                yield self._file

    def done(self):
        """The part of the file that was read."""
        if self._rows:
            return self._rows[0] / max(1, self._rows[1])
        return min(1.0, self._file.tell() / max(1, self.size)) if self._file and not self._file.closed else 1.0

    def _on_rows(self, done, of):
        self._rows = done, of

    def blocks(self):
        """An empty file is a UserError."""
        empty = True
        with self._errors():
            if self.is_parquet:
                for block in parquet_blocks(self.path, self._on_rows):
                    empty = False
                    yield block
            else:
                with self._opened() as stream:
                    for block in array_blocks(stream, self.path) if self.is_array else line_blocks(stream):
                        empty = False
                        yield block
        if empty:
            raise UserError(f"{self.path}: the file is empty\n  fix: it needs at least one {self.unit}, a JSON object")


class _Raw(io.RawIOBase):
    """An Arrow stream for io.BufferedReader, which alone has lines."""

    def __init__(self, stream):
        self.stream = stream

    def readable(self):
        return True

    def readinto(self, buffer):
        data = self.stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)
