"""JSON lines that need not be well-meant: strict UTF-8, one object a line, bounded in length and depth.

for block in line_blocks(stream):                     # Lines, not yet parsed: blocks go to other processes
    for line, value in block.objects(problems):       # line counts from 1; faulty lines go to problems instead
        ...
"""

import json
from dataclasses import dataclass, field

MAX_LINE_BYTES = 64 << 20
MAX_DEPTH = 64
# A block is what one process takes at a time: the offsets of its tokens are Python objects, some 100 bytes a character.
BLOCK_BYTES, BLOCK_ROWS = 1 << 20, 4096

ONE_OBJECT = "write one JSON object a line"


class DuplicateKey(ValueError):
    pass


def _object(pairs):
    value = dict(pairs)
    if len(value) != len(pairs):
        names = [k for k, _ in pairs]
        raise DuplicateKey(next(n for n in names if names.count(n) > 1))
    return value


def _constant(name):
    raise ValueError(f"{name} is not JSON")


_decoder = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant)


def _deeper_than(value, limit):
    level = [value]
    for _ in range(limit):
        level = [v for x in level for v in (x.values() if isinstance(x, dict) else x) if isinstance(v, (dict, list))]
        if not level:
            return False
    return True


def value_of(text):
    """The value of JSON text that stands inside a line, as strict as the line: ValueError, DuplicateKey."""
    value = _decoder.decode(text)
    if text.count("[") + text.count("{") > MAX_DEPTH and _deeper_than([value], MAX_DEPTH):
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
    return value


def parse(raw, line, problems):
    """The object of one line (bytes, or text that was decoded already), or None after a note to problems."""
    try:
        text = raw if isinstance(raw, str) else raw.decode("utf-8")
    except UnicodeDecodeError as e:
        problems.add(
            "not UTF-8",
            "convert the file to UTF-8, for example with iconv",
            line,
            detail=f"byte 0x{raw[e.start]:02x} at byte {e.start + 1} of the line",
        )
        return None
    too_deep = f"nest at most {MAX_DEPTH} levels"
    try:
        value = _decoder.decode(text)
    except DuplicateKey as e:
        problems.add("a key stands twice in one object", "keep one of the two", line, detail=f'"{e}"')
        return None
    except RecursionError:
        problems.add("nested too deep", too_deep, line)
        return None
    except json.JSONDecodeError as e:
        problems.add("not valid JSON", ONE_OBJECT, line, detail=f"{e.msg} at column {e.colno}")
        return None
    except ValueError as e:
        problems.add("not valid JSON", ONE_OBJECT, line, detail=str(e)[:120])
        return None
    if not isinstance(value, dict):
        problems.add("not a JSON object", ONE_OBJECT, line, detail=f"a {type(value).__name__} instead")
        return None
    if text.count("[") + text.count("{") > MAX_DEPTH and _deeper_than(value, MAX_DEPTH):
        problems.add("nested too deep", too_deep, line)
        return None
    return value


@dataclass
class Mistake:
    """What stands in the place of a line that cannot be taken as it is: the mistake that it is."""

    kind: str
    fix: str
    detail: str = ""


@dataclass
class Lines:
    """A block of JSON texts with their numbers, read but not looked at: that is done where the block is processed."""

    rows: list = field(default_factory=list)  # (number, bytes, str or Mistake)
    size: int = 0

    def add(self, number, raw):
        self.rows.append((number, raw))
        self.size += 0 if isinstance(raw, Mistake) else len(raw)

    @property
    def full(self):
        return self.size >= BLOCK_BYTES or len(self.rows) >= BLOCK_ROWS

    def objects(self, problems):
        """Yields (number, object); what is none goes to problems."""
        for number, raw in self.rows:
            if isinstance(raw, Mistake):
                problems.add(raw.kind, raw.fix, number, detail=raw.detail)
            elif (value := parse(raw, number, problems)) is not None:
                yield number, value


def too_long(unit="line"):
    return Mistake(f"longer than {MAX_LINE_BYTES >> 20} MiB", f"split the document into several {unit}s")


def line_blocks(stream):
    """Blocks of the lines of a binary stream that are not blank."""
    block, line = Lines(), 0
    while raw := stream.readline(MAX_LINE_BYTES + 1):
        line += 1
        if len(raw) > MAX_LINE_BYTES:
            block.add(line, too_long())
            while raw and not raw.endswith(b"\n"):
                raw = stream.readline(MAX_LINE_BYTES)
            continue
        if line == 1:
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        if raw.isspace() or not raw:
            continue
        block.add(line, raw)
        if block.full:
            yield block
            block = Lines()
    if block.rows:
        yield block
