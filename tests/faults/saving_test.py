"""Checkpoints written while training goes on: the bits of those written at once, whole however the run ends, and nothing
lost where the disk fails.

.venv/bin/python tests/faults/saving_test.py [BUILD_FOLDER]
"""

import json
import os
import pathlib
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from tiny_run import TinyRun, program

# The weights themselves train: states of more than a megabyte, in a few files.
FULL = {"adapter": "none", "model.base": "bf16", "checkpoint.async": "true"}


def full_run(folder, **changes):
    run = TinyRun(folder, **FULL | changes)
    for key in [key for key in run.values if key.startswith("adapter.")]:
        del run.values[key]
    return run


class SavingTest(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)

    def assert_whole(self, run, steps):
        """These checkpoints alone are there, and inspect, which reads every file, finds them whole."""
        self.assertEqual([int(path.name[5:]) for path in run.checkpoints()], steps)
        for path in run.checkpoints():
            subprocess.run([program(), "inspect", str(path)], check=True, capture_output=True)

    def test_beside_training_is_as_at_once(self):
        """On two ranks, saved at every step: each save waits for the one before, and all have the same bits."""
        settings = {"mesh.ep": 2, "train.steps": 12, "checkpoint.every_steps": 1, "checkpoint.keep_last": 12}
        beside = full_run(self.folder / "beside", **settings)
        at_once = full_run(self.folder / "at_once", **settings, **{"checkpoint.async": "false"})
        output = beside.finish(2)
        self.assertRegex(output, r"checkpoint of step 3: whole after .* s, of which training stood still for")
        self.assertNotIn("whole after", at_once.finish(2))
        self.assertEqual(beside.losses(), at_once.losses())
        self.assert_whole(beside, list(range(1, 13)))
        for one, other in zip(beside.checkpoints(), at_once.checkpoints()):
            for file in one.glob("*.safetensors"):
                self.assertEqual(file.read_bytes(), (other / file.name).read_bytes(), file)
        saves = beside.lines("save")
        self.assertEqual([line["step"] for line in saves], list(range(1, 13)))
        for line, following in zip(saves, saves[1:]):
            self.assertLessEqual(line["whole_at_s"], following["begun_at_s"])
            self.assertLessEqual(line["step"], line["whole_step"])
            self.assertGreater(line["save_s"], 0.0)
        self.assertTrue(all(line["whole_step"] == line["step"] for line in at_once.lines("save")))
        # Resumed from the middle, where the later ones are gone.
        for path in beside.checkpoints()[5:]:
            shutil.rmtree(path)
        beside.finish(2, resume=True)
        self.assertEqual(beside.state(), at_once.state())

    def test_it_goes_on_under_steps(self):
        """Many weights and few tokens: a checkpoint becomes whole steps later; the last one is written at once."""
        few = {"train.batch": 2, "data.max_tokens": 32, "mesh.ep": 2}
        run = full_run(self.folder / "run", **few, **{"train.steps": 30, "checkpoint.every_steps": 10})
        config = run.folder / "model" / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"intermediate_size": 16384}))
        self.assertIn("checkpoint on its way", run.finish(2))
        self.assert_whole(run, [20, 30])
        saves = run.lines("save")
        self.assertTrue(all(line["whole_step"] > line["step"] for line in saves[:-1]), saves)
        self.assertEqual(saves[-1]["whole_step"], 30)

    def test_small_adapters_are_written_at_once(self):
        run = TinyRun(self.folder / "small", **{"train.steps": 4, "checkpoint.every_steps": 2})
        self.assertNotIn("checkpoint on its way", run.finish())
        self.assertEqual([line["whole_step"] for line in run.lines("save")], [2, 4])

    def test_a_signal_while_one_is_written(self):
        """SIGTERM and SIGINT: what is on its way becomes whole, and the last step's is too."""
        for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
            with self.subTest(number):
                run = full_run(
                    self.folder / str(number),
                    **{"train.steps": 100000, "checkpoint.every_steps": 5, "checkpoint.keep_last": 9},
                )
                process = run.start()
                run.wait_for_step(6, process)
                checkpoints = run.folder / "run" / "checkpoints"
                while not list(checkpoints.glob(".saving-*")) and process.poll() is None:
                    time.sleep(0.0005)
                process.send_signal(number)
                output, _ = process.communicate(timeout=60)
                self.assertEqual(process.returncode, code, output)
                last = max(run.losses())
                begun = list(range(5, last, 5))
                self.assert_whole(run, (begun + [last])[-9:])

    def test_a_loss_that_is_not_finite(self):
        """Weights grow a hundredfold a step until one fails; what the step before left is on its way, and becomes
        whole."""
        changes = {"train.optimizer.lr": 10, "train.optimizer.weight_decay": 10, "train.schedule.kind": "constant"}
        run = full_run(self.folder / "infinite", **changes, **{"checkpoint.every_steps": 1, "checkpoint.keep_last": 1})
        output = run.finish(expect=4)
        failed = re.search(r"error: step (\d+): the (loss|gradient)", output)
        self.assertIsNotNone(failed, output)
        self.assert_whole(run, [int(failed[1]) - 1])

    def test_a_disk_that_is_full(self):
        """Files of more than 200 kB are refused from some step on: exit code 2 with the place, the checkpoint before
        stays, and resumed the run ends as one that nothing disturbed."""
        settings = {"train.steps": 40, "checkpoint.every_steps": 10, "checkpoint.keep_last": 1}
        whole = full_run(self.folder / "whole", **settings)
        whole.finish()
        run = full_run(self.folder / "full", **settings)
        process = run.start(before_start=lambda: signal.signal(signal.SIGXFSZ, signal.SIG_IGN))
        while not run.checkpoints() and process.poll() is None:
            time.sleep(0.0005)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
        output, _ = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 2, output)
        self.assertRegex(output, r"error: .*\.saving-step-\d+.*/state-00000-of-00001\.safetensors.*File too large")
        steps = [int(path.name[5:]) for path in run.checkpoints()]
        self.assertEqual(len(steps), 1)
        self.assertLess(steps[0], 40)
        self.assert_whole(run, steps)
        run.finish(resume=True)
        self.assertEqual(run.losses(), whole.losses())
        self.assertEqual(run.state(), whole.state())
        self.assertFalse(list((run.folder / "run" / "checkpoints").glob(".saving-*")))


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], "-v", *(a for a in sys.argv[1:] if not os.path.isdir(a))])
