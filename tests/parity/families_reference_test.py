"""Proves the oracle of every family (families/oracle.py): against transformers' own loading of the same folder, against
PEFT, against adapters merged into the files, against finite differences. Needs no moetune.

    .venv/bin/python tests/parity/families_reference_test.py
"""

import json
import math
import os
import shutil
import unittest

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Mxfp4Config
from transformers.utils import logging

import adapter_files
import cases
import compare
import models
import reference
from families import FAMILIES, checkpoint, deepseek_v2_equations
from families.case import EPS, FamilyCase
from families.family import YARN
from families.oracle import Oracle, TransformersNetwork, alone, pretrained

torch.set_num_threads(1)
logging.set_verbosity_error()

# Where the authors of DeepSeek-V2 and transformers do not agree.
APART = {("deepseek_v2", "normalised")}
PEFT_DROPS_EXPERTS = {"qwen2_moe", "llama4_text"}


class FamiliesReferenceTest(FamilyCase):
    def each(self, check):
        """`check(name)` of every shape of every family, or of those whose model_type MOETUNE_TEST_FAMILY names."""
        only = os.environ.get("MOETUNE_TEST_FAMILY", "").split()
        for family in FAMILIES.values():
            for name in family.shapes:
                if not only or family.model_type in only:
                    self.family = family
                    with self.subTest(f"{family.model_type} {name}"):
                        check(name)

    def rewritten(self, name, maps):
        """A copy of the checkpoint that holds `maps` instead, unquantised."""
        folder = self.model(name)
        copy = self.folder / f"copy-{len(list(self.folder.iterdir()))}"
        copy.mkdir()
        config = json.loads((folder / "config.json").read_text())
        config.pop("quantization_config", None)
        (copy / "config.json").write_text(json.dumps(config))
        tensors = checkpoint.layout(self.family, folder).disk(maps)
        models.write_shards(copy, [{key: tensor.contiguous() for key, tensor in tensors.items()}])
        return copy

    def quantised(self, name):
        shape = self.family.shapes[name]
        return shape.fp8 or getattr(shape.layout, "mxfp4", False)

    def apart(self, name):
        return (self.family.model_type, name) in APART

    def test_same_model_as_from_pretrained(self):
        """What is written is what users download: transformers finds every tensor in it, and computes the same."""

        def check(name):
            if self.apart(name):
                return
            folder = self.model(name)
            if self.quantised(name):
                folder = self.rewritten(name, checkpoint.maps(self.family, folder))
            with torch.no_grad():
                expected = alone(pretrained(folder), cases.documents())
                actual = Oracle(cases.config(self.model(name))).losses(cases.documents())["logits"]
            self.assertLess(compare.relative(actual, expected), 2e-6)

        self.each(check)

    def test_mxfp4_equals_transformers(self):
        """transformers decodes the blocks itself, exactly, since every value of theirs is a bf16."""
        self.family = FAMILIES["gpt_oss"]
        folder = self.model("mxfp4")
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.bfloat16,
            attn_implementation="eager",
            experts_implementation="eager",
            quantization_config=Mxfp4Config(dequantize=True),
        )
        maps = checkpoint.layout(self.family, folder).network(checkpoint.maps(self.family, folder))
        for name in ("gate_up_proj", "down_proj"):
            theirs = getattr(model.model.layers[0].mlp.experts, name)
            self.assertTrue(torch.equal(theirs.float(), maps[f"model.layers.0.mlp.experts.{name}"]), name)
        with torch.no_grad():
            expected = alone(model.float().eval(), cases.documents())
            actual = Oracle(cases.config(folder)).losses(cases.documents())["logits"]
        self.assertLess(compare.relative(actual, expected), 2e-6)

    def test_adapters_equal_merged_weights(self):
        """W + scale * B A in the files, read by transformers without any adapter: every map of every family."""

        def check(name):
            if self.apart(name):
                return
            oracle = Oracle(cases.config(self.model(name), self.adapter(name, ["all_linear"])))
            with torch.no_grad():
                folder = self.rewritten(name, oracle.effective())
                expected = alone(pretrained(folder), cases.documents())
                actual = oracle.losses(cases.documents())["logits"]
                base = Oracle(cases.config(self.model(name))).losses(cases.documents())["logits"]
            self.assertLess(compare.relative(actual, expected), 2e-6)
            self.assertGreater(compare.relative(base, actual), 0.05)

        self.each(check)

    def test_attention_gradients_equal_peft(self):
        """PEFT trains adapters on attention in every family."""

        def check(name):
            if self.apart(name) or self.quantised(name):
                return
            # PEFT finds the modules of transformers' text model, which has no wrapper.
            adapter = self.adapter(name, ["attention"], translate=dict)
            model = PeftModel.from_pretrained(
                pretrained(self.model(name)), adapter["from"], is_trainable=True, autocast_adapter_dtype=False
            )
            expected = self.peft_gradients(model)
            self.assertGreater(len(expected), 10)
            actual = reference.run(cases.config(self.model(name), adapter), kind=Oracle)
            compare.assert_close(self, actual, expected, 2e-5)

        self.each(check)

    def test_routed_experts_equal_peft(self):
        """PEFT fuses adapters of single experts at load, and leaves them out without a word in two families."""
        for family in FAMILIES.values():
            if family.model_type == "gpt_oss":  # its experts are fused in PEFT's files too
                continue
            self.family, name = family, next(iter(family.shapes))
            with self.subTest(family.model_type):
                adapter = self.adapter(name, ["attention", "experts"], translate=dict)
                model = PeftModel.from_pretrained(pretrained(self.model(name)), adapter["from"])
                with torch.no_grad():
                    peft = alone(model, cases.documents())
                    actual = Oracle(cases.config(self.model(name), adapter)).losses(cases.documents())["logits"]
                if family.model_type in PEFT_DROPS_EXPERTS:
                    self.assertGreater(compare.relative(actual, peft), 0.1)
                else:
                    self.assertLess(compare.relative(actual, peft), 2e-6)

    def peft_gradients(self, model):
        documents = cases.documents()
        logits_TV = alone(model, documents)
        loss = reference.mean_nll(logits_TV, [torch.tensor(document["labels"]) for document in documents], 1)
        loss.backward()
        result = {"logits": logits_TV.detach(), "loss": loss.detach()[None]}
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                key = name.removeprefix(adapter_files.PREFIX).replace(".default.", ".")
                result["grad/" + key] = parameter.grad
        return result

    def test_fused_expert_gradients_equal_peft(self):
        """gpt-oss: PEFT's own adapters of `target_parameters`, files and gradients."""
        self.family = FAMILIES["gpt_oss"]
        for name in ("plain", "own_layers"):
            adapter = self.adapter(name, ["experts"])
            base = pretrained(self.model(name))
            targets = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
            model = get_peft_model(
                base,
                LoraConfig(
                    r=adapter["rank"], lora_alpha=adapter["alpha"], target_modules=[], target_parameters=targets
                ),
                autocast_adapter_dtype=False,
            )
            given = load_file(f"{adapter['from']}/adapter_model.safetensors")
            own = {key.replace(".default.", "."): tensor for key, tensor in model.named_parameters() if "lora_" in key}
            self.assertEqual(
                {key: list(t.shape) for key, t in own.items()}, {key: list(t.shape) for key, t in given.items()}
            )
            with torch.no_grad():
                for key, tensor in own.items():
                    tensor.copy_(given[key])
            peft = self.peft_gradients(model)
            rank, layout = adapter["rank"], checkpoint.layout(self.family, self.model(name))
            paths = {key.removeprefix("grad/").rsplit(".lora_", 1)[0] for key in peft if key.startswith("grad/")}
            grads = {path: [peft.pop(f"grad/{path}.lora_{side}.weight") for side in "AB"] for path in paths}
            for path, (A_RI, B_OR) in layout.pairs(grads, rank).items():
                peft |= {f"grad/{path}.lora_A.weight": A_RI, f"grad/{path}.lora_B.weight": B_OR}
            actual = reference.run(cases.config(self.model(name), adapter), kind=Oracle)
            compare.assert_close(self, actual, peft, 2e-5)

    def test_finite_differences(self):
        """Directional derivative of the loss in fp64 by all adapters of a group together."""

        def check(name):
            documents, width = cases.documents()[:4], 1e-6
            oracle = Oracle(cases.config(self.model(name), self.adapter(name, ["all_linear"]), compute="fp64"))
            oracle.losses(documents)["total"].backward()
            generator = torch.Generator().manual_seed(1)
            for group in {adapter_files.group(path) for path in oracle.pairs}:
                leaves = [leaf for path, leaf in oracle.leaves.items() if adapter_files.group(path) == group]
                directions = [torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype) for leaf in leaves]
                length = math.sqrt(sum(direction.square().sum().item() for direction in directions))
                values = []
                with torch.no_grad():
                    for sign in (1, -2):  # forth, and twice back
                        for leaf, direction in zip(leaves, directions):
                            leaf += sign * width / length * direction
                        values.append(oracle.losses(documents)["total"].item())
                    for leaf, direction in zip(leaves, directions):
                        leaf += width / length * direction
                measured = (values[0] - values[1]) / (2 * width)
                grads = [(leaf, direction) for leaf, direction in zip(leaves, directions) if leaf.grad is not None]
                derived = sum((leaf.grad * direction).sum().item() for leaf, direction in grads) / length
                self.assertGreater(abs(derived), 1e-6, group)
                self.assertLess(abs(measured - derived), 1e-8 + 1e-5 * abs(derived), group)

        self.each(check)

    def test_inputs_are_hard_enough(self):
        """Unequal loads and an empty expert; the same choices when every weight moves by 1e-5 of itself, so that no tie
        is near."""

        def check(name):
            config = cases.config(self.model(name), self.adapter(name, ["all_linear"]), compute="fp64")
            chosen = self.choices(Oracle(config), config)
            loads = {
                router: torch.bincount(torch.tensor([e for row in rows for e in row]), minlength=experts)
                for router, (rows, experts) in chosen.items()
            }
            self.assertTrue(any(load.min() == 0 for load in loads.values()), loads)
            for router, load in loads.items():
                self.assertGreater(len(set(load.tolist())), 2, router)
            for seed in range(3):
                generator = torch.Generator().manual_seed(seed)
                moved = Oracle(config)
                for tensor in moved.weights.values():
                    with torch.no_grad():
                        tensor *= 1 + 1e-5 * torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
                self.assertEqual(chosen, self.choices(moved, config))

        self.each(check)

    def choices(self, oracle, config):
        """{router: ([sorted experts of each token], number of experts)}."""
        with torch.no_grad():
            routed = oracle.losses(config["documents"])["routed"]
        return {
            router: ([sorted(row) for _, _, chosen_TK in parts for row in chosen_TK.tolist()], parts[0][0].shape[-1])
            for router, parts in routed.items()
        }

    def test_pooled_balance_loss_equals_transformers(self):
        """What transformers adds to the loss itself, in the families whose routers take a softmax."""

        def check(name):
            if self.family.scores != "softmax" or self.family.equations or self.quantised(name):
                return
            config = cases.config(self.model(name), balance="pooled", balance_loss=1.0)
            document, model = config["documents"][0], pretrained(self.model(name))
            ids = torch.tensor([document["input_ids"]])
            with torch.no_grad():
                expected = model(input_ids=ids, output_router_logits=True, use_cache=False).aux_loss
                actual = Oracle(config).losses([document])["balance_loss"]
            self.assertLess(compare.relative(actual, expected), 1e-6)

        self.each(check)

    def test_no_gradient_is_zero_but_that_of_empty_experts(self):
        def check(name):
            result = reference.run(cases.config(self.model(name), self.adapter(name, ["all_linear"])), kind=Oracle)
            empty = [key for key, grad in result.items() if key.startswith("grad/") and not grad.any()]
            self.assertTrue(all(".experts." in key for key in empty), empty)
            self.assertTrue(empty)

        self.each(check)

    def test_precision_leaves_room(self):
        """fp32 and fp64 differ by less than the 1e-5 that the trainer is held to, also after ten steps (in each
        family's first shape)."""

        def check(name):
            steps = 10 if name == next(iter(self.family.shapes)) else 0
            config = cases.config(self.model(name), self.adapter(name, ["all_linear"]), steps=steps, eps=EPS)
            narrow, wide = reference.run(config, kind=Oracle), reference.run(config | {"compute": "fp64"}, kind=Oracle)
            state = lambda tensors: {key: value for key, value in tensors.items() if key.startswith("adapter/")}
            rest = lambda tensors: {key: value for key, value in tensors.items() if not key.startswith("adapter/")}
            for part, bound in ((rest, 1e-5), (state, 1e-4))[: 2 if steps else 1]:
                error, worst = compare.largest(part(narrow), part(wide))
                self.assertLess(error, bound, worst)

        self.each(check)

    def test_short_documents_attend_densely(self):
        """Documents of at most `index_topk` tokens: DeepSeek-V3.2 and GLM-5 without their indexers are DeepSeek-V3."""
        for model_type, name in (
            ("deepseek_v32", "groups"),
            ("glm_moe_dsa", "plain"),
            ("glm_moe_dsa", "shared_choice"),
        ):
            self.family = FAMILIES[model_type]
            folder = self.changed(name, dict(model_type="deepseek_v3"))
            maps = {
                key: tensor.double()
                for key, tensor in checkpoint.maps(self.family, folder).items()
                if ".indexer." not in key
            }
            dense = TransformersNetwork(folder, checkpoint.layout(self.family, folder), torch.float64)
            oracle = Oracle(cases.config(self.model(name), compute="fp64"))
            with torch.no_grad():
                expected = [dense.logits(maps, torch.tensor(document["input_ids"])) for document in cases.documents()]
                actual = oracle.losses(cases.documents())["logits"]
            self.assertLess(compare.relative(actual, torch.cat(expected)), 1e-12, model_type)

    def test_options_matter(self):
        """On these inputs another value of any option that keeps the shapes of the tensors gives other logits."""

        def check(name):
            logits = lambda folder: Oracle(cases.config(folder)).losses(cases.documents())["logits"]
            with torch.no_grad():
                base = logits(self.model(name))
                for option, changes in other_values(checkpoint.text_settings(self.model(name))):
                    changed = logits(self.changed(name, changes))
                    self.assertGreater(compare.relative(changed, base), 1e-4, option)

        self.each(check)

    def changed(self, name, changes):
        """A copy of the checkpoint with other values in config.json."""
        copy = self.folder / f"copy-{len(list(self.folder.iterdir()))}"
        shutil.copytree(self.model(name), copy)
        config = json.loads((copy / "config.json").read_text())
        config.get("text_config", config).update(changes)
        (copy / "config.json").write_text(json.dumps(config))
        return copy

    def test_where_transformers_and_the_authors_of_deepseek_v2_part(self):
        """The same numbers wherever transformers has the equations; each difference by itself."""
        self.family = FAMILIES["deepseek_v2"]
        tokens_T = torch.tensor(cases.documents()[0]["input_ids"])

        def difference(**changes):
            folder = self.changed("groups", changes)
            maps = {key: tensor.double() for key, tensor in checkpoint.maps(self.family, folder).items()}
            ours = deepseek_v2_equations.Network(checkpoint.text_settings(folder), torch.float64)
            theirs = TransformersNetwork(folder, checkpoint.layout(self.family, folder), torch.float64)
            with torch.no_grad():
                return compare.relative(ours.logits(maps, tokens_T), theirs.logits(maps, tokens_T))

        scaling = lambda **mscale: {"rope_scaling": YARN | mscale}
        greedy = dict(topk_method="greedy")
        for changes in ({}, greedy, scaling(mscale=0.7, mscale_all_dim=0.9), scaling(), {"rope_scaling": None}):
            self.assertLess(difference(**changes), 1e-7, changes)
        for changes in (dict(norm_topk_prob=True), scaling(mscale=0.7), scaling(mscale_all_dim=0.7)):
            self.assertGreater(difference(**changes), 1e-3, changes)


