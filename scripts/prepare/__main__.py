import sys
from pathlib import Path

# `python scripts/prepare` puts this folder on the path; the package itself is found from its parent.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from prepare.cli import main  # noqa: E402

sys.exit(main())
