"""Exports of runs of which parts trained themselves (train.parts), read back by transformers and PEFT.

    .venv/bin/python tests/parity/train_parts_export_test.py [BUILD_FOLDER] [unittest arguments]

MOETUNE_TEST_FAMILY: only these model_types, set apart by spaces.
"""

import json
import os
import re
import unittest

import torch
from peft import PeftModel
from safetensors import safe_open
from transformers.utils import logging

import cases
import models
import parts
import program
from exported import STEPS, ExportCase
from families import FAMILIES, checkpoint
from families.case import FamilyCase
from families.oracle import Oracle, alone, pretrained
from families_export_test import fp32_shape

logging.set_verbosity_error()
torch.set_num_threads(1)


class TrainPartsExportTest(ExportCase, FamilyCase):
    def each(self, check):
        only = os.environ.get("MOETUNE_TEST_FAMILY", "").split()
        for self.family in FAMILIES.values():
            if not only or self.family.model_type in only:
                name = fp32_shape(self.family)
                with self.subTest(f"{self.family.model_type} {name}"):
                    check(name)

    def run_of(self, name, named, adapter="none", experts="all", **settings):
        train = dict(
            steps=STEPS, batch=cases.BATCH, parts=named, experts=experts, optimizer=dict(lr=0.01),
            schedule=dict(kind="constant"),
        )  # fmt: skip
        return self.train(self.model(name), adapter, train=train, **settings)

    def export(self, run, command, *arguments, expect=0):
        folder = run.parent / f"{command}-{len(arguments)}"
        return folder, self.moetune(command, run, "--to", folder, *arguments, expect=expect)

    def logits_of(self, model):
        with torch.no_grad():
            return alone(model, cases.documents())

    def before(self, name):
        with torch.no_grad():
            return Oracle(cases.config(self.model(name))).losses(cases.documents())["logits"]

    def constant(self, name):
        """Whether the routers say nothing that a loss hears."""
        return checkpoint.text_settings(self.model(name))["num_experts_per_tok"] == 1

    def test_modules_in_peft(self):
        """Routers, norms, embedding and head go with the adapter as modules_to_save."""

        def check(name):
            tied = checkpoint.text_settings(self.model(name)).get("tie_word_embeddings")
            named = ["norms"] if self.constant(name) else ["router", "norms"]
            named += [] if tied else ["embedding", "head"]
            run = self.run_of(name, named, self.adapter_section(["attention"]))
            folder, _ = self.export(run, "export")
            with safe_open(folder / "adapter_model.safetensors", "pt") as file:
                keys = {key.removeprefix("base_model.model.") for key in file.keys()}
            self.assertEqual("lm_head.weight" in keys, not tied)
            self.assertTrue(json.loads((folder / "adapter_config.json").read_text())["modules_to_save"])
            model = PeftModel.from_pretrained(pretrained(self.model(name)), folder, autocast_adapter_dtype=False)
            self.assert_same(self.logits_of(model), self.own_logits(run), self.before(name))

        self.each(check)

    def test_merge(self):
        """Adapters of attention and trained experts in one model."""

        def check(name):
            if self.family.equations:  # transformers does not compute what its authors wrote
                return
            run = self.run_of(name, ["experts", "norms", "embedding", "head"], self.adapter_section(["attention"]))
            folder, said = self.export(run, "merge")
            self.assertIn("replaced by what trained itself: experts, norms, embedding, head", said)
            self.assert_same(self.logits_of(pretrained(folder)), self.own_logits(run), self.before(name))
            for reader in ("peft", "vllm"):
                _, said = self.export(run, "export", "--for", reader, expect=2)
                self.assertIn("moetune merge writes the model with both", said)

        self.each(check)

    def test_base(self):
        """Frozen weights beside those that trained, without any adapter."""

        def check(name):
            if self.family.equations:
                return
            run = self.run_of(name, ["attention", "norms"])
            folder, _ = self.export(run, "export", "--base")
            self.assert_same(self.logits_of(pretrained(folder)), self.own_logits(run), self.before(name))
            before, after = models.read(self.model(name)), models.read(folder)
            self.assertEqual(before.keys(), after.keys())
            for key, tensor in before.items():
                same = torch.equal(after[key].float(), tensor.float())
                trains = "vision" not in key and "correction_bias" not in key
                moved = trains and parts.part(key) in ("attention", "norms") and ".indexer." not in key
                self.assertEqual(same, not moved, key)

        self.each(check)

    def test_some_experts(self):
        """Those that trained beside those that did not, which are as they were, in one tensor where they lie in one;
        with a base in 4 bits `export --base` has the others as they were held, `merge` as they are."""

        def check(name):
            if self.family.equations:
                return
            for base, experts, command in (
                ("fp32", [0, 2], ("export", "--base")),
                ("fp32", "top 2", ("merge",)),
                ("nf4", "top 2", ("merge",)),
                ("nf4", "top 2", ("export", "--base")),
            ):
                run = self.run_of(name, ["experts"], experts=experts, base=base)
                folder, _ = self.export(run, *command)
                if base == "fp32" or command[0] == "export":
                    self.assert_same(self.logits_of(pretrained(folder)), self.own_logits(run), self.before(name))
                layers = {} if experts == [0, 2] else json.loads((run / "experts.json").read_text())["layers"]
                before, after = (checkpoint.maps(self.family, path) for path in (self.model(name), folder))
                self.assertEqual(before.keys(), after.keys())
                moved = set()  # layers; chosen experts that got no token stay too
                for key, tensor in before.items():
                    place = re.search(r"layers\.(\d+)\..*\.experts\.(\d+)\.", key)
                    same = torch.equal(after[key].float(), tensor.float())
                    if place and int(place[2]) in (layers[place[1]]["experts"] if layers else (0, 2)):
                        moved |= set() if same else {place[1]}
                    elif base == "fp32" or command[0] == "merge":
                        self.assertTrue(same, key)
                self.assertTrue(moved)
                self.assertEqual(moved, set(layers) or moved)

        self.each(check)

    def test_tied(self):
        """One tensor, exported once, whose copy as a head, where the file has one, follows it."""
        self.family = FAMILIES["qwen2_moe"]
        run = self.run_of("dense_layers", list(parts.ALL))
        folder, _ = self.export(run, "export", "--base")
        self.assertNotIn("lm_head.weight", models.read(folder))
        self.assert_same(self.logits_of(pretrained(folder)), self.own_logits(run), self.before("dense_layers"))
        twice = self.folder / "tied_twice"
        models.write("tied_twice", twice)
        train = dict(
            steps=STEPS, batch=cases.BATCH, parts=["embedding", "head"], optimizer=dict(lr=0.01),
            schedule=dict(kind="constant"),
        )  # fmt: skip
        run = self.train(twice, self.adapter_section(["attention"]), train=train)
        for command, arguments in (("merge", ()), ("export", ("--base",))):
            after = models.read(self.export(run, command, *arguments)[0])
            self.assertTrue(torch.equal(after["lm_head.weight"], after["model.embed_tokens.weight"]))
            before = models.read(twice)["model.embed_tokens.weight"]
            self.assertFalse(torch.equal(after["lm_head.weight"].float(), before.float()))
        _, said = self.export(run, "export", expect=2)
        self.assertIn("embedding, head trained (train.parts)", said)


if __name__ == "__main__":
    program.choose_build()
    unittest.main(module="__main__")
