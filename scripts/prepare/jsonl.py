"""Reads a JSONL file that need not be well-meant: strict UTF-8, one object a line, bounded in length and depth.

problems = Problems(path)
for line, value in read_objects(path, problems):   # line counts from 1; faulty lines go to problems instead
    ...
"""

import json

from prepare.errors import UserError

MAX_LINE_BYTES = 64 << 20
MAX_DEPTH = 64

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


def _parse(raw, line, problems):
    """The object of one line, or None after a note to problems."""
    try:
        text = raw.decode("utf-8")
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
    if raw.count(b"[") + raw.count(b"{") > MAX_DEPTH and _deeper_than(value, MAX_DEPTH):
        problems.add("nested too deep", too_deep, line)
        return None
    return value


def _refuse_other_files(path, head):
    for magic, kind, fix in (
        (b"PAR1", "a Parquet file", "write it as JSONL first"),
        (b"\x1f\x8b", "gzip-compressed", "unpack it with gunzip first"),
        (b"(\xb5/\xfd", "zstd-compressed", "unpack it with unzstd first"),
        (b"[", "one JSON array", "write one object a line: jq -c '.[]' FILE > FILE.jsonl"),
    ):
        if head.startswith(magic):
            raise UserError(f"{path}: this is {kind}, not JSONL\n  fix: {fix}")


def read_objects(path, problems):
    """Yields (line, object) of every line that is not blank. An empty file is a UserError."""
    line, seen = 0, False
    try:
        with open(path, "rb") as f:
            while raw := f.readline(MAX_LINE_BYTES + 1):
                line += 1
                if len(raw) > MAX_LINE_BYTES:
                    problems.add(
                        f"longer than {MAX_LINE_BYTES >> 20} MiB", "split the document into several lines", line
                    )
                    while raw and not raw.endswith(b"\n"):
                        raw = f.readline(MAX_LINE_BYTES)
                    seen = True
                    continue
                if line == 1:
                    raw = raw.removeprefix(b"\xef\xbb\xbf")
                    _refuse_other_files(path, raw[:8])
                if raw.isspace() or not raw:
                    continue
                seen = True
                value = _parse(raw, line, problems)
                if value is not None:
                    yield line, value
    except IsADirectoryError:
        raise UserError(f"{path}: this is a folder\n  fix: name the JSONL file in it") from None
    except OSError as e:
        raise UserError(f"{path}: cannot be read: {e.strerror}\n  fix: check the path and its permissions") from None
    if not seen:
        raise UserError(f"{path}: the file is empty\n  fix: it needs at least one line, a JSON object")
