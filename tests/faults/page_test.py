"""`moetune inspect RUN --html FILE`: the page of a run that goes on, was killed, went on and has ended, and of two; a file
that is no page stays as it is.

.venv/bin/python tests/faults/page_test.py [BUILD_FOLDER]
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest
import xml.etree.ElementTree as xml

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from tiny_run import TinyRun, program

HEAD = "<!DOCTYPE html>\n<!-- drawn by moetune -->\n"


class PageTest(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)
        self.file = self.folder / "page.html"

    def inspect(self, *arguments, expect=0, **environment):
        ended = subprocess.run(
            [str(program()), "inspect", *map(str, arguments)],
            cwd=self.folder,
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
        )
        self.assertEqual(ended.returncode, expect, ended.stdout)
        self.assertNotIn("Traceback", ended.stdout)
        return ended.stdout

    def page(self, *runs):
        """What the page of the runs says."""
        self.assertIn(f"{self.file}: page of", self.inspect(*runs, "--html", self.file))
        text = self.file.read_text(encoding="utf-8")
        self.assertTrue(text.startswith(HEAD))
        body = xml.fromstring(text[len(HEAD) :]).find("body")
        return re.sub(r"\s+", " ", " ".join(body.itertext()))

    def refused(self, *arguments, **environment):
        """The error; nothing is left where the page should have been, nor beside it."""
        before = {path: path.read_bytes() for path in self.folder.iterdir() if path.is_file()}
        said = self.inspect(*arguments, expect=2, **environment)
        self.assertEqual({path: path.read_bytes() for path in self.folder.iterdir() if path.is_file()}, before)
        return said

    def test_a_run_through_its_life(self):
        run = TinyRun(self.folder / "a", **{"train.steps": 4000, "data.eval": str(self.folder / "a" / "train.jsonl")})
        run.values |= {"eval.every_steps": 10, "eval.max_sequences": 4}
        process = run.start()
        run.wait_for_step(25, process)
        said = self.page(self.folder / "a" / "run")
        self.assertIn(f"process {process.pid} on host", said)
        self.assertIn("of 4,000", said)
        process.kill()
        process.communicate()
        self.assertIn("not ended: killed, or stopped", self.page(self.folder / "a" / "run"))

        last = run.lines("step")[-1]["step"]
        run.values |= {"eval.every_steps": 5}
        process = run.start(resume=True)
        run.wait_for_step(last + 5, process)
        process.terminate()
        process.communicate()
        self.assertEqual(process.returncode, 143)
        said = self.page(self.folder / "a" / "run")
        self.assertIn("stopped by signal 15", said)
        self.assertRegex(said, r"resumed from step \d+; changed: eval\.every_steps 10 → 5")
        steps, evals = run.lines("step"), run.lines("eval")
        self.assertIn(f"{len(evals) + len(run.lines('save'))} evaluations and saves", said)
        for number in (steps[-1]["loss"], evals[-1]["loss"], min(line["loss"] for line in evals)):
            self.assertIn(f"{number:.3f}".rstrip("0").rstrip("."), said)
        tokens = float(re.search(r"([\d.]+) k trained on", said)[1])
        self.assertAlmostEqual(tokens, sum(line["tokens"] for line in steps) / 1000, delta=0.01 * tokens)
        self.assertIn("MoE layer", self.file.read_text(encoding="utf-8"))

    def test_two_runs(self):
        few = {"train.steps": 6, "checkpoint.every_steps": 6}
        for name, changes in (("a", {}), ("b", {"train.optimizer.lr": 0.002, "adapter.rank": 2})):
            TinyRun(self.folder / name, **few, **changes).finish()
        said = self.page("a/run", "b/run")
        self.assertIn("train.optimizer.lr 0.01 0.002", said)
        self.assertIn("adapter.rank 4 2", said)
        self.assertNotIn("adapter.alpha 8", said.split("All of")[0])

        run = self.folder / "a" / "run"
        self.assertIn("is beside itself", self.refused("a/run", run, "--html", "two.html"))
        self.assertIn("goes with --mesh", self.refused("a/run", "b/run"))
        self.assertIn("is no folder", self.refused("a/run", "nowhere", "--html", "two.html"))
        self.assertIn("has no log.jsonl", self.refused(run / "checkpoints", "--html", "two.html"))
        self.assertIn("cannot be started", self.refused(run, "--html", "two.html", MOETUNE_PYTHON="/dev/null"))
        self.inspect(run, "--html", self.folder / "no folder" / "two.html", expect=2)
        recipe = self.folder / "a" / "recipe.yaml"
        before = recipe.read_bytes()
        self.assertIn("is no page of an earlier call", self.refused(run, "--html", recipe))
        self.assertEqual(recipe.read_bytes(), before)

        with open(run / "log.jsonl", "a") as log:
            log.write('{"kind":"step","step":7,"lo')
        self.assertIn("the last line was cut off and is left out", self.page(run))
        (run / "log.jsonl").write_bytes(b"\xff\x00 no log\n" * 3)
        self.assertIn("3 damaged lines are left out", self.page(run))


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], "-v", *(a for a in sys.argv[1:] if not pathlib.Path(a).is_dir())])
