"""Every run leaves a receipt of what was predicted and measured, which `plan --receipts` reads.

.venv/bin/python tests/faults/receipt_test.py [BUILD_FOLDER]
"""

import json
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from tiny_run import TinyRun, program

SMALL = {"train.steps": 12, "checkpoint.every_steps": 0}


class ReceiptTest(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)

    def plan(self, *words, expect=0):
        done = subprocess.run([program(), "plan", *map(str, words)], capture_output=True, text=True, timeout=60)
        self.assertEqual(done.returncode, expect, done.stdout + done.stderr)
        return done.stdout + done.stderr

    def test_what_was_measured_is_the_log_s(self):
        run = TinyRun(self.folder / "a", **SMALL | {"mesh.ep": 2})
        output = run.finish(ranks=2)
        self.assertIn("predicted beside measured", output)
        receipt = json.loads((run.folder / "run" / "receipt.json").read_text())
        steps = run.lines("step")[3:]  # the first three are not counted
        seconds = [step["step_s"] for step in steps]
        measured = receipt["time"]["measured_step_s"]
        self.assertAlmostEqual(measured["median"], statistics.median(seconds))
        self.assertAlmostEqual(measured["min"], min(seconds))
        self.assertAlmostEqual(measured["max"], max(seconds))
        parts = {part["name"]: part for part in receipt["time"]["parts"]}
        # Parts are those of one rank in each step, and make up the step; the log has of each the most of any rank.
        self.assertAlmostEqual(sum(part["measured_s"] for part in parts.values()), measured["median"])
        waits = {
            "exchange": "exchange_s",
            "tensor axis": "tensor_axis_s",
            "weights": "weights_wait_s",
            "stages (bubble)": "stage_wait_s",
            "optimizer": "optimizer_wait_s",
        }
        self.assertEqual(set(parts), {"computing", *waits})
        for name, key in waits.items():
            self.assertLessEqual(parts[name]["measured_s"], statistics.median(step[key] for step in steps) + 1e-9, name)
        most = [step["step_s"] - sum(step[key] for key in waits.values()) for step in steps]
        self.assertGreaterEqual(parts["computing"]["measured_s"], min(most))
        self.assertGreater(parts["computing"]["measured_s"], 0)
        expected = receipt["time"]["predicted_step_s"]
        self.assertAlmostEqual(sum(part["predicted_s"] for part in parts.values()), expected["expected"])
        self.assertLessEqual(expected["low"], expected["expected"])
        self.assertLessEqual(expected["expected"], expected["high"])
        memory = receipt["memory"]
        self.assertEqual([rank["rank"] for rank in memory["ranks"]], [0, 1])
        self.assertEqual(memory["measured_bytes"], max(rank["measured_bytes"] for rank in memory["ranks"]))
        self.assertGreaterEqual(memory["measured_bytes"], max(step["memory_bytes"] for step in steps))
        self.assertEqual(receipt["mesh"]["ep"], 2)

        # A plan of the same run with what the receipt says computes as long as it did.
        listed = self.plan("--receipts", self.folder / "a")
        self.assertIn(str(run.folder / "run"), listed)
        factor = parts["computing"]["measured_s"] / parts["computing"]["predicted_s"]
        corrected = json.loads(self.plan(run.folder / "recipe.yaml", "--receipts", self.folder / "a", "--json"))
        self.assertAlmostEqual(corrected["time"]["computing"], factor)
        self.assertTrue(corrected["time"]["calibrated"])

    def test_a_receipt_that_is_none_is_refused_by_name(self):
        self.assertIn("no receipt.json", self.plan("--receipts", self.folder, expect=2))
        for text in ("{", "[]", "{}", '{"machine": {"device": 3}}'):
            (self.folder / "receipt.json").write_text(text)
            self.assertIn("receipt.json", self.plan("--receipts", self.folder, expect=2))

    def test_a_file_of_another_kind_is_no_machine(self):
        (self.folder / "machine.json").write_text("{}")
        run = TinyRun(self.folder / "a", **SMALL | {"run.machine": str(self.folder / "machine.json")})
        self.assertIn("moetune bench", run.finish(expect=2))
        self.assertFalse((run.folder / "run" / "log.jsonl").exists())


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], "-v"])
