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
    @classmethod
    def setUpClass(cls):
        cls.folder = pathlib.Path(tempfile.mkdtemp())
        cls.addClassCleanup(shutil.rmtree, cls.folder)
        (cls.folder / "model").mkdir()
        sizes = write_checkpoint(cls.folder / "model", hidden_size=1024, moe_intermediate_size=512, n_routed_experts=64)
        cls.file_bytes, cls.largest = sum(sizes.values()), max(sizes.values())
        cls.expert_bytes = sum(size for name, size in sizes.items() if ".experts." in name)

    def peak(self, name, ranks, **values):
        run = TinyRun(self.folder / name, **{"train.steps": 1, "adapter.targets": "[attention]", "mtp.loss_weight": 0, "router.bias": "frozen", "train.batch": 2} | values)
        run.finish(ranks)
        return run.lines("start")[0]["host_peak_bytes"]

    def test_peak_host_memory(self):
        """Two ranks hold half of the experts each, be it experts of their own or half of the bytes of each layer's."""
        for name, ranks, values in (("one rank", 1, {}), ("an expert group of two", 2, {"mesh.ep": 2}), ("two that share", 2, {"mesh.shard": "all"}),
                                    ("two that share, from host memory", 2, {"mesh.shard": "all", "offload.frozen": "all"})):
            with self.subTest(name):
                program_alone = self.peak(f"small, {name}", ranks, **values)
                used = self.peak(f"large, {name}", ranks, **values, **{"model.weights": "pretrained", "model.path": self.folder / "model"}) - program_alone
                # 4.5 bits a weight of bf16's 16; what is not an expert is small and counted as it lies.
                share = (self.expert_bytes / ranks) * 4.5 / 16 + (self.file_bytes - self.expert_bytes)
                self.assertGreater(used, 0.5 * share)
                # Twice the largest tensor as fp32, and what the allocator and the page tables round.
                self.assertLess(used, share + 2 * 2 * self.largest + 48 * MIB)
                self.assertLess(used, 0.6 * self.file_bytes)


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], "-v"])
