"""Loading streams: a rank's peak host memory is its own share and at most two tensors, not the checkpoint.

    .venv/bin/python tests/faults/loading_test.py [BUILD_FOLDER]
"""

import pathlib
import shutil
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from tiny_checkpoint import write_checkpoint
from tiny_run import TinyRun

MIB = 2**20


class LoadingTest(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)

    def peak(self, run, ranks):
        run.finish(ranks)
        return run.lines("start")[0]["host_peak_bytes"]

    def test_peak_host_memory(self):
        settings = {"train.steps": 1, "adapter.targets": "[attention]", "mtp.loss_weight": 0, "router.bias": "frozen", "train.batch": 1}
        for ranks in (1, 2):
            with self.subTest(ranks=ranks):
                program_alone = self.peak(TinyRun(self.folder / f"small{ranks}", **settings, **{"mesh.ep": ranks}), ranks)
                run = TinyRun(self.folder / f"large{ranks}", **settings, **{"mesh.ep": ranks, "model.weights": "pretrained"})
                sizes = write_checkpoint(self.folder / f"large{ranks}" / "model", hidden_size=1024, moe_intermediate_size=512, n_routed_experts=64)
                file_bytes, expert_bytes, largest = sum(sizes.values()), sum(size for name, size in sizes.items() if ".experts." in name), max(sizes.values())
                # 4.5 bits a weight of bf16's 16; what is not an expert is small and counted as it lies.
                share = (expert_bytes / ranks) * 4.5 / 16 + (file_bytes - expert_bytes)
                used = self.peak(run, ranks) - program_alone
                self.assertGreater(used, 0.5 * share)
                # Twice the largest tensor as fp32, and what the allocator and the page tables round.
                self.assertLess(used, share + 2 * 2 * largest + 48 * MIB)
                self.assertLess(used, 0.6 * file_bytes)


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], "-v"])
