"""Weights of some experts that train while the others stay frozen (train.experts), against transformers and torch.optim:
every gradient and ten AdamW steps, alone and beside adapters, on one rank and on meshes. The oracle's leaves are the
chosen experts' matrices and biases; with `top N` they are those that transformers' routers send most tokens to.

    .venv/bin/python tests/parity/train_experts_test.py [BUILD_FOLDER]
"""

import unittest

import torch

import cases
import program
from families import FAMILIES, checkpoint
from families.case import EXACT, FamilyCase
from families.oracle import Oracle

torch.set_num_threads(1)

ONE, EP, TP = dict(dp=1, ep=1, tp=1), dict(dp=1, ep=2, tp=1), dict(dp=1, ep=1, tp=2)
# Three matrices an expert; one map to gate and up, and biases; dense layers before those with experts.
SHAPES = [
    (FAMILIES[name], shape) for name, shape in (("qwen3_moe", "plain"), ("gpt_oss", "plain"), ("deepseek_v3", "groups"))
]


class TrainExpertsTest(FamilyCase):
    def config(self, name, experts, adapter=None, **changes):
        settings = dict(steps=3, compute="fp64", weight_decay=0.1, parts=["experts"], experts=experts) | changes
        return cases.config(self.model(name), adapter, **settings)

    def each(self, check):
        """Calls check(shape) with self.family."""
        for self.family, name in SHAPES:
            with self.subTest(f"{self.family.model_type} {name}"):
                check(name)

    def test_gradients_and_steps(self):
        def check(name):
            self.check(self.config(name, [1, 2], steps=10), EXACT, EXACT)
            self.check(self.config(name, [1, 2], steps=10, base="fp32", compute="fp32"))
            for mesh, settings in ((EP, {}), (TP, {}), (TP, dict(expert_tp=2)), (EP | dict(dp=2), dict(shard="all"))):
                with self.subTest(f"{mesh} {settings}"):
                    self.check(self.config(name, [1, 2], mesh=mesh, **settings), EXACT, EXACT)

        self.each(check)

    def test_a_rank_may_hold_none(self):
        """The chosen one lies on the first of two ranks; what is a parameter is its weights alone."""

        def check(name):
            config = self.config(name, [0], mesh=EP)
            self.check(config, EXACT, EXACT)
            trained = {key for key in program.run(config) if key.startswith("weight/")}
            self.assertEqual(trained, {f"weight/{leaf}" for leaf in Oracle(config).leaves})

        self.each(check)

    def test_with_other_parts_and_beside_adapters(self):
        def check(name):
            self.check(self.config(name, [0, 3], parts=["experts", "router", "norms", "head"]), EXACT, EXACT)
            # `adapter: none` alone trains all else.
            self.check(self.config(name, [2], parts="auto"), EXACT, EXACT)
            adapter = self.adapter(name, ["attention"])
            self.check(self.config(name, [0, 3], adapter, base="fp32", mesh=EP), EXACT, EXACT)

        self.each(check)

    def test_frozen_ones_in_4_bits(self):
        """Those that train start from what the checkpoint has, not from what 4 bits hold of it."""
        self.each(lambda name: self.check(self.config(name, [1, 3], base="nf4", compute="fp32", steps=0)))

    def test_sweep_settings_change_nothing(self):
        def check(name):
            for settings in (dict(slice_tokens=28), dict(keep="all"), dict(offload="all", mesh=EP)):
                with self.subTest(str(settings)):
                    self.check(self.config(name, [1, 2], **settings), EXACT, EXACT)

        self.each(check)

    def test_mtp(self):
        """The module's block has the same experts."""
        self.family = FAMILIES["deepseek_v3"]
        config = self.config("groups", [1, 2], mtp_loss_weight=0.3, mesh=EP)
        self.check(config, EXACT, EXACT)
        module = checkpoint.text_settings(self.model("groups"))["num_hidden_layers"]
        self.assertTrue(any(f".layers.{module}." in leaf for leaf in Oracle(config).leaves))

    def test_greatest_load(self):
        """Layers choose differently; of the mesh the choice knows nothing."""

        def check(name):
            for mesh in (ONE, EP, TP, dict(dp=2, ep=1, tp=1)):
                config = self.config(name, "top 2", mesh=mesh)
                oracle = Oracle(config)
                self.assertGreater(len({tuple(oracle.chosen(layer)) for layer in oracle.loads}), 1)
                self.check(config, EXACT, EXACT)

        self.each(check)


if __name__ == "__main__":
    program.choose_build()
    unittest.main(module="__main__")
