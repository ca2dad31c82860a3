"""Contract 2: on every EP x DP mesh moetune computes what it computes on one rank, per tensor to 1e-9 in fp64.

    .venv/bin/python tests/parity/mesh_test.py [BUILD_FOLDER] [unittest arguments]

Gradients, losses, and after several steps adapters, weights and router biases, with every loss and the bias update on.
"""

import unittest

import cases
import compare
import program
from fixture import ParityCase

TOLERANCE = 1e-9
# Six rows of 56 tokens under any sensible packing: over four data-parallel ranks the shares differ.
LENGTHS = cases.LENGTHS + (26, 25, 2, 40, 9, 33, 15)
ROWS = 6


class MeshTest(ParityCase):
    def check(self, config, meshes):
        expected = program.run(config)
        for dp, ep in meshes:
            with self.subTest(dp=dp, ep=ep):
                compare.assert_close(self, program.run(config | {"mesh": {"dp": dp, "ep": ep}}), expected, TOLERANCE)

    def config(self, model, adapter, **changes):
        return cases.config(self.model(model), adapter, compute="fp64", steps=4, balance_loss=0.05, router_bias="update",
                            bias_rate=0.01) | changes

    def test_adapters(self):
        """LoRA on everything, MTP loss included, experts with no token at all on some ranks."""
        adapter = self.adapter("mtp", ["all_linear"], mtp=True)
        config = self.config("mtp", adapter, mtp_loss_weight=0.3, documents=cases.documents(lengths=LENGTHS), batch=ROWS)
        self.check(config, [(dp, ep) for dp in (1, 2, 4) for ep in (1, 2, 4) if dp * ep > 1])

    def test_full_training(self):
        config = self.config("groups", None, documents=cases.documents(lengths=LENGTHS), batch=ROWS)
        self.check(config, [(1, 4), (4, 1), (2, 2)])

    def test_ranks_without_a_row(self):
        """Three rows over four ranks, in slices of one row."""
        adapter = self.adapter("groups", ["attention", "experts"])
        self.check(self.config("groups", adapter, slice_tokens=cases.MAX_TOKENS), [(4, 1), (2, 2)])

    def test_exchange_in_rounds(self):
        """A receive buffer too small for the rows: they come in rounds, and nothing is dropped."""
        adapter = self.adapter("groups", ["attention", "experts"])
        config = self.config("groups", adapter, keep=2)
        expected = program.run(config)
        for buffer_rows in (3, 40):
            with self.subTest(buffer_rows=buffer_rows):
                changes = {"mesh": {"dp": 1, "ep": 4}, "buffer_rows": buffer_rows}
                compare.assert_close(self, program.run(config | changes), expected, TOLERANCE)

    def test_weights_sharded_and_streamed(self):
        """Frozen weights whole, shared by the ranks that would hold copies, in host memory, or both; block inputs in host memory too."""
        adapter = self.adapter("mtp", ["all_linear"], mtp=True)
        for base in ("nf4_double", "fp32"):
            config = self.config("mtp", adapter, mtp_loss_weight=0.3, base=base, documents=cases.documents(lengths=LENGTHS), batch=ROWS)
            expected = program.run(config)
            for dp, ep in ((1, 1), (2, 1), (2, 2), (4, 1)):
                for changes in ({"shard": "all"}, {"offload": "all", "stash": True}, {"shard": "all", "offload": "all", "keep": 1}):
                    with self.subTest(base=base, dp=dp, ep=ep, **changes):
                        compare.assert_close(self, program.run(config | changes | {"mesh": {"dp": dp, "ep": ep}}), expected, TOLERANCE)

    def test_dropout(self):
        """Masks are a function of seed, step, place, token and feature: the same on every mesh, in every slicing, kept or recomputed."""
        adapter = self.adapter("groups", ["all_linear"]) | {"dropout": 0.2}
        config = self.config("groups", adapter)
        expected = program.run(config)
        for changes in ({"mesh": {"dp": 1, "ep": 2}}, {"mesh": {"dp": 2, "ep": 1}}, {"slice_tokens": 20}, {"keep": "all"}):
            with self.subTest(**changes):
                compare.assert_close(self, program.run(config | changes), expected, TOLERANCE)
        without = program.run(config | {"adapter": adapter | {"dropout": 0.0}})
        self.assertGreater(compare.largest(without, expected)[0], 1e-3)


if __name__ == "__main__":
    program.choose_build()
    unittest.main()
