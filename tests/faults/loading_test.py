"""Loading streams: a rank's peak host memory is its own share and at most two tensors, not the checkpoint.

.venv/bin/python tests/faults/loading_test.py [BUILD_FOLDER]
"""

import pathlib
import resource
import shutil
import sys
import tempfile
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from tiny_checkpoint import write_checkpoint
from tiny_run import TinyRun, program

MIB = 2**20


class LoadingTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = pathlib.Path(tempfile.mkdtemp())
        cls.addClassCleanup(shutil.rmtree, cls.folder)
        (cls.folder / "model").mkdir()
        # Many small tensors of many layers: what the heap keeps of each as it goes would add up.
        sizes = write_checkpoint(
            cls.folder / "model", num_hidden_layers=33, hidden_size=1024, moe_intermediate_size=128, n_routed_experts=16
        )
        cls.file_bytes, cls.largest = sum(sizes.values()), max(sizes.values())
        cls.expert_bytes = sum(size for name, size in sizes.items() if ".experts." in name)

    def run_of(self, name, large, values):
        """A run of one step, on the checkpoint or on the smallest model."""
        checkpoint = {"model.weights": "pretrained", "model.path": self.folder / "model"} if large else {}
        steps = {
            "train.steps": 1,
            "adapter.targets": "[attention]",
            "mtp.loss_weight": 0,
            "router.bias": "frozen",
            "train.batch": 2,
        }
        return TinyRun(self.folder / name, **steps | values | checkpoint)

    def peak(self, name, ranks, large, values):
        run = self.run_of(name, large, values)
        run.finish(ranks)
        return run.lines("start")[0]["host_peak_bytes"]

    def share(self, ranks):
        """4.5 bits a weight of bf16's 16; what is not a routed expert is little and counted as it lies."""
        return (self.expert_bytes / ranks) * 4.5 / 16 + (self.file_bytes - self.expert_bytes)

    def bound(self, ranks):
        """The share, twice the largest tensor as fp32, and what the allocator and the page tables round."""
        return self.share(ranks) + 2 * 2 * self.largest + 48 * MIB

    def test_peak_host_memory(self):
        """Two ranks hold half of the experts each, be it experts of their own or half of the bytes of each layer's."""
        for name, ranks, values in (
            ("one rank", 1, {}),
            ("an expert group of two", 2, {"mesh.ep": 2}),
            ("two that share", 2, {"mesh.shard": "all"}),
            ("two that share, from host memory", 2, {"mesh.shard": "all", "offload.frozen": "all"}),
        ):
            with self.subTest(name):
                program_alone = self.peak(f"small, {name}", ranks, False, values)
                used = self.peak(f"large, {name}", ranks, True, values) - program_alone
                self.assertGreater(used, 0.5 * self.share(ranks))
                self.assertLess(used, self.bound(ranks))
                self.assertLess(used, 0.6 * self.file_bytes)

    def test_under_a_limit_of_the_kernel(self):
        """Ranks load when the kernel refuses them more private memory than the smallest run takes and the bound. A
        share that is twice as large is refused, and the run says so with exit code 3."""
        sharing = {"mesh.shard": "all"}
        program_alone = self.private_bytes("small, limited", 2, sharing)
        limit = int(program_alone + self.bound(2))
        for name, values, fits in (
            ("an expert group of two", {"mesh.ep": 2}, True),
            ("two that share", sharing, True),
            ("two with a copy each", {}, False),
        ):
            with self.subTest(name):
                run = self.run_of(f"limited, {name}", True, values)
                process = run.start(2, before_start=lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)))
                output, _ = process.communicate(timeout=240)
                # The start line stands behind loading; what the step takes on top of it is not asked here.
                self.assertEqual(run.log.exists() and len(run.lines("start")) == 1, fits, output[-3000:])
                self.assertIn(process.returncode, (0, 3) if fits else (3,), output[-3000:])
                if process.returncode == 3:
                    self.assertIn("the host is out of memory", output)

    def private_bytes(self, name, ranks, values):
        """The most private writable memory (VmData, what RLIMIT_DATA limits) that a rank of the small run has."""
        run = self.run_of(name, False, values)
        process, most = run.start(ranks), 0
        while process.poll() is None:
            for status in self.statuses_of(run):
                most = max(
                    [most] + [int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmData:")]
                )
            time.sleep(0.005)
        self.assertEqual(process.returncode, 0, process.communicate()[0])
        return most

    def statuses_of(self, run):
        """/proc/PID/status of each rank of the run that is alive."""
        words = [str(program()), "train", str(run.folder / "recipe.yaml")]
        for process in pathlib.Path("/proc").glob("[0-9]*"):
            try:
                if (process / "cmdline").read_text().split("\0")[:3] == words:
                    yield (process / "status").read_text()
            except OSError:
                continue  # it has ended


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], "-v"])