def other_values(settings):
    """[(option, {key of config.json: another value})] for what is in `settings` and in force."""
    theta = settings.get("rope_theta") or settings["rope_parameters"]["rope_theta"]
    rotary = settings.get("rope_parameters", {})
    result = [
        ("eps", dict(rms_norm_eps=1e-6)),
        ("top k", dict(num_experts_per_tok=settings["num_experts_per_tok"] + 1)),
        ("theta", dict(rope_parameters=rotary | dict(rope_theta=7 * theta)) if rotary else dict(rope_theta=7 * theta)),
    ]
    if settings.get("rope_scaling"):
        result.append(("scaling", dict(rope_scaling=None, rope_parameters=dict(rope_type="default", rope_theta=theta))))
    if not settings.get("use_sliding_window", True) or not settings.get("sliding_window"):
        settings = settings | dict(sliding_window=None)
    if not settings.get("attn_temperature_tuning"):
        settings = settings | dict(attn_scale=None, floor_scale=None)
    if settings["model_type"] == "deepseek_v2" and settings["norm_topk_prob"]:
        settings = settings | dict(routed_scaling_factor=None)
    if settings.get("n_group", 1) > 1 and settings.get("topk_method") != "greedy":
        result.append(("groups", dict(n_group=1, topk_group=1)))
    if "layer_types" in settings and settings["model_type"] == "gpt_oss":
        other = dict(sliding_attention="full_attention", full_attention="sliding_attention")
        result.append(("layer types", dict(layer_types=[other[kind] for kind in settings["layer_types"]])))
    if settings.get("no_rope_layers") and not settings.get("use_qk_norm"):
        result.append(("layers without", dict(no_rope_layers=[1 - turns for turns in settings["no_rope_layers"]])))
    for key, change in (
        ("sliding_window", lambda value: 100),
        ("attention_chunk_size", lambda value: 100),
        ("attn_temperature_tuning", lambda value: not value),
        ("attn_scale", lambda value: 3 * value),
        ("floor_scale", lambda value: 2 * value),
        ("norm_topk_prob", lambda value: not value),
        ("routed_scaling_factor", lambda value: 2 * value),
        ("partial_rotary_factor", lambda value: value / 2),
        ("rotary_dim", lambda value: value // 2),
        ("clip_qkv", lambda value: None),
        ("index_topk", lambda value: 5),
    ):
        if settings.get(key) is not None:
            changes = {key: change(settings[key])}
            if key == "attention_chunk_size":  # transformers keeps what it derived from the window, if it wrote it
                changes["layer_types"] = settings.get("layer_types")
            if key == "partial_rotary_factor" and rotary:  # transformers writes it twice and reads it here
                changes = dict(rope_parameters=rotary | changes)
            result.append((key, changes))
    return result


if __name__ == "__main__":
    unittest.main()
