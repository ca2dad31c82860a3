"""Proves that what the documents name exists: every path of the project in README.md, docs/ and tests/ (in backquotes or
as a link), and every `Type::member`. Prints each that does not, and exits 1.

    python3 scripts/check_docs.py [ROOT]
"""

import pathlib
import re
import sys

PLACES = ("parallel", "lora", "moe", "trainer", "recipes", "scripts", "tests", "docs", "cmake")
CODE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)")
PATH = re.compile(rf"(?<![\w/])(?:{'|'.join(PLACES)})/[\w./*-]*")
MEMBER = re.compile(r"\b([A-Z]\w+)::(\w+)")
PLACEHOLDER = re.compile(r"NAME|FILE|\*")


def documents(root):
    return [root / "README.md", *sorted((root / "docs").rglob("*.md")), *sorted((root / "tests").rglob("*.md"))]


def exists(root, path):
    """As a file, a folder, or a unit without its ending."""
    path = path.rstrip("./")
    return (root / path).exists() or any((root / (path + ending)).exists() for ending in (".h", ".cpp", ".py"))


def mistakes_in(document, root, words):
    name = document.relative_to(root).as_posix()
    for number, line in enumerate(document.read_text(encoding="utf-8").splitlines(), 1):
        where = f"{name}:{number}"
        for code in CODE.findall(line):
            for path in PATH.findall(code):
                if not PLACEHOLDER.search(path) and not exists(root, path):
                    yield f"{where}: there is no {path}"
            for type_name, member in MEMBER.findall(code):
                if not {type_name, member} <= words:
                    yield f"{where}: the code has no {type_name}::{member}"
        for target in LINK.findall(line):
            if not target.startswith(("http:", "https:", "mailto:")) and not (document.parent / target).exists():
                yield f"{where}: the link leads to {target}, which is not there"


def main():
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent.parent).resolve()
    words = set()
    for folder in ("parallel", "lora", "moe", "trainer"):
        for path in (root / folder).rglob("*"):
            if path.suffix in {".h", ".cpp", ".cu"}:
                words.update(re.findall(r"\w+", path.read_text(encoding="utf-8")))
    found = documents(root)
    mistakes = [mistake for document in found for mistake in mistakes_in(document, root, words)]
    for mistake in mistakes:
        print(mistake)
    print(f"{len(found)} documents, {len(mistakes)} names of what is not there")
    sys.exit(1 if mistakes else 0)


if __name__ == "__main__":
    main()
