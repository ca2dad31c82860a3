"""moetune evaluate says what a run's log says of the same step, on any number of ranks, and of a model what its first
evaluation says.

.venv/bin/python tests/faults/evaluate_test.py [BUILD_FOLDER]
"""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from tiny_run import TinyRun, program


class EvaluateTest(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)

    def evaluate(self, *arguments, ranks=1, expect=0):
        launch = ["mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-np", str(ranks)]
        done = subprocess.run(
            [*(launch if ranks > 1 else []), str(program()), "evaluate", *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=200,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        self.assertEqual(done.returncode, expect, done.stdout + done.stderr)
        if expect != 0:
            return done.stderr
        found = re.search(r"loss (\S+)  target_tokens (\d+)  perplexity (\S+)", done.stdout)
        return float(found[1]), int(found[2]), float(found[3])

    def test_equals_the_evaluation_of_the_run(self):
        data = self.folder / "heldout.jsonl"
        run = TinyRun(self.folder / "a", **{"train.steps": 10, "eval.every_steps": 5, "eval.at_start": "true"})
        lines = (run.folder / "train.jsonl").read_text().splitlines()
        data.write_text("\n".join(lines[:23]) + "\n")
        run.values["data.eval"] = str(data)
        run.finish()
        logged = {line["step"]: (line["loss"], line["target_tokens"]) for line in run.lines("eval")}
        self.assertEqual(set(logged), {0, 5, 10})
        self.assertNotAlmostEqual(logged[0][0], logged[10][0], places=3)
        to = self.folder / "losses.jsonl"
        loss, targets, perplexity = self.evaluate(run.folder / "run", data, "--to", to)
        self.assertAlmostEqual(loss, logged[10][0], delta=1e-6)
        self.assertEqual(targets, logged[10][1])
        self.assertAlmostEqual(perplexity / 2.718281828459045**loss, 1.0, delta=1e-4)
        documents = [json.loads(line) for line in to.read_text().splitlines()]
        self.assertEqual([one["document"] for one in documents], list(range(23)))
        self.assertEqual(sum(one["target_tokens"] for one in documents), targets)
        total = sum(one["loss"] * one["target_tokens"] for one in documents)
        self.assertAlmostEqual(total / targets, loss, delta=1e-5)
        before = data.read_text()
        told = self.evaluate(run.folder / "run", data, "--to", data, expect=2)
        self.assertIn(f"--to {data}: is there already, and holds no losses of an earlier evaluation", told)
        self.assertEqual(data.read_text(), before)
        to.write_text('{"document": 0, "loss": 1.0, "target_tokens": 1}\n')
        self.evaluate(run.folder / "run", data, "--to", to)
        self.assertEqual([json.loads(line) for line in to.read_text().splitlines()], documents)
        # Two ranks take other documents, and experts of their own; the checkpoint in the middle; other weights.
        many = self.folder / "many.jsonl"
        other, _, _ = self.evaluate(run.folder / "run", data, "model.base=bf16")
        self.assertNotAlmostEqual(other, loss, places=4)
        for expected, *mesh in ((loss, "mesh.ep=2"), (loss, "mesh.dp=2"), (other, "mesh.tp=2", "model.base=bf16")):
            found = self.evaluate(run.folder / "run", data, *mesh, "--to", many, ranks=2)
            self.assertAlmostEqual(found[0], expected, delta=1e-5)
            for one, again in zip(documents, map(json.loads, many.read_text().splitlines()), strict=True):
                self.assertEqual((one["document"], one["target_tokens"]), (again["document"], again["target_tokens"]))
                if expected == loss:
                    self.assertAlmostEqual(one["loss"], again["loss"], delta=1e-4)
        # A model by itself, as the run held it, is the run before its first step.
        held = ["model.base=nf4", "model.compute=fp32", "model.weights=random", "data.max_tokens=64", "run.device=cpu"]
        self.assertAlmostEqual(self.evaluate(run.folder / "model", data, *held)[0], logged[0][0], delta=1e-6)

    def test_what_is_neither_run_nor_model_is_refused(self):
        data = self.folder / "data.jsonl"
        data.write_text('{"input_ids": [1, 2], "labels": [1, 2]}\n')
        self.assertIn("RUN is a run folder", self.evaluate(self.folder / "none", data, expect=2))


if __name__ == "__main__":
    program()
    unittest.main(argv=[sys.argv[0]] + [a for a in sys.argv[1:] if not pathlib.Path(a).is_dir()])
