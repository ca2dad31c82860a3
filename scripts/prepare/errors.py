"""Mistakes of the user: one clear text, exit code 2, no traceback.

problems = Problems("data/train.jsonl")
problems.add("not valid JSON", "one JSON object a line", line=3, detail="Expecting ',' at column 17")
problems.raise_if_any()        # one UserError that lists every kind with its count and first lines
"""

MAX_LISTED = 10  # lines listed of each kind of problem
MAX_PROBLEMS = 10_000  # a file that is wrong throughout need not be read to its end


class UserError(Exception):
    """A mistake in the data, the model's files or the options; its text says what, where and the fix."""


def printable(text, limit=None):
    """The text for a terminal: cut, and control characters and halves of surrogate pairs as escapes."""
    text = text if limit is None or len(text) <= limit else text[: limit - 3] + "..."
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def place(line, sample_id=None, unit="line"):
    """'line 7' or 'line 7 (id "a-12")'."""
    return f"{unit} {line}" if sample_id is None else f"{unit} {line} (id {str(sample_id)[:60]!r})"


def is_panic(error):
    """Whether a package written in Rust has panicked: its exception is no Exception."""
    return type(error).__name__ == "PanicException"


class Problems:
    """Collects what is wrong with a file, grouped by kind, so that one run reports all of it."""

    def __init__(self, path, unit="line"):
        self.path, self.unit = path, unit  # unit: what the file consists of
        self.kinds = {}  # kind -> [fix, count, first details]
        self.count = 0

    def add(self, kind, fix, line, sample_id=None, detail=""):
        entry = self.kinds.setdefault(printable(kind), [printable(fix), 0, []])
        entry[1] += 1
        self.count += 1
        if len(entry[2]) < MAX_LISTED:
            entry[2].append(place(line, sample_id, self.unit) + (f": {printable(detail)}" if detail else ""))
        if self.count >= MAX_PROBLEMS:
            self.raise_if_any(unfinished=True)

    def raise_if_any(self, unfinished=False):
        if not self.count:
            return
        out = [
            f"{self.path}: {self.count} problem{'s' if self.count > 1 else ''}"
            + (" so far; the rest was not read" if unfinished else "")
        ]
        for kind, (fix, count, details) in self.kinds.items():
            out.append(f"  {kind}: {count} {self.unit}{'s' if count > 1 else ''}")
            out += [f"    {d}" for d in details]
            if count > len(details):
                out.append(f"    ... and {count - len(details)} more")
            out.append(f"    fix: {fix}")
        raise UserError("\n".join(out))
