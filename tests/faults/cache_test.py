"""model.cache: a second start takes the frozen weights from the cache, on any mesh, and whatever is wrong with it costs
time alone.

    .venv/bin/python tests/faults/cache_test.py [BUILD_FOLDER]
"""

import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import numpy
from safetensors import safe_open
from safetensors.numpy import load_file

from tiny_checkpoint import write_checkpoint
from tiny_run import TinyRun

# A tensor axis of two cuts these at the borders of NF4 blocks.
SIZES = {"hidden_size": 64, "intermediate_size": 128, "moe_intermediate_size": 128, "v_head_dim": 64}
LINEAR = ("_proj.weight", "kv_a_proj_with_mqa.weight")


def slabs(cache):
    """The files of the one cache in the folder."""
    return sorted(cache.glob("*/layer-*.safetensors"))


def offsets(file):
    """{tensor: its first byte in the file}, in the order of the file; empty for a file that nobody has given a header
    yet."""
    with open(file, "rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(length) or "{}")
    places = ((name, 8 + length + entry["data_offsets"][0]) for name, entry in header.items() if name != "__metadata__")
    return dict(sorted(places, key=lambda pair: pair[1]))


def matrices(file):
    """[(recorded SHA-256, that of its parts as the file has them)] of each matrix of a slab's file."""
    places, parts = offsets(file), {}
    if not places:
        return []
    tensors = load_file(file)
    for name in places:
        if name != "sha256":
            parts.setdefault(name.rsplit("/", 1)[0], hashlib.sha256()).update(tensors[name].tobytes())
    return [(row.tobytes(), digest.digest()) for row, digest in zip(tensors["sha256"], parts.values(), strict=True)]


def garble(file, names):
    """Turns the bytes of these tensors into noise; size, header and times of the file stay."""
    status, places = os.stat(file), offsets(file)
    with safe_open(file, "pt") as opened, open(file, "r+b") as raw:
        for name in names:
            raw.seek(places[name])
            raw.write(
                numpy.random.default_rng(1).integers(0, 63, opened.get_tensor(name).nbytes, dtype=numpy.uint8).tobytes()
            )
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


class CacheTest(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)
        self.cache = self.folder / "cache"
        self.model = self.folder / "model"
        self.model.mkdir()

    def run_once(self, name, ranks=1, cache=True, **changes):
        """A run of two steps in a folder of its own: its start line, losses and output."""
        settings = {
            "model.weights": "pretrained",
            "model.path": str(self.model),
            "train.steps": 2,
            "mtp.loss_weight": 0,
            "checkpoint.every_steps": 0,
        }
        if cache:
            settings["model.cache"] = str(self.cache)
        run = TinyRun(self.folder / name, **settings, **changes)
        output = run.finish(ranks)
        return run.lines("start")[0], run.losses(), output

    def test_second_start_on_any_mesh(self):
        sizes = write_checkpoint(self.model, **SIZES)
        linear = [name for name in sizes if name.endswith(LINEAR)]
        plain = sum(size for name, size in sizes.items() if name not in linear)
        first, losses, output = self.run_once("first")
        self.assertEqual(first["cache_read_bytes"], 0)
        self.assertEqual(first["checkpoint_read_bytes"], sum(sizes.values()))
        packed = first["cache_written_bytes"]
        # 4.5 bits of bf16's 16.
        self.assertEqual(packed, sum(sizes[name] for name in linear) * 4.5 / 16)
        self.assertIn("packed into the cache", output)
        inspected = subprocess.run(
            [TinyRun(self.folder / "first").arguments("inspect")[0], "inspect", str(self.cache)],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        self.assertIn(f"whole: {len(linear)} of {len(linear)} matrices", inspected)

        garble(self.model / "model.safetensors", linear)
        without, _, _ = self.run_once("without", cache=False)
        self.assertNotEqual(without["frozen_digest"], first["frozen_digest"])

        second, again, output = self.run_once("second")
        self.assertEqual((second["cache_read_bytes"], second["cache_written_bytes"]), (packed, 0))
        self.assertEqual(second["checkpoint_read_bytes"], plain)
        self.assertEqual(again, losses)
        self.assertEqual(second["frozen_digest"], first["frozen_digest"])
        self.assertIn("packed from the cache", output)
        for name, ranks, mesh in (
            ("ep", 2, {"mesh.ep": 2}),
            ("shards", 2, {"mesh.shard": "all"}),
            ("tp", 2, {"mesh.tp": 2}),
        ):
            with self.subTest(mesh=name):
                start, again, _ = self.run_once(name, ranks, **mesh)
                self.assertEqual(start["frozen_digest"], first["frozen_digest"])
                self.assertEqual((start["checkpoint_read_bytes"], start["cache_written_bytes"]), (plain, 0))
                for step, loss in losses.items():
                    self.assertAlmostEqual(again[step], loss, delta=1e-4 * loss)

    def test_a_cache_filled_by_several_ranks_serves_one(self):
        sizes = write_checkpoint(self.model, **SIZES)
        first, losses, _ = self.run_once("first", 2, **{"mesh.ep": 2, "mesh.shard": "all", "model.base": "nf4_double"})
        self.assertGreater(first["cache_written_bytes"], 0)
        start, again, _ = self.run_once("second", **{"model.base": "nf4_double"})
        self.assertEqual(start["frozen_digest"], first["frozen_digest"])
        self.assertEqual(
            (start["checkpoint_read_bytes"], start["cache_written_bytes"]),
            (sum(size for name, size in sizes.items() if not name.endswith(LINEAR)), 0),
        )

    def test_damage_is_said_and_mended(self):
        write_checkpoint(self.model, **SIZES)
        first, losses, _ = self.run_once("first")
        victim = slabs(self.cache)[-1]
        with open(victim, "r+b") as file:
            file.seek(-5, os.SEEK_END)
            byte = file.read(1)
            file.seek(-5, os.SEEK_END)
            file.write(bytes([byte[0] ^ 64]))
        for name, says in (("damaged", True), ("mended", False)):
            start, again, output = self.run_once(name)
            self.assertEqual((start["frozen_digest"], again), (first["frozen_digest"], losses))
            self.assertEqual("differs from its SHA-256; it is packed anew" in output, says, output)
            self.assertEqual(start["cache_written_bytes"] > 0, says)

    def test_another_checkpoint_in_its_place_is_another_cache(self):
        write_checkpoint(self.model, **SIZES)
        first, _, _ = self.run_once("first")
        # Every byte of the file's size and header stays; only its time tells.
        weights = self.model / "model.safetensors"
        garble(weights, [name for name in offsets(weights) if name.endswith(LINEAR)])
        os.utime(weights)
        second, _, _ = self.run_once("second")
        self.assertNotEqual(second["frozen_digest"], first["frozen_digest"])
        self.assertEqual(second["cache_read_bytes"], 0)
        self.assertEqual(len(list(self.cache.iterdir())), 2)

    def test_a_plain_tensor_changed_behind_its_time_is_refused(self):
        write_checkpoint(self.model, **SIZES)
        self.run_once("first")
        garble(self.model / "model.safetensors", ["model.norm.weight"])
        with self.assertRaisesRegex(AssertionError, "exit code 2, expected 0(.|\n)*with this cache they had"):
            self.run_once("second")

    def test_killed_while_it_fills(self):
        sizes = write_checkpoint(self.model, hidden_size=1024, moe_intermediate_size=512, n_routed_experts=32)
        all_matrices = sum(name.endswith(LINEAR) for name in sizes)
        filled = lambda: sum(file.stat().st_blocks * 512 for file in slabs(self.cache))
        before = 0
        # Each goes on where the last was killed: at some matrix of the 192 of experts, of 0.3 MB each.
        for number, delay_s in enumerate((0.0, 0.007, 0.02, 0.033)):
            run = TinyRun(
                self.folder / f"killed{number}",
                **{
                    "model.weights": "pretrained",
                    "model.path": str(self.model),
                    "model.cache": str(self.cache),
                    "train.steps": 1,
                    "mtp.loss_weight": 0,
                    "adapter.targets": "[attention]",
                },
            )
            enough, process, end = filled() + 3 * 2**20, run.start(), time.time() + 120
            while filled() < enough and process.poll() is None and time.time() < end:
                time.sleep(0.0005)
            time.sleep(delay_s)
            process.kill()
            process.communicate()
            found = [pair for file in slabs(self.cache) for pair in matrices(file)]
            there = [recorded == actual for recorded, actual in found if any(recorded)]
            self.assertTrue(all(there))
            self.assertTrue(before < len(there) < all_matrices, (before, len(there), all_matrices))
            before = len(there)
        start, _, output = self.run_once("after", **{"adapter.targets": "[attention]"})
        self.assertGreater(start["cache_read_bytes"], 0)
        self.assertGreater(start["cache_written_bytes"], 0)
        self.assertNotIn("SHA-256", output)
        without, _, _ = self.run_once("without", cache=False, **{"adapter.targets": "[attention]"})
        self.assertEqual(start["frozen_digest"], without["frozen_digest"])

    def test_nowhere_to_write(self):
        write_checkpoint(self.model, **SIZES)
        without, losses, _ = self.run_once("without", cache=False)
        self.cache.write_text("a file where the folder should be")
        start, again, output = self.run_once("no_folder")
        self.assertIn("cannot make the folder: Not a directory; what is not in the cache stays out of it", output)
        self.assertEqual((start["frozen_digest"], again), (without["frozen_digest"], losses))

    def test_disk_full(self):
        write_checkpoint(self.model, **SIZES)
        self.cache.mkdir()
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(self.cache)], capture_output=True, text=True
        )
        if mounted.returncode != 0:
            self.skipTest(f"this machine does not allow a file system of its own: {mounted.stderr.strip()}")
        self.addCleanup(subprocess.run, ["umount", str(self.cache)], check=True)
        without, losses, _ = self.run_once("without", cache=False)
        for name in ("first", "second"):
            start, again, output = self.run_once(name)
            self.assertEqual(output.count("cannot write: No space left on device"), 1, output)
            self.assertEqual((start["frozen_digest"], again), (without["frozen_digest"], losses))
        self.assertGreater(start["cache_read_bytes"], 0)


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], "-v"])
