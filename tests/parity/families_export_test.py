"""Contract 6 in every family: what moetune exports, readers that are not its writer read back.

    .venv/bin/python tests/parity/families_export_test.py [BUILD_FOLDER] [unittest arguments]

transformers and PEFT load what they can; vLLM and SGLang cannot run here, so that their rules of naming and packing
stand below as their sources have them. MOETUNE_TEST_FAMILY: only these model_types, set apart by spaces.
"""

import json
import os
import re
import unittest

import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file
from transformers.utils import logging

import adapter_files
import cases
import compare
import models
import program
from exported import TOLERANCE, ExportCase
from families import FAMILIES, checkpoint
from families.case import FamilyCase
from families.oracle import Oracle, alone, pretrained

logging.set_verbosity_error()

# Families whose first shape in fp32, in which nothing is rounded, is not the one to take: latent queries, the prefix of
# a multimodal checkpoint, no near tie of the routing after training.
SHAPES = {"deepseek_v3": "plain", "llama4_text": "maverick", "olmoe": "biases"}
SGLANG = {"deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe", "glm4_moe_lite", "glm_moe_dsa", "qwen2_moe"}
SGLANG |= {"qwen3_moe"}
PEFT_DROPS_EXPERTS = {"qwen2_moe", "llama4_text"}
# What leaves a run, in the words of `--for` and of the commands, and the test below that reads it back.
EXPORTS = {"peft": "test_plain", "peft3d": "test_fused", "vllm": "test_vllm", "sglang": "test_sglang"}
EXPORTS |= {"--base": "test_base", "merge": "test_merge", "merge hf-fp8": "test_quantised_on_disk"}
QUANTISED = (("gpt_oss", "mxfp4"), ("minimax_m2", "fp8"), ("deepseek_v32", "fp8"))  # families and shapes
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
KEY = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")


def fp32_shape(family):
    """Name of a shape whose file holds fp32 and that moetune trains."""
    whole = [name for name, shape in family.shapes.items() if shape.dtype == torch.float32 and not shape.refused]
    return SHAPES.get(family.model_type, whole[0])


def exports(family):
    """Those of EXPORTS that the tests below read back for this family; the rest they see refused."""
    fp8 = any(name == family.model_type and FAMILIES[name].shapes[shape].fp8 for name, shape in QUANTISED)
    without = {"sglang": family.model_type in SGLANG, "merge hf-fp8": fp8}
    return [export for export in EXPORTS if without.get(export, True)]


def expert(path, number, leaf):
    return f"{path}.{number}.{leaf}"


