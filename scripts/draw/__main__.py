"""Draws a page, one HTML file that holds all it shows, or a picture, one SVG file, on standard output.

    python scripts/draw run RUN [OTHER] [--holder RUN TEXT] > page.html
    python scripts/draw plan PLAN.json > page.html
    python scripts/draw mesh|layer|weights MESH.json > picture.svg
    python scripts/draw stages PLAN.json > picture.svg

Python's standard library is all that it needs. Exit code 0, or 2 for a mistake in options or files, whose text stands
on standard error.
"""

import sys
import traceback
from pathlib import Path

# `python scripts/draw` puts this folder on the path; the package itself is found from its parent.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from draw import layer_picture, mesh_picture, plan_page, run_page, stages_picture, weights_picture  # noqa: E402
from draw.errors import UserError, printable  # noqa: E402

DRAWINGS = {
    "plan": plan_page.draw,
    "run": run_page.draw,
    "mesh": mesh_picture.draw,
    "layer": layer_picture.draw,
    "weights": weights_picture.draw,
    "stages": stages_picture.draw,
}


def main(arguments):
    if not arguments or arguments[0] not in DRAWINGS:
        raise UserError(f"usage: python scripts/draw {'|'.join(DRAWINGS)} ...")
    # Bytes, so that no locale decides what may be drawn.
    sys.stdout.buffer.write(DRAWINGS[arguments[0]](arguments[1:]).encode("utf-8"))
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
