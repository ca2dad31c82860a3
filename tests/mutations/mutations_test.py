"""Contract: known defects, put back into the program, are caught. Each by what is named for it, and not by chance: the
program without the defect passes the same command.

    .venv/bin/python tests/mutations/mutations_test.py [BUILD_FOLDER]
"""

import functools
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "faults"))
from mutations import MUTATIONS
from tiny_run import TinyRun, program

FOLDER = pathlib.Path(tempfile.mkdtemp())
unittest.addModuleCleanup(shutil.rmtree, FOLDER)


@functools.cache
def done(path, command):
    """Exit code and output of a program on a command."""
    run = TinyRun(pathlib.Path(tempfile.mkdtemp(dir=FOLDER)), **dict(command.recipe))
    _, *arguments = run.arguments("verify-layout" if command.layout else "train")
    if command.layout:
        arguments += ["--layout", command.layout]
    launch = ["mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-np", str(command.ranks)]
    ended = subprocess.run(
        [*launch, str(path), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    return ended.returncode, ended.stdout


class MutationsTest(unittest.TestCase):
    def test_each_is_caught(self):
        for mutation in MUTATIONS:
            with self.subTest(mutation.name):
                code, output = done(program(), mutation.command)
                self.assertEqual(code, 0, f"without the defect:\n{output}")
                code, output = done(program().parent / "mutants" / mutation.name, mutation.command)
                self.assertEqual(code, 1, f"with {mutation.name}:\n{output}")
                self.assertRegex(output, mutation.says)


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], "-v"])
