"""The programs that measure moetune beside transformers + PEFT run, and on the CPU both sides train alike.

.venv/bin/python tests/bench/peer_test.py
"""

import os
import pathlib
import re
import subprocess
import sys
import unittest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
PROGRAM = pathlib.Path(os.environ.get("MOETUNE_BUILD", REPOSITORY / "build")).resolve() / "moetune"


class PeerTest(unittest.TestCase):
    def call(self, name, *options):
        command = [sys.executable, REPOSITORY / "scripts/bench" / name, "--program", PROGRAM, *options]
        done = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=600)
        return done.returncode, done.stdout

    def test_cpu(self):
        code, output = self.call("cpu_peer.py", "--quick")
        if code == 77:
            self.skipTest(output)
        self.assertEqual(code, 0, output)
        # B begins at zero, so from the second step on losses tell of updates.
        steps = re.findall(r"^ +\d+ +(\d+) +\d+ +(\d\.\d+) +(\d\.\d+) +(\S+)$", output, re.M)
        self.assertEqual(len(steps), 4, output)
        for tokens, ours, peer, difference in steps:
            self.assertGreater(int(tokens), 1800)
            self.assertLess(float(difference), 1e-5, output)
        self.assertLess(float(steps[-1][1]), float(steps[0][1]) - 0.5, output)

    def test_gpu_rehearsed(self):
        for options in (
            ["--model", "deepseek-v3"],
            ["--model", "qwen3-30b-a3b"],
            ["--model", "qwen3-30b-a3b", "--full", "--num-experts", "8"],
        ):
            code, output = self.call("gpu_peer.py", "--rehearse", "--repeats", "1", *options)
            self.assertEqual(code, 0, output)
            self.assertRegex(output, r"\nratio of medians \d", output)


if __name__ == "__main__":
    unittest.main()
