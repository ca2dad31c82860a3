"""`moetune bench`: every figure is there, positive, finite and within its spread; the file appears whole, and what
cannot be written is refused before anything is measured.

.venv/bin/python tests/bench/machine_test.py [BUILD_FOLDER]
"""

import datetime
import json
import math
import os
import pathlib
import re
import socket
import subprocess
import sys
import tempfile
import unittest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
BUILD = next((a for a in sys.argv[1:] if pathlib.Path(a).is_dir()), os.environ.get("MOETUNE_BUILD", "build"))
PROGRAM = (REPOSITORY / BUILD).resolve() / "moetune"

# As docs/benchmarks/README.md has them for a CPU: name -> unit.
ALONE = {
    "device_copy": "B/s",
    "host_copy": "B/s",
    "dense.deepseek_q_a": "FLOP/s",
    "dense.deepseek_q_b": "FLOP/s",
    "dense.deepseek_o": "FLOP/s",
    "dense.qwen3_q": "FLOP/s",
    "dense.tiny": "FLOP/s",
    **{
        f"grouped.{name}.rows{rows}": "FLOP/s"
        for name in ("deepseek_gate_up", "qwen3_gate_up", "tiny")
        for rows in (64, 128, 512, 1024)
    },
    **{
        f"attention.{kind}.{way}{length}": "FLOP/s"
        for kind in ("latent", "grouped_query")
        for way in ("forward", "backward")
        for length in ("", ".s256", ".s1024", ".s16384")
    },
    "small_blocks": "1/s",
    "nf4.dequantise": "numbers/s",
    "nf4.dequantise_bytes": "B/s",
    "optimizer.adamw": "numbers/s",
}
TOGETHER = {"exchange.out": "B/s", "exchange.back": "B/s", "all_gather": "B/s", "all_gather.small": "1/s"}
# No CPU that these tests meet comes near, nor falls below: a rate in the wrong unit or of the wrong amount does.
BOUNDS = {"1/s": (0.1, 1e8), "B/s": (1e6, 1e13), "FLOP/s": (1e7, 1e14), "numbers/s": (1e5, 1e12)}


class MachineTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def bench(self, *words, ranks=1, expect=0, timeout=600):
        launch = ["mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-np", str(ranks)]
        command = [*(launch if ranks > 1 else []), PROGRAM, "bench", "--device", "cpu", "--quick", *words]
        done = subprocess.run(
            command, cwd=self.folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=timeout
        )
        self.assertEqual(done.returncode, expect, done.stdout)
        return done.stdout

    def check(self, machine, output, units, ranks):
        self.assertEqual(machine["format"], "moetune-machine-1")
        self.assertEqual((machine["host"], machine["ranks"]), (socket.gethostname(), ranks))
        date = datetime.datetime.strptime(machine["date"], "%Y-%m-%dT%H:%M:%S%z")
        self.assertLess(abs((datetime.datetime.now(datetime.timezone.utc) - date).total_seconds()), 3600)
        self.assertEqual((machine["device"]["kind"], machine["device"]["count"]), ("cpu", 1))
        self.assertGreaterEqual(machine["threads"], 1)
        said = subprocess.run([PROGRAM, "--version"], text=True, capture_output=True, check=True).stdout
        for name in ("torch", "cuda", "nccl", "mpi"):
            self.assertIn(machine["versions"][name], said)
        figures = machine["figures"]
        self.assertEqual({name: figure["unit"] for name, figure in figures.items()}, units)
        for name, figure in figures.items():
            with self.subTest(name):
                least, most = BOUNDS[figure["unit"]]
                self.assertTrue(all(math.isfinite(figure[key]) for key in ("value", "min", "max")))
                self.assertTrue(least < figure["min"] <= figure["value"] <= figure["max"] < most, figure)
                self.assertEqual(figure["repeats"], 3)
                self.assertTrue(figure["shape"])
                self.assertRegex(output, rf"(?m)^{re.escape(name)} +[0-9.]+ [kMGT]?{figure['unit']} ")
        # Of one measurement: numbers of a block of 64 are 36 bytes in NF4, and 4 bytes each in fp32.
        ratio = figures["nf4.dequantise_bytes"]["value"] / figures["nf4.dequantise"]["value"]
        self.assertAlmostEqual(ratio, 36 / 64 + 4, places=2)

    def test_one_rank(self):
        output = self.bench()
        self.assertEqual([path.name for path in self.folder.iterdir()], ["machine.json"])
        self.check(json.loads((self.folder / "machine.json").read_text()), output, ALONE, 1)

    def test_two_ranks(self):
        # A file of an earlier bench is replaced.
        (self.folder / "two.json").write_text('{"format": "moetune-machine-1"}')
        output = self.bench("--to", "two.json", ranks=2)
        self.assertEqual([path.name for path in self.folder.iterdir()], ["two.json"])
        self.check(json.loads((self.folder / "two.json").read_text()), output, ALONE | TOGETHER, 2)

    def test_what_cannot_be_written(self):
        (self.folder / "recipe.yaml").write_text("run: {dir: mine}\n")
        (self.folder / "folder").mkdir()
        for to, why in {
            "missing/machine.json": "No such file or directory",
            "recipe.yaml": "no file of an earlier bench",
            "folder": "no file of an earlier bench",
            "recipe.yaml/machine.json": "Not a directory",
        }.items():
            for ranks in (1, 2):
                with self.subTest(to=to, ranks=ranks):
                    output = self.bench("--to", to, ranks=ranks, expect=2, timeout=60)
                    self.assertIn(why, output)
                    self.assertNotIn("device_copy", output)
        self.assertEqual((self.folder / "recipe.yaml").read_text(), "run: {dir: mine}\n")
        self.assertEqual(sorted(path.name for path in self.folder.iterdir()), ["folder", "recipe.yaml"])
        self.assertIn("--device", self.bench("--device", "tpu", expect=2))


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], "-v"])
