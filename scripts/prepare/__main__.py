import sys
from pathlib import Path

# `python scripts/prepare` puts this folder on the path; the package itself is found from its parent.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

try:
    from prepare.cli import main
except ModuleNotFoundError as error:
    sys.exit(
        print(
            f"error: {sys.executable} has no module {error.name!r}, which data preparation needs\n"
            "  fix: scripts/setup, or name a Python that has the parts of scripts/requirements.txt in MOETUNE_PYTHON",
            file=sys.stderr,
        )
        or 2
    )

sys.exit(main())
