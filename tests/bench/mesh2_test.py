"""Rehearsed rows of scripts/bench/mesh2: the bytes that a step moves equal their formulas, and calls share the work.

.venv/bin/python tests/bench/mesh2_test.py
"""

import json
import os
import pathlib
import subprocess
import tempfile
import unittest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
PROGRAM = pathlib.Path(os.environ.get("MOETUNE_BUILD", REPOSITORY / "build")).resolve() / "moetune"


class Mesh2Test(unittest.TestCase):
    def call(self, out, *options):
        command = [
            REPOSITORY / "scripts/bench/mesh2",
            "--rehearse",
            "--program",
            PROGRAM,
            "--tokens",
            "8192",
            "--steps",
            "3",
            "--out",
            out,
            *options,
        ]
        done = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=600)
        return (
            done.returncode,
            done.stdout,
            [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else [],
        )

    def test_rows(self):
        with tempfile.TemporaryDirectory() as folder:
            out = pathlib.Path(folder) / "rows.jsonl"
            code, output, rows = self.call(out, "--deadline", "0", "--only", "tp2")
            self.assertEqual((code, rows), (0, []), output)
            self.assertIn("Out of time, not started: tp2 with 64 tokens a GPU", output)

            code, output, rows = self.call(out, "--only", "ep2,tp2,dp2-sharded-host")
            self.assertEqual(code, 0, output)
            by_layout = {row["layout"]: row for row in rows}
            self.assertEqual(list(by_layout), ["ep2", "tp2", "dp2-sharded-host"])
            for name, moves in {
                "tp2": ["tensor_axis_sent_bytes"],
                "dp2-sharded-host": ["weights_copied_bytes", "weights_gathered_bytes"],
            }.items():
                for key in [
                    "weights_copied_bytes",
                    "weights_gathered_bytes",
                    "tensor_axis_sent_bytes",
                    "exchange_sent_bytes",
                ]:
                    self.assertEqual(by_layout[name][key], by_layout[name]["planned_" + key], f"{name}: {key}")
                    self.assertEqual(by_layout[name][key] > 0, key in moves, f"{name}: {key}")
            # Each token goes to the other rank unless all its groups are here; the busiest rank returns more than the
            # mean.
            self.assertAlmostEqual(
                by_layout["ep2"]["exchange_sent_bytes"] / by_layout["ep2"]["planned_exchange_sent_bytes"],
                1.0,
                delta=0.1,
            )

            before = out.read_text()
            code, output, _ = self.call(out, "--only", "tp2")
            self.assertEqual((code, out.read_text()), (0, before), output)
            self.assertIn("| tp2: `mesh.tp=2` | 64 |", output)

    def test_failed_row(self):
        with tempfile.TemporaryDirectory() as folder:
            code, output, rows = self.call(pathlib.Path(folder) / "rows.jsonl", "--only", "one", "train.clip=-1")
            self.assertEqual((code, rows), (1, []), output)
            self.assertRegex(output, r"FAILED one: one GPU with 64 tokens a GPU: exit code 2: .*train\.clip")


if __name__ == "__main__":
    unittest.main()
