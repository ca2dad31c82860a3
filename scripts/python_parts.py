"""Prints the pinned requirements that this Python lacks, one a line; nothing when all are there.

    python scripts/python_parts.py [--compatible] [--without NAME] REQUIREMENTS_FILE...
    python scripts/python_parts.py --where REQUIREMENTS_FILE...

--compatible, for a Python that is not ours to change, accepts another version of the same series (2.5.2 for 2.4.6,
0.23.2 for 0.23.3); torch stays exact, and of cmake any does, CMakeLists.txt having its own minimum. --without leaves a
name out. --where prints each name instead, a tab, and where its version lies or nothing.
"""

import argparse
import importlib.metadata
import sys


def pins(path):
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            line = line.split("#")[0].strip()
            if line:
                name, version = line.split("==")
                yield name, version


def installed(name):
    """The version of a part, or None. A part without a RECORD is one whose installation was interrupted."""
    try:
        part = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return None
    if part.read_text("RECORD") is None:
        return None
    return part.version.split("+")[0]  # torch's version ends in +cu130


def series(version):
    """What must not change for two versions to go by one interface: up to the first number that is not zero."""
    numbers = version.split(".")
    first = next((i for i, number in enumerate(numbers) if number != "0"), len(numbers) - 1)
    return numbers[: first + 1]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compatible", action="store_true")
    parser.add_argument("--without", default="")
    parser.add_argument("--where", action="store_true")
    parser.add_argument("files", nargs="+")
    args = parser.parse_args()
    wanted = dict(pin for path in args.files for pin in pins(path))
    wanted.pop(args.without, None)
    if args.where:
        for name in wanted:
            version = installed(name)
            folder = importlib.metadata.distribution(name).locate_file("") if version else ""
            print(f"{name}\t{version} in {folder}" if version else f"{name}\t")
        return
    for name, version in wanted.items():
        found = installed(name)
        if found == version:
            continue
        if args.compatible and found and name != "torch" and (name == "cmake" or series(found) == series(version)):
            continue
        print(f"{name}=={version}")


if __name__ == "__main__":
    main()
