"""Resume is exact: whatever ended a run, going on gives the bits of the run that nothing ended (design contract 5).

.venv/bin/python tests/faults/resume_test.py [BUILD_FOLDER]
"""

import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from safetensors.numpy import load_file, save_file

from tiny_run import TinyRun, program


class ResumeTest(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)

    def whole(self, ranks=1, **changes):
        run = TinyRun(self.folder / "whole", **changes)
        run.finish(ranks)
        return run

    def assert_same(self, resumed, whole):
        self.assertEqual(resumed.losses(), whole.losses())
        self.assertGreater(len(whole.state()), 20)
        self.assertEqual(resumed.state(), whole.state())

    def test_killed_rank(self):
        """SIGKILL of one rank in the middle; the others end, --resume gives the uninterrupted run bit by bit."""
        mesh = {"mesh.ep": 2, "train.steps": 60}
        whole = self.whole(2, **mesh)
        run = TinyRun(self.folder / "killed", **mesh)
        process = run.start(2)
        run.wait_for_step(23, process)
        children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
        self.assertEqual(len(children), 2)
        os.kill(int(random.Random(1).choice(children)), signal.SIGKILL)
        process.communicate(timeout=60)
        self.assertNotEqual(process.returncode, 0)
        self.assertLess(max(run.losses()), 60, "the run ended before it was killed")
        run.finish(2, resume=True)
        self.assert_same(run, whole)

    def test_killed_stage(self):
        """The same of a stage of a pipeline; it goes on bit by bit on the same one, cut elsewhere and as one stage to
        rounding."""
        mesh = {"mesh.pp": 2, "mesh.pp_layers": "[2,1]", "mesh.pp_groups": 3}
        mesh |= {"train.steps": 30, "router.bias": "update"}
        whole = self.whole(2, **mesh)
        run = TinyRun(self.folder / "killed", **mesh)
        process = run.start(2)
        run.wait_for_step(13, process)
        children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
        os.kill(int(children[1]), signal.SIGKILL)
        process.communicate(timeout=60)
        self.assertNotEqual(process.returncode, 0)
        others = (
            ("one stage", 1, {"mesh.pp": 1, "mesh.pp_layers": "[]", "mesh.pp_groups": 1}),
            ("another cut", 2, {"mesh.pp_layers": "[1,2]"}),
        )
        for name, *_ in others:
            shutil.copytree(run.folder, self.folder / name)
        run.finish(2, resume=True)
        self.assert_same(run, whole)
        for name, ranks, changes in others:
            other = TinyRun(self.folder / name, **mesh | changes)
            other.finish(ranks, resume=True)
            self.assertEqual(other.losses().keys(), whole.losses().keys())
            for step, loss in whole.losses().items():
                self.assertAlmostEqual(other.losses()[step], loss, delta=2e-3, msg=name)

    def test_sigterm_saves_and_leaves(self):
        whole = self.whole(**{"train.steps": 60})
        run = TinyRun(self.folder / "stopped", **{"train.steps": 60, "checkpoint.every_steps": 0})
        process = run.start()
        run.wait_for_step(15, process)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
        self.assertEqual(process.returncode, 143)
        stopped_at = max(run.losses())
        self.assertLess(stopped_at, 60)
        self.assertEqual(run.checkpoints()[-1].name, f"step-{stopped_at:08d}")
        run.finish(resume=True)
        self.assert_same(run, whole)

    def test_sigusr1_saves_and_goes_on(self):
        run = TinyRun(
            self.folder / "saved", **{"train.steps": 60, "checkpoint.every_steps": 0, "checkpoint.keep_last": 9}
        )
        process = run.start()
        run.wait_for_step(10, process)
        process.send_signal(signal.SIGUSR1)
        output, _ = process.communicate(timeout=120)
        self.assertEqual(process.returncode, 0, output)
        self.assertEqual(len(run.checkpoints()), 2)
        self.assertEqual(max(run.losses()), 60)

    def test_damaged_newest_checkpoint_is_passed_over(self):
        """One flipped byte in the newest checkpoint: it is named, the one before is used, and the end is the same."""
        whole = self.whole()
        run = TinyRun(self.folder / "damaged")
        run.finish()
        state = next(run.checkpoints()[-1].glob("*.safetensors"))
        data = bytearray(state.read_bytes())
        data[-5] ^= 1
        state.write_bytes(data)
        output = run.finish(resume=True)
        self.assertIn("damaged", output)
        self.assertIn("step-00000020", output)
        self.assert_same(run, whole)

    def test_changed_data_is_refused(self):
        run = TinyRun(self.folder / "changed")
        run.finish()
        lines = pathlib.Path(run.values["data.train"]).read_text().splitlines()
        pathlib.Path(run.values["data.train"]).write_text("\n".join(lines[1:]) + "\n")
        process = run.start(resume=True)
        output, _ = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 2, output)
        self.assertIn("training data", output)

    def test_run_folder_in_use_is_refused(self):
        run = TinyRun(self.folder / "twice", **{"train.steps": 2})
        run.finish()
        before = run.log.read_text()
        self.assertIn("--resume", run.finish(expect=2))
        self.assertEqual(run.log.read_text(), before)

    def test_not_finite(self):
        """An adapter of finite numbers whose product is infinite: exit code 4, the step named, nothing updated or saved."""
        small = {"adapter.targets": "[attention]", "mtp.loss_weight": 0, "train.steps": 2}
        first = TinyRun(self.folder / "first", **small)
        first.finish()
        adapter = self.folder / "adapter"
        subprocess.run(
            [program(), "export", str(self.folder / "first" / "run"), "--to", str(adapter)],
            check=True,
            capture_output=True,
        )
        tensors = load_file(adapter / "adapter_model.safetensors")
        for name in tensors:
            tensors[name][...] = 1e30
        save_file(tensors, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
        run = TinyRun(self.folder / "infinite", **small | {"adapter.from": str(adapter)})
        output = run.finish(expect=4)
        self.assertRegex(output, r"error: step 1: the loss is -?(nan|inf)")
        self.assertEqual(run.losses(), {})
        self.assertEqual(run.checkpoints(), [])

    def test_another_mesh(self):
        """Other ranks go on with what some saved, experts and shards cut anew: the same to rounding."""
        settings = {"train.steps": 20, "checkpoint.every_steps": 10, "model.base": "bf16"}
        whole = self.whole(2, **settings, **{"mesh.ep": 2})
        first = TinyRun(self.folder / "moved", **settings, **{"mesh.ep": 2})
        first.finish(2)
        shutil.rmtree(first.checkpoints()[-1])
        saved, log = self.folder / "saved", first.log.read_text()
        shutil.copytree(first.checkpoints()[-1], saved)
        for ranks, ep, tp, expert_tp in (
            (4, 4, 1, 1),
            (4, 2, 1, 1),
            (4, 1, 1, 1),
            (1, 1, 1, 1),
            (4, 2, 2, 1),
            (2, 1, 2, 2),
        ):
            with self.subTest(ranks=ranks, ep=ep, tp=tp, expert_tp=expert_tp):
                moved = TinyRun(
                    self.folder / "moved", **settings, **{"mesh.ep": ep, "mesh.tp": tp, "mesh.expert_tp": expert_tp}
                )
                moved.finish(ranks, resume=True)
                self.assertEqual(sorted(moved.losses()), list(range(1, 21)))
                for step, loss in whole.losses().items():
                    self.assertAlmostEqual(moved.losses()[step], loss, delta=1e-4 * abs(loss))
                self.assertEqual(len(list(moved.checkpoints()[-1].glob("*.safetensors"))), ranks)
            for checkpoint in first.checkpoints():
                shutil.rmtree(checkpoint)
            shutil.copytree(saved, self.folder / "moved" / "run" / "checkpoints" / "step-00000010")
            first.log.write_text(log)

    def test_partitioned(self):
        """Every rank with shards of its own, each save right behind an update that is under way: resumed bit by bit."""
        mesh = {"mesh.ep": 2, "train.steps": 20, "model.compute": "bf16"}
        whole = self.whole(4, **mesh)
        run = TinyRun(self.folder / "cut", **mesh)
        run.finish(4)
        shutil.rmtree(run.checkpoints()[-1])
        run.finish(4, resume=True)
        self.assert_same(run, whole)
        self.assertTrue(all(line["optimizer_wait_s"] > 0.0 for line in run.lines("step")))


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], "-v"])