class FamiliesExportTest(ExportCase, FamilyCase):
    def each(self, check):
        only = os.environ.get("MOETUNE_TEST_FAMILY", "").split()
        for family in FAMILIES.values():
            if not only or family.model_type in only:
                self.family, name = family, fp32_shape(family)
                with self.subTest(f"{family.model_type} {name}"):
                    check(name)

    def run_of(self, name, base="fp32", targets=("all_linear",), **changes):
        """A run on the family's shape; one for the same arguments."""
        key = json.dumps([self.family.model_type, name, base, targets, changes], sort_keys=True)
        runs = self.__class__.__dict__.get("runs")
        if runs is None:
            runs = self.__class__.runs = {}
        if key not in runs:
            section = self.adapter_section(list(targets), **changes)
            runs[key] = self.train(self.model(name), section, base=base)
        return runs[key]

    def export(self, run, name, *arguments):
        """(folder, what was said)"""
        folder = run.parent / name
        return folder, self.moetune("export", run, "--to", folder, *arguments)

    def oracle(self, model, adapter=None):
        with torch.no_grad():
            return Oracle(cases.config(model, {"from": str(adapter)} if adapter else None))

    def oracle_logits(self, model, adapter=None):
        with torch.no_grad():
            return self.oracle(model, adapter).losses(cases.documents())["logits"]

    def deltas(self, run, name):
        """{map: s B A} of the plain export: each map its own rank, and s by that."""
        folder = run.parent / "plain"
        if not folder.exists():
            self.export(run, "plain")
        settings, adapter = json.loads((folder / "adapter_config.json").read_text()), adapter_files.read(folder)
        layout = checkpoint.layout(self.family, self.model(name))
        if settings["target_parameters"] == ["mlp.experts.gate_up_proj"]:  # alone, it is the wrapper itself
            adapter.pairs = {
                re.sub(r"\.experts$", ".experts.base_layer", path): adapter.pairs[path] for path in adapter.pairs
            }
        deltas = {}
        for path, (A_RI, B_OR) in layout.pairs(adapter.pairs, adapter.rank).items():
            rank = len(A_RI)
            deltas[path] = settings["lora_alpha"] / (rank**0.5 if settings["use_rslora"] else rank) * (B_OR @ A_RI)
        return deltas

    def test_plain(self):
        """The keys of interface.md, numbers from which the logits of the run follow, and moetune goes on from them."""

        def check(name):
            run = self.run_of(name)
            folder, said = self.export(run, "plain")
            layout = self.family.shapes[name].layout or self.family.layout
            maps = adapter_files.targeted(checkpoint.maps(self.family, self.model(name)), ["all_linear"])
            keys = {f"base_model.model.{path}.lora_{side}.weight": torch.zeros(1, 1) for path in maps for side in "AB"}
            if self.family.model_type == "gpt_oss":
                keys = layout.adapter(keys)
            self.assertEqual(set(load_file(folder / "adapter_model.safetensors")), set(keys))
            settings = json.loads((folder / "adapter_config.json").read_text())
            if self.family.model_type == "gpt_oss":
                expected = ["mlp.experts.down_proj", "mlp.experts.gate_up_proj"]
                self.assertEqual(settings["target_parameters"], expected)
            else:
                self.assertIsNone(settings["target_parameters"])
            self.assert_same(
                self.oracle_logits(self.model(name), folder), self.own_logits(run), self.oracle_logits(self.model(name))
            )
            goes_on = cases.config(self.model(name), self.adapter_section(["all_linear"]) | {"from": str(folder)})
            self.assertLess(compare.relative(program.run(goes_on)["logits"], self.own_logits(run)), TOLERANCE)
            if self.family.model_type in PEFT_DROPS_EXPERTS:
                self.assertIn("drops adapters of single experts", said)
            elif any(adapter_files.group(path) in ("dense_mlp", "shared_expert") for path in maps):
                self.assertIn("drops these without a word", said)
            self.assertIn("what readers make of it", said)

        self.each(check)

    def test_adapters_of_chosen_experts_go_on(self):
        """`adapter.from` takes an export of some experts back, bit by bit: a pair an expert, and one for all of them."""
        for model_type in ("mixtral", "gpt_oss"):
            self.family = FAMILIES[model_type]
            name, chosen, joint = fp32_shape(self.family), [1, 4, 6], model_type == "gpt_oss"
            narrow = dict(targets=["experts"], experts=chosen)
            with self.subTest(model_type):
                folder, _ = self.export(self.run_of(name, **narrow), "plain")
                first = load_file(folder / "adapter_model.safetensors")
                # At this rate nothing moves.
                still = dict(steps=1, batch=cases.BATCH, optimizer=dict(lr=0.0), schedule=dict(kind="constant"))
                section = self.adapter_section(**narrow) | {"from": str(folder)}
                for ranks, mesh in ((1, {}), (2, dict(ep=2))):
                    run = self.train(self.model(name), section, base="fp32", ranks=ranks, train=still, mesh=mesh)
                    again = load_file(self.export(run, "plain")[0] / "adapter_model.safetensors")
                    self.assertEqual(again.keys(), first.keys())
                    for key, tensor in first.items():
                        self.assertTrue(torch.equal(again[key], tensor), key)
                moved = {path for path, delta in self.deltas(run, name).items() if delta.any()}
                self.assertEqual({int(re.search(r"experts\.(\d+)", path)[1]) for path in moved}, set(chosen))
                # What the file has beside the experts that the recipe chooses would be lost.
                fewer = self.folder / f"fewer-{model_type}.yaml"
                recipe = yaml.safe_load((run.parent / "recipe.yaml").read_text())
                recipe["run"]["dir"], recipe["adapter"]["experts"] = str(fewer.with_suffix("")), chosen[:2]
                fewer.write_text(yaml.safe_dump(recipe))
                said = self.moetune("train", fewer, expect=2, ranks=2)
                self.assertIn("adapts expert 6, which" if joint else "experts.6.", said)

    def test_plain_in_peft(self):
        """PEFT reads what the report does not say that it drops."""

        def check(name):
            dropped = self.family.model_type in PEFT_DROPS_EXPERTS
            targets = ["attention"] if dropped else ["attention", "experts"]
            run = self.run_of(name, targets=targets, ranks={"o_proj": 2})
            folder, said = self.export(run, "plain")
            self.assertNotIn("without a word", said)
            self.assert_same(self.peft_logits(name, folder), self.own_logits(run), self.oracle_logits(self.model(name)))

        self.each(check)

    def peft_logits(self, name, folder):
        model = PeftModel.from_pretrained(pretrained(self.model(name)), folder, autocast_adapter_dtype=False)
        with torch.no_grad():
            return alone(model, cases.documents())

    def test_fused(self):
        """--for peft3d: everything survives in PEFT on transformers 5, dense maps and shared experts too."""

        def check(name):
            for changes in (
                dict(),
                dict(rslora=True, ranks={"o_proj": 2}),
                dict(targets=["attention", "experts." + self.leaves()[-1]]),
                dict(targets=["experts." + self.leaves()[0]]),
            ):
                with self.subTest(f"{self.family.model_type} {changes}"):
                    run = self.run_of(name, **changes)
                    folder, said = self.export(run, "fused", "--for", "peft3d")
                    self.assertNotIn("without a word", said)
                    self.assert_same(
                        self.peft_logits(name, folder), self.own_logits(run), self.oracle_logits(self.model(name))
                    )

        self.each(check)

    def leaves(self):
        """Leaf names of the family's experts: gate (or gate and up) first, down last."""
        if self.family.model_type == "gpt_oss":
            return ["gate_up_proj", "down_proj"]
        return [self.family.layout.gate, self.family.layout.up, self.family.layout.down]

    def served(self, run, reader):
        """(settings, {module: [A, B]}) of an export for a server, with the checks that both make."""
        folder, said = self.export(run, reader, "--for", reader)
        settings = json.loads((folder / "adapter_config.json").read_text())
        self.assertEqual((settings["bias"], settings["modules_to_save"]), ("none", None))
        self.assertEqual(settings["lora_alpha"], settings["r"])
        self.assertFalse(settings["use_rslora"] or settings["use_dora"])
        self.assertEqual((settings["rank_pattern"], settings["alpha_pattern"]), ({}, {}))
        self.assertIsInstance(settings["target_modules"], list)
        modules = {}
        for key, tensor in load_file(folder / "adapter_model.safetensors").items():
            match = KEY.fullmatch(key)
            self.assertTrue(match, key)
            modules.setdefault(match[1], {})[match[2]] = tensor
        return settings, modules, said

    def assert_deltas(self, served, run, name):
        """`served`: {map: B A}. Every map of the trained model, to the last bits."""
        expected = self.deltas(run, name)
        for path, delta in expected.items():
            error = (served.pop(path, torch.zeros_like(delta)) - delta).abs().max()
            self.assertLess(error, 1e-5 * max(1.0, delta.abs().max().item()), path)
        for path, delta in served.items():
            self.assertFalse(delta.any(), path)

    def vllm_deltas(self, name, settings, modules):
        """As vllm/lora does: modules by their whole name; experts of a layer packed, all or none."""
        rank = settings["r"]
        prefix = getattr(checkpoint.layout(self.family, self.model(name)), "wrapper", "")
        self.assertTrue(all(path.startswith(prefix) for path in modules))
        modules = {path.removeprefix(prefix): pair for path, pair in modules.items()}
        maps = checkpoint.maps(self.family, self.model(name))
        leaves, deltas = self.leaves(), {}
        experts = {path.partition(".experts")[0] + ".experts" for path in modules if ".experts" in path}
        for path in experts:
            names = [other for other in maps if other.startswith(path + ".") and other.endswith(leaves[-1] + ".weight")]
            if self.family.model_type == "gpt_oss":  # is_3d_moe_weight
                for module, leaf in ((path + ".base_layer", leaves[0]), (path, leaves[1])):
                    pair = modules.pop(module)
                    A_ErI, B_OrE = pair["A"].view(len(names), rank, -1), pair["B"].view(-1, rank, len(names))
                    deltas |= {expert(path, e, leaf): B_OrE[..., e] @ A_ErI[e] for e in range(len(names))}
            else:
                for number in range(len(names)):
                    for leaf in leaves:
                        pair = modules.pop(expert(path, number, leaf))
                        self.assertEqual((pair["A"].shape[0], pair["B"].shape[1]), (rank, rank))
                        deltas[expert(path, number, leaf)] = pair["B"] @ pair["A"]
        for path, pair in modules.items():
            self.assertIn(path + ".weight", maps)  # an unknown module is an error
            self.assertEqual(pair["A"].shape[0], rank)
            deltas[path] = pair["B"] @ pair["A"]
        return deltas

    def test_vllm(self):
        def check(name):
            for changes in (
                dict(rslora=True, ranks={"o_proj": 2}),
                dict(targets=["o_proj", "experts." + self.leaves()[0]]),
            ):
                with self.subTest(f"{self.family.model_type} {changes}"):
                    run = self.run_of(name, **changes)
                    settings, modules, said = self.served(run, "vllm")
                    largest = next(allowed for allowed in VLLM_RANKS if allowed >= settings["r"])
                    self.assertRegex(said, rf"vllm serve \S+ --enable-lora --max-lora-rank {largest} --lora-modules ")
                    self.assert_deltas(self.vllm_deltas(name, settings, modules), run, name)

        self.each(check)

    def sglang_deltas(self, name, settings, modules):
        """As sglang/srt/lora does: a layer's number and a leaf name say where a tensor belongs, experts by theirs; what
        reads the same input is packed and must be there together."""
        packs = (("q_proj", "k_proj", "v_proj"), ("q_a_proj", "kv_a_proj_with_mqa"), ("gate_proj", "up_proj"))
        known = {leaf for pack in packs for leaf in pack} | {"o_proj", "q_b_proj", "kv_b_proj", "down_proj"}
        self.assertLessEqual(set(settings["target_modules"]), known)
        for path, pair in modules.items():
            front, _, leaf = path.rpartition(".")
            self.assertIn(leaf, known)
            self.assertRegex(path, r"layers\.\d+\.")
            self.assertEqual((pair["A"].shape[0], pair["B"].shape[1]), (settings["r"],) * 2)
            for pack in packs:
                if leaf in pack:
                    self.assertTrue(all(f"{front}.{other}" in modules for other in pack), path)
        return {path: pair["B"] @ pair["A"] for path, pair in modules.items()}

    def test_sglang(self):
        def check(name):
            run = self.run_of(name, targets=["o_proj", "experts." + self.leaves()[0]])
            if self.family.model_type not in SGLANG:
                said = self.moetune("export", run, "--to", run.parent / "sglang", "--for", "sglang", expect=2)
                self.assertIn("no version of SGLang is known to load adapters", said)
                self.assertFalse((run.parent / "sglang").exists())
                return
            settings, modules, said = self.served(run, "sglang")
            self.assertRegex(said, r"python -m sglang.launch_server --model-path \S+ --enable-lora ")
            self.assert_deltas(self.sglang_deltas(name, settings, modules), run, name)

        self.each(check)

    def test_merge(self):
        """transformers' logits of the merged model, laid down as the original is."""

        def check(name):
            run = self.run_of(name)
            self.moetune("merge", run, "--to", run.parent / "merged")
            self.assert_same(
                self.oracle_logits(run.parent / "merged"), self.own_logits(run), self.oracle_logits(self.model(name))
            )
            merged, original = models.read(run.parent / "merged"), models.read(self.model(name))
            shapes = lambda tensors: {key: (tensor.shape, tensor.dtype) for key, tensor in tensors.items()}
            self.assertEqual(shapes(merged), shapes(original))
            with torch.no_grad():
                theirs = alone(pretrained(run.parent / "merged"), cases.documents())
            if self.family.model_type != "deepseek_v2":
                self.assertLess(compare.relative(theirs, self.own_logits(run)), TOLERANCE)

        self.each(check)

    def test_base(self):
        """The NF4 weights that were trained on, dense again: with the plain adapter they give the logits of the run."""

        def check(name):
            run = self.run_of(name, base="nf4")
            folder, _ = self.export(run, "plain")
            base, said = self.export(run, "base", "--base")
            self.assert_same(
                self.oracle_logits(base, folder), self.own_logits(run), self.oracle_logits(self.model(name), folder)
            )
            exported, original = models.read(base), models.read(self.model(name))
            self.assertEqual(exported.keys(), original.keys())
            for key in original:
                if key.startswith(("vision_model.", "multi_modal_projector.")):
                    self.assertTrue(torch.equal(exported[key], original[key]), key)
                    self.assertIn("copied from the source", said)

        self.each(check)

    def test_quantised_on_disk(self):
        """MXFP4 and FP8 checkpoints leave as bf16, each map W + s B A rounded once; FP8 ones as FP8 again, too."""
        for model_type, name in QUANTISED:
            self.family = FAMILIES[model_type]
            with self.subTest(f"{model_type} {name}"):
                run = self.run_of(name)
                deltas, original = self.deltas(run, name), checkpoint.maps(self.family, self.model(name))
                exact = {
                    key: tensor.float() + deltas.get(key.removesuffix(".weight"), 0.0)
                    for key, tensor in original.items()
                }
                self.moetune("merge", run, "--to", run.parent / "merged")
                merged = checkpoint.maps(self.family, run.parent / "merged")
                self.assertEqual(merged.keys(), original.keys())
                settings = json.loads((run.parent / "merged" / "config.json").read_text())
                self.assertNotIn("quantization_config", settings)
                for key, tensor in merged.items():
                    error = (tensor.float() - exact[key]).abs()
                    self.assertTrue((error <= exact[key].abs() * 2.0**-8 * 1.001 + 1e-6).all(), key)
                self.oracle_logits(run.parent / "merged")
                if not self.family.shapes[name].fp8:
                    said = self.moetune("merge", run, "--to", run.parent / "no", "--for", "hf-fp8", expect=2)
                    self.assertIn("are not in FP8 blocks", said)
                    continue
                self.check_fp8(run, name, deltas)

    def check_fp8(self, run, name, deltas):
        folder = run.parent / "fp8"
        self.moetune("merge", run, "--to", folder, "--for", "hf-fp8")
        settings = json.loads((folder / "config.json").read_text())
        self.assertEqual(settings["quantization_config"]["weight_block_size"], [128, 128])
        raw, source = {}, {}
        for tensors, place in ((raw, folder), (source, self.model(name))):
            for file in place.glob("*.safetensors"):
                tensors |= load_file(file)
        kinds = lambda tensors: {key: (tensor.shape, tensor.dtype) for key, tensor in tensors.items()}
        self.assertEqual(kinds(raw), kinds(source))

        def each_its_scale(tensors, key):
            scales = tensors[key + "_scale_inv"].repeat_interleave(128, 0).repeat_interleave(128, 1)
            return scales[: tensors[key].shape[0], : tensors[key].shape[1]]

        for key, tensor in raw.items():
            path = key.removesuffix("_scale_inv").removesuffix(".weight")
            if not deltas.get(path, torch.zeros(1)).any():
                self.assertTrue(torch.equal(tensor.float(), source[key].float()), key)
            elif not key.endswith("_scale_inv"):
                scales = each_its_scale(raw, key)
                # e4m3 has three bits behind the point, and steps of 2^-9 below its smallest normal number.
                exact = source[key].float() * each_its_scale(source, key) + deltas[path]
                error = (tensor.float() * scales - exact).abs()
                self.assertTrue((error <= exact.abs() * 2.0**-4 * 1.001 + scales * 2.0**-10 * 1.001).all(), key)
                self.assertTrue((tensor.float().abs() <= 448).all(), key)
        # moetune's own loader, of which the logits are those of the decoded blocks.
        config = cases.config(folder, self.adapter(name, ["attention"]))
        expected = Oracle(config).losses(cases.documents())["logits"].detach()
        self.assertLess(compare.relative(program.run(config)["logits"], expected), TOLERANCE)


if __name__ == "__main__":
    torch.set_num_threads(1)
    program.choose_build()
    unittest.main()
