"""Runs moetune_parity on a CONFIG and reads what it wrote.

program.choose_build()                      # once per test file: takes the build folder off the command line
tensors = program.run(config)               # starts dp * ep * tp ranks under mpirun, or one without it
"""

import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile

from safetensors.torch import load_file

TIMEOUT_S = 300
build = None


def choose_build():
    """The first argument, or MOETUNE_BUILD, or ./build; the argument is removed, the rest is unittest's."""
    global build
    given = sys.argv.pop(1) if len(sys.argv) > 1 and pathlib.Path(sys.argv[1]).is_dir() else None
    build = pathlib.Path(given or os.environ.get("MOETUNE_BUILD", "build")).resolve()
    if not (build / "moetune_parity").exists():
        sys.exit(f"{build}/moetune_parity does not exist: give the build folder as first argument or in MOETUNE_BUILD")


def environment():
    return os.environ | {"OMP_NUM_THREADS": "1"}


def run(config):
    """{name: tensor} that moetune_parity wrote for `config` (README.md says which); raises with its output when it
    fails."""
    ranks = math.prod(config["mesh"].values())
    launch = (
        ["mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-np", str(ranks)]
        if ranks > 1
        else []
    )
    with tempfile.TemporaryDirectory() as folder:
        file, out = pathlib.Path(folder, "config.json"), pathlib.Path(folder, "out.safetensors")
        file.write_text(
            json.dumps({"device": os.environ.get("MOETUNE_TEST_DEVICE", "cpu")} | config | {"out": str(out)})
        )
        done = subprocess.run(
            [*launch, str(build / "moetune_parity"), str(file)],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            env=environment(),
        )
        if done.returncode != 0:
            said = (done.stdout + done.stderr)[-4000:]
            raise RuntimeError(f"moetune_parity on {ranks} ranks ended with {done.returncode}:\n{said}")
        return load_file(out)
