"""Contract 6: what moetune exports, PEFT and transformers read back with the same logits.

    .venv/bin/python tests/parity/export_test.py [BUILD_FOLDER] [unittest arguments]

On the DeepSeek-V3 checkpoints of models.py; families_export_test.py has every other family.
"""

import json
import pathlib
import unittest

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import DeepseekV3ForCausalLM
from transformers.utils import logging

import adapter_files
import cases
import compare
import models
import program
from exported import TOLERANCE, ExportCase

logging.set_verbosity_error()

EXPERT_LEAVES = ("gate_proj", "up_proj", "down_proj")


class ExportTest(ExportCase):
    def logits(self, model):
        """The same of a model of transformers."""
        with torch.no_grad():
            return torch.cat(
                [
                    model(input_ids=torch.tensor(document["input_ids"])[None], use_cache=False).logits[0]
                    for document in cases.documents()
                ]
            )

    def load(self, folder, adapter=None):
        """The model in `folder` in fp32, with an adapter if there is one; every tensor of the model must be in the
        folder."""
        model, found = DeepseekV3ForCausalLM.from_pretrained(
            folder, dtype=torch.float32, experts_implementation="eager", output_loading_info=True
        )
        self.assertFalse(found["missing_keys"])
        return PeftModel.from_pretrained(model, adapter, autocast_adapter_dtype=False) if adapter else model

    def test_peft_reads_adapter_on_exported_base(self):
        """NF4 bases: the base that the adapter was trained on is the dequantised one, and only on it do the logits
        agree."""
        for name, base, section in (
            ("groups", "fp32", self.adapter_section(["attention", "experts"])),
            ("groups", "nf4", self.adapter_section(["attention", "experts"])),
            (
                "groups",
                "fp32",
                self.adapter_section(["attention", "experts"], ranks={f"experts.{leaf}": 2 for leaf in EXPERT_LEAVES}),
            ),
            ("groups", "fp32", self.adapter_section(["q_a_proj", "experts.down_proj"])),
            ("fp8", "nf4_double", self.adapter_section(["attention", "experts"])),
            ("plain", "nf4", self.adapter_section(["attention"], rslora=True, ranks={"o_proj": 2})),
            ("plain", "bf16", self.adapter_section(["attention", "experts"], ranks={"q_proj": 7})),
        ):
            with self.subTest(f"{name} {base} {section}"):
                run = self.train(self.model(name), section, base=base)
                self.moetune("export", run, "--to", run.parent / "adapter")
                self.moetune("export", run, "--to", run.parent / "base", "--base")
                base_logits = self.logits(self.load(run.parent / "base"))
                self.assert_same(
                    self.logits(self.load(run.parent / "base", run.parent / "adapter")),
                    self.own_logits(run),
                    base_logits,
                )

    def test_experts_of_two_ranks(self):
        """Each rank saves the experts it holds; the export has them all, each under its number."""
        run = self.train(self.model("groups"), self.adapter_section(["experts"]), ranks=2, mesh={"ep": 2})
        self.moetune("export", run, "--to", run.parent / "adapter")
        self.assert_same(
            self.logits(self.load(self.model("groups"), run.parent / "adapter")),
            self.own_logits(run),
            self.logits(self.load(self.model("groups"))),
        )

    def test_vllm_form_in_peft(self):
        """One rank, scales in B, zeros for what was not trained: PEFT reads it as well, and what it cannot read as
        trained too."""
        base_logits = self.logits(self.load(self.model("groups")))
        for section in (
            self.adapter_section(["o_proj", "experts.up_proj"], rslora=True, ranks={"o_proj": 2}),
            self.adapter_section(["experts.gate_proj", "experts.up_proj"]),
            self.adapter_section(["experts"], rslora=True),
            self.adapter_section(["experts"], ranks={"experts.down_proj": 2}),
        ):
            with self.subTest(section):
                run = self.train(self.model("groups"), section)
                self.assertIn("--for vllm", self.moetune("export", run, "--to", run.parent / "as-trained"))
                self.moetune("export", run, "--to", run.parent / "adapter", "--for", "vllm")
                settings = json.loads((run.parent / "adapter" / "adapter_config.json").read_text())
                self.assertEqual((settings["r"], settings["lora_alpha"], settings["use_rslora"]), (4, 4, False))
                self.assert_same(
                    self.logits(self.load(self.model("groups"), run.parent / "adapter")),
                    self.own_logits(run),
                    base_logits,
                )

    def test_exported_adapter_goes_on(self):
        """moetune reads its own export, dense maps and shared experts included, and the report names what PEFT would
        drop."""
        run = self.train(self.model("groups"), self.adapter_section(["all_linear"]))
        report = self.moetune("export", run, "--to", run.parent / "adapter")
        for name in ("model.layers.0.mlp.gate_proj", "mlp.shared_experts.down_proj", "self_attn.kv_b_proj"):
            self.assertIn(name, report)
        exported = adapter_files.read(run.parent / "adapter")
        expected = adapter_files.targeted(models.read(self.model("groups")), ["all_linear"])
        self.assertEqual(exported.pairs.keys(), expected.keys())
        config = cases.config(
            self.model("groups"), self.adapter_section(["all_linear"]) | {"from": str(run.parent / "adapter")}
        )
        self.assertLess(compare.relative(program.run(config)["logits"], self.own_logits(run)), TOLERANCE)

    def test_merge(self):
        """transformers loads the merged model; fp32 weights stay fp32, so the logits are those of the run."""
        for name, targets, mtp in (("groups", ["all_linear"], 0.0), ("mtp", ["all_linear"], 0.3)):
            with self.subTest(name):
                run = self.train(self.model(name), self.adapter_section(targets), mtp={"loss_weight": mtp})
                self.moetune("merge", run, "--to", run.parent / "merged")
                self.assert_same(
                    self.logits(self.load(run.parent / "merged")),
                    self.own_logits(run),
                    self.logits(self.load(self.model(name))),
                )
                merged, original = models.read(run.parent / "merged"), models.read(self.model(name))
                self.assertEqual(merged.keys(), original.keys())
                projection = lambda key: adapter_files.is_projection(key)
                self.assertTrue(all(torch.equal(merged[key], original[key]) for key in original if not projection(key)))
                self.assertTrue(
                    all(
                        not torch.equal(merged[key], original[key])
                        for key in original
                        if projection(key) and ".experts." not in key
                    )
                )

    def test_merge_of_bf16_and_fp8(self):
        """Each weight is W + s B A of the exported adapter, rounded to bf16 once."""
        for name in ("plain", "fp8"):
            with self.subTest(name):
                run = self.train(self.model(name), self.adapter_section(["attention", "experts"], rslora=True))
                self.moetune("export", run, "--to", run.parent / "adapter")
                self.moetune("merge", run, "--to", run.parent / "merged")
                adapter = adapter_files.read(run.parent / "adapter")
                expected, merged = models.read(self.model(name)), models.read(run.parent / "merged")
                for path, (A_RI, B_OR) in adapter.pairs.items():
                    exact = expected[path + ".weight"].double() + adapter.scale * (B_OR.double() @ A_RI.double())
                    error = (merged[path + ".weight"].double() - exact).abs()
                    self.assertTrue((error <= exact.abs() * 2.0**-8 * 1.001 + 1e-6).all(), path)
                    self.assertEqual(merged[path + ".weight"].dtype, torch.bfloat16)
                    expected[path + ".weight"] = merged[path + ".weight"]
                self.assertEqual(merged.keys(), expected.keys())
                self.assertTrue(all(torch.equal(merged[key], expected[key]) for key in expected))
                self.assertNotIn("quantization_config", json.loads((run.parent / "merged" / "config.json").read_text()))
                self.load(run.parent / "merged")

    def test_router_biases_travel(self):
        """Moved biases are in the merged model and in the exported base, and beside the adapter."""
        run = self.train(
            self.model("groups"), self.adapter_section(["attention"]), router={"bias": "update", "bias_rate": 0.3}
        )
        for command in (
            ("merge", run, "--to", run.parent / "merged"),
            ("export", run, "--to", run.parent / "base", "--base"),
            ("export", run, "--to", run.parent / "adapter"),
        ):
            self.moetune(*command)
        expected = self.own_logits(run)
        self.assertLess(compare.relative(self.logits(self.load(run.parent / "merged")), expected), TOLERANCE)
        self.assertLess(
            compare.relative(self.logits(self.load(run.parent / "base", run.parent / "adapter")), expected), TOLERANCE
        )
        self.assertGreater(
            compare.relative(self.logits(self.load(self.model("groups"), run.parent / "adapter")), expected), 0.01
        )
        biases = load_file(run.parent / "adapter" / "router_bias.safetensors")
        merged = models.read(run.parent / "merged")
        self.assertEqual(sorted(biases), [f"model.layers.{layer}.mlp.gate.e_score_correction_bias" for layer in (1, 2)])
        self.assertTrue(all(torch.equal(merged[name], bias) for name, bias in biases.items()))

    def test_router_biases_leave_with_trained_routers(self):
        """As buffers of the modules that PEFT puts in place: the base model is the one that training began with."""
        router = {"train": "full", "bias": "update", "bias_rate": 0.3}
        run = self.train(self.model("groups"), self.adapter_section(["attention"]), router=router)
        folder = run.parent / "adapter"
        said = self.moetune("export", run, "--to", folder)
        self.assertIn("modules_to_save", said)
        self.assertNotIn("biases", said)
        self.assertFalse((folder / "router_bias.safetensors").exists())
        loaded = self.logits(self.load(self.model("groups"), folder))
        self.assertLess(compare.relative(loaded, self.own_logits(run)), TOLERANCE)
        self.moetune("export", run, "--to", run.parent / "served", "--for", "vllm")
        self.assertEqual(len(load_file(run.parent / "served" / "router_bias.safetensors")), 2)

    def test_trained_weights(self):
        """`adapter: none`: from a checkpoint, and from random weights, which is how a base trained from scratch
        leaves."""
        for name, weights, mtp in (("groups", "pretrained", 0.0), ("mtp", "pretrained", 0.3), ("mtp", "random", 0.3)):
            with self.subTest(f"{name} {weights}"):
                run = self.train(self.model(name), "none", weights=weights, mtp={"loss_weight": mtp})
                self.moetune("export", run, "--to", run.parent / "model", "--base")
                actual = self.logits(self.load(run.parent / "model"))
                self.assert_same(actual, self.own_logits(run), self.logits(self.load(self.model(name))))

    def test_trained_weights_merge(self):
        """`merge` of a run of weights: the trained weights in the source's dtypes and, in files of at most 40 kB, as
        transformers finds them by the index that it would have written itself."""
        run = self.train(self.model("groups"), "none", weights="pretrained")
        report = self.moetune("merge", run, "--to", run.parent / "merged", "--max-shard-gb", "4e-5")
        self.assertIn("trained weights of step", report)
        folder = run.parent / "merged"
        self.assert_same(
            self.logits(self.load(folder)), self.own_logits(run), self.logits(self.load(self.model("groups")))
        )
        merged, original = models.read(folder), models.read(self.model("groups"))
        self.assertEqual({n: t.dtype for n, t in merged.items()}, {n: t.dtype for n, t in original.items()})
        shards = sorted(folder.glob("model-*.safetensors"))
        self.assertGreater(len(shards), 3)
        largest = max(tensor.nbytes for tensor in merged.values())
        self.assertTrue(all(sum(t.nbytes for t in load_file(s).values()) <= max(40_000, largest) for s in shards))
        # Of the same model transformers' own writer names total size, tensors and files in the same way.
        self.load(folder).save_pretrained(run.parent / "theirs", max_shard_size="40KB")
        read = lambda path: json.loads((path / "model.safetensors.index.json").read_text())
        ours, theirs = read(folder), read(run.parent / "theirs")
        self.assertEqual(ours.keys(), theirs.keys())
        self.assertEqual(ours["metadata"].keys(), theirs["metadata"].keys())
        self.assertEqual(ours["metadata"]["total_size"], sum(tensor.nbytes for tensor in merged.values()))
        self.assertEqual(set(ours["weight_map"].values()), {shard.name for shard in shards})
        self.assertRegex(shards[0].name, r"^model-00001-of-\d{5}\.safetensors$")
        self.assertRegex(min(theirs["weight_map"].values()), r"^model-00001-of-\d{5}\.safetensors$")

    def test_trained_weights_of_fp8(self):
        """A run of weights on an FP8 checkpoint: bf16 by default, FP8 blocks again on request."""
        run = self.train(self.model("fp8"), "none", weights="pretrained")
        self.moetune("merge", run, "--to", run.parent / "bf16")
        self.moetune("merge", run, "--to", run.parent / "fp8", "--for", "hf-fp8")

        def stored(folder):
            files = sorted(pathlib.Path(folder).glob("*.safetensors"))
            return {name: tensor for file in files for name, tensor in load_file(file).items()}

        wide, blocks = stored(run.parent / "bf16"), stored(run.parent / "fp8")
        kinds = lambda tensors: {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
        self.assertEqual(kinds(blocks), kinds(stored(self.model("fp8"))))
        scaled = [name for name in blocks if name + "_scale_inv" in blocks]
        self.assertTrue(scaled)
        for name in scaled:
            scale = blocks[name + "_scale_inv"].double().repeat_interleave(128, 0).repeat_interleave(128, 1)
            held = blocks[name].double() * scale[: wide[name].shape[0], : wide[name].shape[1]]
            error = (held - wide[name].double()).abs()
            # Half a step of e4m3, and of bf16.
            self.assertTrue(
                (error <= wide[name].double().abs() * (2.0**-4 + 2.0**-8) + scale.max() * 2.0**-10).all(), name
            )

    def test_nothing_is_written_over(self):
        run = self.train(self.model("groups"), self.adapter_section(["attention"]))
        before = {path: path.read_bytes() for path in pathlib.Path(self.model("groups")).iterdir()}
        for command in (
            ("export", run, "--to", self.model("groups"), "--base"),
            ("merge", run, "--to", self.model("groups")),
            ("export", run, "--to", run),
        ):
            self.assertIn("nothing was changed", self.moetune(*command, expect=2))
        self.assertEqual(before, {path: path.read_bytes() for path in pathlib.Path(self.model("groups")).iterdir()})
        for _ in range(2):
            self.moetune("export", run, "--to", run.parent / "adapter")


if __name__ == "__main__":
    torch.set_num_threads(1)
    program.choose_build()
    unittest.main()
