"""recipe.yaml of a run folder as {key: Value}: one line a value, as the program wrote it (trainer/recipe/recipe_dump.h).

    train:
      steps: 600                  # recipes/quickstart-base.yaml:15

is {"train.steps": Value("600", "recipes/quickstart-base.yaml:15")}. What is no such line is passed over: the page shows
the text as it is too.
"""

import re
from dataclasses import dataclass

LINE = re.compile(r"(?P<indent> *)(?P<key>[A-Za-z_]\w*):(?: (?P<value>.*))?")


@dataclass(frozen=True)
class Value:
    text: str
    origin: str = ""

    @property
    def is_default(self):
        return self.origin.startswith("default")


def values_of(text):
    found, sections = {}, []
    for line in text.splitlines():
        match = LINE.fullmatch(line)
        if not match:
            continue
        del sections[len(match["indent"]) // 2 :]
        if not (match["value"] or "").strip():
            sections.append(match["key"])
            continue
        value, _, origin = match["value"].rpartition("  # ")
        if not value:
            value, origin = origin, ""
        found[".".join([*sections, match["key"]])] = Value(value.strip(), origin.strip())
    return found


def without_head(text):
    """The text behind the comments that it begins with."""
    lines = text.splitlines(keepends=True)
    while lines and lines[0].startswith("#"):
        lines.pop(0)
    return "".join(lines)
