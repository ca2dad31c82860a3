"""Weights that train themselves, all of them or named parts (train.parts), against transformers and torch.optim: every
gradient, and ten AdamW steps whose weight decay spares norms, biases and sinks; alone and beside adapters, on one rank
and on meshes. The oracle's leaves are the parts that are named; that all else stays bit for bit what it was, the
program's digest of frozen weights says.

    .venv/bin/python tests/parity/train_parts_test.py [BUILD_FOLDER]

MOETUNE_TEST_FAMILY: only these model_types, set apart by spaces.
"""

import os
import unittest

import torch

import cases
import compare
import parts
import program
import reference
from families import FAMILIES
from families.case import EXACT, FamilyCase
from families.oracle import Oracle

torch.set_num_threads(1)

ONE, EP, TP = dict(dp=1, ep=1, tp=1), dict(dp=1, ep=2, tp=1), dict(dp=1, ep=1, tp=2)
# Per-head norms; a shared expert behind a gate, biases of q, k and v; tied embeddings and a dense layer; sinks, biases
# of every map, expert and router; latent attention, dense layers, correction biases.
SHAPES = [
    (FAMILIES[model_type], name)
    for model_type, name in (
        ("qwen3_moe", "plain"),
        ("qwen2_moe", "plain"),
        ("qwen2_moe", "dense_layers"),
        ("gpt_oss", "plain"),
        ("deepseek_v3", "groups"),
    )
    if model_type in os.environ.get("MOETUNE_TEST_FAMILY", model_type).split()
]
NAMED = (["attention", "norms"], ["experts", "router"], ["shared_expert", "dense_mlp"], ["embedding", "head"])


class TrainPartsTest(FamilyCase):
    def config(self, name, adapter=None, **changes):
        settings = dict(steps=10, compute="fp64", weight_decay=0.1) | changes
        return cases.config(self.model(name), adapter, **settings)

    def there(self, name, named):
        """Those of the parts that the model has."""
        weights = Oracle(self.config(name)).weights
        has = {parts.part(weight) for weight in weights} | {"head"}
        return [part for part in named if part in has]

    def test_all_parts(self):
        """Every weight of a model, tied embeddings as one."""
        for self.family, name in SHAPES:
            for mesh in (ONE, EP, TP):
                with self.subTest(f"{self.family.model_type} {name} {mesh}"):
                    self.check(self.config(name, mesh=mesh), EXACT, EXACT)
            with self.subTest(f"{self.family.model_type} {name} fp32"):
                self.check(self.config(name, compute="fp32"))

    def test_named_parts(self):
        for self.family, name in SHAPES:
            for index, named in enumerate(NAMED):
                with self.subTest(f"{self.family.model_type} {name} {named}"):
                    if named := self.there(name, named):
                        self.check(self.config(name, parts=named, mesh=(ONE, EP, TP)[index % 3]), EXACT, EXACT)

    def test_one_part_in_fp32(self):
        """Each part by itself, the rest frozen; what is a parameter is that part, and the way up ends below it."""
        for self.family, name in SHAPES:
            tied = "lm_head.weight" not in Oracle(self.config(name)).weights
            for part in self.there(name, parts.ALL):
                if tied and part in ("embedding", "head"):
                    continue
                with self.subTest(f"{self.family.model_type} {name} {part}"):
                    config = self.config(name, parts=[part], compute="fp32", steps=2)
                    self.check(config)
                    trained = {key for key in program.run(config) if key.startswith("weight/")}
                    self.assertEqual(trained, {f"weight/{leaf}" for leaf in Oracle(config).leaves})

    def test_frozen_parts_in_4_bits(self):
        for self.family, name in SHAPES:
            with self.subTest(f"{self.family.model_type} {name}"):
                self.check(self.config(name, parts=["norms", "router"], base="nf4", compute="fp32", steps=0))

    def test_beside_adapters(self):
        """Adapters of attention, weights of what is named; routers by train.parts as by router.train."""
        for self.family, name in SHAPES:
            adapter = self.adapter(name, ["attention"])
            for index, named in enumerate((["experts", "norms"], ["router"], ["embedding", "head"])):
                with self.subTest(f"{self.family.model_type} {name} {named}"):
                    mesh = (TP, EP, ONE)[index]
                    self.check(self.config(name, adapter, parts=named, mesh=mesh, base="fp32"), EXACT, EXACT)

    def test_mtp(self):
        """The module's block is trained as any other, its norms as norms, its projection with the head: where that is
        all, the way up goes through a block in which nothing trains.
        """
        self.family = FAMILIES["deepseek_v3"]
        block = ["attention", "norms", "experts"]
        for mesh, chosen in ((ONE, block), (EP, block), (ONE, ["head"])):
            with self.subTest(str(chosen), mesh=mesh):
                config = self.config("groups", parts=chosen, mtp_loss_weight=0.3, steps=3, mesh=mesh)
                self.check(config, EXACT, EXACT)

    def test_decay_is_of_matrices(self):
        """The same steps without decay differ in matrices alone; with zero gradients norms and biases stay."""
        self.family = FAMILIES["gpt_oss"]
        config = self.config("plain", steps=1, lr=0.1)
        with_decay, without = program.run(config), program.run(config | dict(weight_decay=0.0))
        for name, tensor in with_decay.items():
            if name.startswith("weight/"):
                same = torch.equal(tensor, without[name])
                self.assertEqual(same, not parts.decays(name.removeprefix("weight/")), name)

    def test_sweep_settings_change_nothing(self):
        self.family = FAMILIES["qwen2_moe"]
        config = self.config("dense_layers", parts=["attention", "norms", "embedding", "head"], steps=3)
        expected = reference.run(config | dict(eps=1e-5), kind=Oracle)
        for settings in (dict(slice_tokens=28), dict(keep="all"), dict(keep=1, shard="all", mesh=dict(dp=2, ep=1))):
            with self.subTest(str(settings)):
                actual = program.run(config | dict(eps=1e-5) | settings)
                compare.assert_close(self, actual, expected, EXACT)


if __name__ == "__main__":
    program.choose_build()
    unittest.main(module="__main__")
