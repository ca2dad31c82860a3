"""Writes what docs/planner.md has from the planner: the parts between its markers and docs/pictures/scaling.svg.

    scripts/planner_page            # makes them anew
    scripts/planner_page --check    # exit 1 where the page has something else

A part stands between `<!-- NAME: written by scripts/planner_page -->` and `<!-- end -->`.
"""

import argparse
import pathlib
import re
import sys

# `python scripts/planner` puts this folder on the path; the package itself is found from its parent.
sys.path[0] = str(pathlib.Path(__file__).resolve().parent.parent)

from planner import documents, mission, scaling, scaling_picture  # noqa: E402
from planner.asking import Asking  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGE, PICTURE = ROOT / "docs" / "planner.md", ROOT / "docs" / "pictures" / "scaling.svg"


class Parts:
    """The page's parts by name, each made when it is asked for."""

    def __init__(self, asking):
        self.asking = asking
        self.sizes = {}

    def scaled(self, how):
        if how not in self.sizes:
            self.sizes[how] = {recipe: how(self.asking, recipe) for recipe in scaling.RECIPES}
        return self.sizes[how]

    def made(self, name):
        if name == "mission":
            return mission.mission(self.asking)
        if name == "published":
            return mission.published(self.asking)
        if name == "documents":
            return documents.table(self.asking)
        how = {"weak": scaling.weak, "strong": scaling.strong}[name]
        return scaling.table(self.scaled(how), scaling.SHOWN[name])

    def picture(self):
        return scaling_picture.picture(self.scaled(scaling.weak), self.scaled(scaling.strong))


NAMES = ("mission", "published", "documents", "weak", "strong")


def _with_part(page, name, content):
    begin = f"<!-- {name}: written by scripts/planner_page -->\n"
    pattern = re.compile(re.escape(begin) + ".*?<!-- end -->\n", re.DOTALL)
    if not pattern.search(page):
        sys.exit(f"{PAGE.relative_to(ROOT)}: there is no {begin.strip()} ... <!-- end -->")
    return pattern.sub(lambda _: f"{begin}{content}<!-- end -->\n", page)


def main():
    parser = argparse.ArgumentParser(prog="scripts/planner_page")
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 where something differs")
    parser.add_argument("--program", default=ROOT / "build" / "moetune", type=pathlib.Path)
    parser.add_argument("--only", choices=NAMES, action="append", help="this part alone; may be given several times")
    options = parser.parse_args()
    if not options.program.exists():
        sys.exit(f"{options.program}: is not there; scripts/build makes it")
    names = options.only or NAMES
    parts = Parts(Asking(options.program.resolve()))
    page = PAGE.read_text(encoding="utf-8")
    written = page
    for name in names:
        written = _with_part(written, name, parts.made(name))
    wanted = {PAGE: written}
    if {"weak", "strong"} <= set(names):
        wanted[PICTURE] = parts.picture()
    differing = [path for path, text in wanted.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    for path in differing:
        if options.check:
            print(f"{path.relative_to(ROOT)}: is not what scripts/planner_page makes of it now", file=sys.stderr)
        else:
            path.write_text(wanted[path], encoding="utf-8")
            print(f"{path.relative_to(ROOT)}: written")
    sys.exit(1 if options.check and differing else 0)


if __name__ == "__main__":
    main()
