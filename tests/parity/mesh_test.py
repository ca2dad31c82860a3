"""Contract 2: on every DP x EP x TP mesh moetune computes what it computes on one rank, per tensor to 1e-9 in fp64.

    .venv/bin/python tests/parity/mesh_test.py [BUILD_FOLDER] [unittest arguments]

Gradients, losses, and after several steps adapters, weights and router biases, with every loss and the bias update on.
"""

import unittest
from dataclasses import replace

import cases
import compare
import program
from families import FAMILIES, checkpoint
from families.family import Shape
from fixture import ParityCase

TOLERANCE = 1e-9
# Six rows of 56 tokens under any sensible packing: over four data-parallel ranks the shares differ.
LENGTHS = cases.LENGTHS + (26, 25, 2, 40, 9, 33, 15)
ROWS = 6


class MeshTest(ParityCase):
    def check(self, config, meshes, **changes):
        """`meshes`: (dp, ep) or (dp, ep, tp), each against one rank. `changes` are of the meshes' runs alone."""
        expected = program.run(config)
        for mesh in meshes:
            dp, ep, tp = (*mesh, 1)[:3]
            with self.subTest(dp=dp, ep=ep, tp=tp, **changes):
                mesh_changes = changes | ({"expert_tp": tp} if changes.get("expert_tp") is True else {})
                actual = program.run(config | mesh_changes | {"mesh": {"dp": dp, "ep": ep, "tp": tp}})
                compare.assert_close(self, actual, expected, TOLERANCE)

    def config(self, model, adapter, **changes):
        return (
            cases.config(
                self.model(model),
                adapter,
                compute="fp64",
                steps=4,
                balance_loss=0.05,
                router_bias="update",
                bias_rate=0.01,
            )
            | changes
        )

    def test_adapters(self):
        """LoRA on everything, MTP loss included, experts with no token at all on some ranks."""
        adapter = self.adapter("mtp", ["all_linear"], mtp=True)
        config = self.config(
            "mtp", adapter, mtp_loss_weight=0.3, documents=cases.documents(lengths=LENGTHS), batch=ROWS
        )
        self.check(config, [(dp, ep) for dp in (1, 2, 4) for ep in (1, 2, 4) if dp * ep > 1])

    def test_adapters_in_parts(self):
        """The same with matrices cut over a tensor axis: slices of rows that its ranks do not divide, so that some hold
        padding."""
        adapter = self.adapter("mtp", ["all_linear"], mtp=True)
        config = self.config(
            "mtp", adapter, mtp_loss_weight=0.3, documents=cases.documents(lengths=LENGTHS), batch=ROWS, slice_tokens=30
        )
        self.check(config, [(1, 1, 2), (1, 1, 4), (1, 2, 2), (2, 1, 2), (2, 2, 2), (1, 2, 4), (2, 1, 4)])

    def test_adapters_of_single_groups(self):
        """An adapter on one kind of map at a time: what is cut by outputs, by inputs and not at all goes alone through
        the axis."""
        for targets in (
            ["q_a_proj"],
            ["q_b_proj"],
            ["kv_a_proj_with_mqa"],
            ["kv_b_proj"],
            ["o_proj"],
            ["shared_expert"],
            ["dense_mlp"],
            ["experts"],
        ):
            config = self.config("groups", self.adapter("groups", targets), steps=2)
            with self.subTest(targets=targets):
                self.check(config, [(1, 1, 2)])

    def test_experts_in_parts(self):
        """Each expert shared by a tensor axis: adapters with dropout on every map, in rounds too, and weights that
        train."""
        adapter = self.adapter("groups", ["all_linear"]) | {"dropout": 0.2}
        config = self.config("groups", adapter, documents=cases.documents(lengths=LENGTHS), batch=ROWS, steps=2, keep=1)
        self.check(config, [(1, 2, 2), (2, 1, 2)], expert_tp=2)
        self.check(config, [(1, 2, 2)], expert_tp=2, buffer_rows=9, shard="all")
        self.check(self.config("groups", None, steps=2), [(2, 1, 2)], expert_tp=2)

    def test_quantised_in_parts(self):
        """Matrices are quantised whole and then cut: dense forms and digest are those of one rank."""
        adapter = self.adapter("blocks", ["attention", "shared_expert"])
        for base in ("nf4", "nf4_double", "bf16"):
            with self.subTest(base=base):
                self.check(self.config("blocks", adapter, base=base, steps=2), [(1, 2), (1, 1, 2)])
                self.check(self.config("blocks", adapter, base=base, steps=2), [(2, 1, 2)], shard="all")

    def test_quantised_in_uneven_parts(self):
        """Features of MLPs and experts are dealt out by NF4 blocks: some ranks hold more than others, some nothing;
        where no cut suits the blocks each holds the packed matrix whole. The digest is that of one rank."""
        for model in ("half_blocks", "uneven"):
            adapter = self.adapter(model, ["all_linear"]) | {"dropout": 0.2}
            for base in ("nf4", "nf4_double"):
                with self.subTest(model=model, base=base):
                    config = self.config(model, adapter, base=base, steps=2)
                    self.check(config, [(1, 1, 2), (1, 1, 4), (1, 2, 2)])
                    self.check(config, [(1, 1, 2), (1, 1, 4), (2, 1, 2)], expert_tp=True)
                    self.check(config, [(2, 1, 2)], expert_tp=True, shard="all", offload="all")
        # Without blocks, four ranks cut these widths by runs of eight features.
        for adapter in (self.adapter("half_blocks", ["all_linear"]), None):
            self.check(self.config("half_blocks", adapter, steps=2), [(1, 1, 2), (1, 1, 4)], expert_tp=True)

    def test_families_in_uneven_parts(self):
        """Joint maps of gate and up with biases in NF4; two key heads for four ranks, with biases, normed head by head
        and all together."""
        for name in ("gpt_oss", "qwen3_moe", "olmoe"):
            width = "moe_intermediate_size" if name == "qwen3_moe" else "intermediate_size"
            shape = Shape(seed=5, config={width: 192, "num_key_value_heads": 2, "num_hidden_layers": 2})
            if name == "gpt_oss":
                shape.config["layer_types"] = ["sliding_attention", "full_attention"]
            family = replace(FAMILIES[name], shapes={"uneven": shape})
            folder = checkpoint.write(family, "uneven", self.folder / name)
            adapter = {"targets": ["all_linear"], "rank": 4, "alpha": 6.0}
            for adapter, base in ((adapter, "nf4_double"), (None, "fp32")):
                with self.subTest(family=name, base=base):
                    config = cases.config(folder, adapter, base=base, compute="fp64", steps=3)
                    self.check(config, [(1, 1, 2), (1, 1, 4)], expert_tp=True)

    def test_full_training(self):
        config = self.config("groups", None, documents=cases.documents(lengths=LENGTHS), batch=ROWS)
        self.check(config, [(1, 4), (4, 1), (2, 2), (1, 1, 2), (1, 1, 4), (1, 2, 2), (2, 1, 2)])

    def test_full_training_of_an_own_head(self):
        """MTP with embedding and head of its own, no query latent."""
        config = self.config("mtp_own_head", None, mtp_loss_weight=0.3)
        self.check(config, [(1, 1, 2), (1, 1, 4), (1, 2, 2)])

    def test_ranks_without_a_row(self):
        """Three rows over four ranks, in slices of one row."""
        adapter = self.adapter("groups", ["attention", "experts"])
        config = self.config("groups", adapter, slice_tokens=cases.MAX_TOKENS)
        self.check(config, [(4, 1), (2, 2), (4, 1, 2), (2, 2, 2)])

    def test_slices_of_a_row_or_two(self):
        """Slices with fewer rows than the tensor axis has ranks: some hold padding alone."""
        adapter = self.adapter("mtp", ["all_linear"], mtp=True)
        config = self.config(
            "mtp",
            adapter,
            mtp_loss_weight=0.3,
            documents=cases.documents(lengths=(2, 2, 3, 17, 7, 2, 5, 2)),
            max_tokens=19,
            batch=2,
        )
        self.check(config, [(1, 1, 4), (1, 2, 2), (2, 1, 4)], slice_tokens=1)

    def test_exchange_in_rounds(self):
        """A receive buffer too small for the rows: they come in rounds, and nothing is dropped."""
        adapter = self.adapter("groups", ["attention", "experts"])
        config = self.config("groups", adapter, keep=2)
        for buffer_rows in (3, 40):
            self.check(config, [(1, 4), (1, 2, 2)], buffer_rows=buffer_rows)

    def test_weights_sharded_and_streamed(self):
        """Frozen weights whole, shared by the ranks that would hold copies, in host memory, or both; block inputs in
        host memory too."""
        adapter = self.adapter("mtp", ["all_linear"], mtp=True)
        for base in ("nf4_double", "fp32"):
            config = self.config(
                "mtp", adapter, mtp_loss_weight=0.3, base=base, documents=cases.documents(lengths=LENGTHS), batch=ROWS
            )
            meshes = [(1, 1), (2, 1), (2, 2), (4, 1)] + ([(2, 1, 2)] if base == "fp32" else [])
            for changes in (
                {"shard": "all"},
                {"offload": "all", "activations": "host"},
                {"shard": "all", "offload": "all", "keep": 1},
            ):
                with self.subTest(base=base):
                    self.check(config, meshes, **changes)

    def test_dropout(self):
        """Masks are a function of seed, step, place, token and feature: the same on every mesh, in every slicing, kept
        or recomputed."""
        adapter = self.adapter("groups", ["all_linear"]) | {"dropout": 0.2}
        config = self.config("groups", adapter)
        expected = program.run(config)
        self.check(config, [(1, 2), (2, 1), (1, 1, 2), (1, 1, 4), (1, 2, 2)])
        for changes in ({"slice_tokens": 20}, {"keep": "all"}):
            self.check(config, [(1, 1, 1), (1, 1, 2)], **changes)
        without = program.run(config | {"adapter": adapter | {"dropout": 0.0}})
        self.assertGreater(compare.largest(without, expected)[0], 1e-3)

    def test_initial_adapters(self):
        """A starts from the seed alike whatever part of it a rank holds."""
        adapter = {"targets": ["all_linear"], "rank": 4, "alpha": 6.0}
        self.check(self.config("groups", adapter), [(1, 2, 1), (1, 1, 2), (1, 1, 4)])


if __name__ == "__main__":
    program.choose_build()
    unittest.main()
