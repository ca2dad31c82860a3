"""Draws a page: one HTML file that holds all it shows, on standard output.

    python scripts/draw run RUN [OTHER] [--holder RUN TEXT] > page.html

Python's standard library is all that it needs. Exit code 0, or 2 for a mistake in options or files, whose text stands on
standard error.
"""

import sys
import traceback
from pathlib import Path

# `python scripts/draw` puts this folder on the path; the package itself is found from its parent.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from draw import run_page  # noqa: E402
from draw.errors import UserError, printable  # noqa: E402

PAGES = {"run": run_page.draw}


def main(arguments):
    if not arguments or arguments[0] not in PAGES:
        raise UserError(f"usage: python scripts/draw {'|'.join(PAGES)} ...")
    # Bytes, so that no locale decides what a page may hold.
    sys.stdout.buffer.write(PAGES[arguments[0]](arguments[1:]).encode("utf-8"))
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(print(printable(str(error)), file=sys.stderr) or 2)
    except Exception as error:
        at = traceback.extract_tb(error.__traceback__)[-1]
        what = f"a defect of moetune: {type(error).__name__} at {at.filename}:{at.lineno}: {error}"
        sys.exit(print(printable(what), file=sys.stderr) or 1)
