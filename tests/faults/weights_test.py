"""Weights, configurations and adapters that are not what they seem: each ends with exit code 2 and names file and
tensor or key, whichever command meets it.

.venv/bin/python tests/faults/weights_test.py [BUILD_FOLDER]
"""

import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest

import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from tiny_checkpoint import write_checkpoint
from tiny_run import CONFIG, TinyRun, program

NAN, INFINITY = float("nan"), float("inf")
EXPERT = "model.layers.1.mlp.experts.3.down_proj.weight"
O_PROJ = "model.layers.0.self_attn.o_proj.weight"


def damage(name, value=NAN):
    """A change of a checkpoint's tensors: the last number of tensor `name` becomes `value`."""

    def change(tensors):
        tensors[name] = tensors[name].clone()
        tensors[name].view(-1)[-1] = value

    return change


class WeightsTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.root = pathlib.Path(tempfile.mkdtemp())
        cls.addClassCleanup(shutil.rmtree, cls.root)
        (cls.root / "sound").mkdir()
        write_checkpoint(cls.root / "sound")
        run = cls.run_on("run", cls.root / "sound")
        run.finish()
        cls.run_folder, cls.model = run.folder / "run", run.folder / "model"
        cls.command("export", cls.run_folder, "--to", cls.root / "adapter", expect=0)

    @classmethod
    def run_on(cls, name, model, **values):
        """A run of one step on a copy of the folder `model`."""
        run = TinyRun(cls.root / name)
        shutil.rmtree(run.folder / "model")
        shutil.copytree(model, run.folder / "model")
        run.values |= {
            "model.weights": "pretrained",
            "train.steps": 1,
            "train.batch": 1,
            "adapter.targets": "[attention]",
            "adapter.dropout": 0,
            "router.bias": "frozen",
            "mtp.loss_weight": 0,
        } | values
        return run

    @classmethod
    def command(cls, *words, expect):
        done = subprocess.run([program(), *map(str, words)], capture_output=True, text=True, timeout=120)
        output = done.stdout + done.stderr
        assert done.returncode == expect, f"{words}: exit code {done.returncode}, expected {expect}:\n{output[-3000:]}"
        return output

    def refused(self, run, *parts, commands=("train",)):
        """Each command ends with exit code 2, says all of `parts`, and saves nothing."""
        for command in commands:
            output = self.command(*run.arguments(command)[1:], expect=2)
            for part in parts:
                self.assertIn(part, output, command)
            self.assertEqual(run.checkpoints(), [])

    def case(self, name, tensors=None, config=None, **values):
        """A run whose checkpoint's tensors and config.json were changed."""
        run = self.run_on(name, self.root / "sound", **values)
        file = run.folder / "model" / "model.safetensors"
        if tensors:
            changed = load_file(file)
            tensors(changed)
            save_file(changed, file, metadata={"format": "pt"})
        if config:
            (run.folder / "model" / "config.json").write_text(
                json.dumps(CONFIG | {"num_nextn_predict_layers": 0} | config)
            )
        return run

    def test_numbers_that_are_none(self):
        kinds = (("nf4", NAN), ("bf16", INFINITY), ("fp32", -INFINITY))
        for i, tensor in enumerate(
            (
                "model.embed_tokens.weight",
                "lm_head.weight",
                "model.norm.weight",
                "model.layers.0.input_layernorm.weight",
                "model.layers.2.self_attn.kv_a_layernorm.weight",
                "model.layers.1.mlp.gate.weight",
                "model.layers.1.mlp.gate.e_score_correction_bias",
                O_PROJ,
                EXPERT,
            )
        ):
            base, value = kinds[i % len(kinds)]
            with self.subTest(tensor=tensor, base=base):
                run = self.case(f"bad {tensor}", damage(tensor, value), **{"model.base": base})
                # What is small is found without reading weights.
                small = "norm" in tensor or "bias" in tensor
                commands = ("train", "validate") if small else ("train",)
                self.refused(run, tensor, "model.safetensors", "NaN or infinite", commands=commands)

    def test_the_packed_cache_hides_none(self):
        """The first run fills the cache and fails; what it left does not let the second one pass."""
        run = self.case("cached", damage(EXPERT), **{"model.cache": self.root / "cache", "model.base": "bf16"})
        self.refused(run, EXPERT, commands=("train", "train"))

    def test_merge_and_export_read_as_training_does(self):
        """The model of a run was damaged since, be it in a tensor that the run had no use for."""
        file = self.model / "model.safetensors"
        sound = file.read_bytes()
        for tensor in ("model.layers.1.mlp.gate.e_score_correction_bias", EXPERT, "unused.weight"):
            tensors = load_file(file) | {"unused.weight": torch.ones(3)}
            damage(tensor)(tensors)
            save_file(tensors, file, metadata={"format": "pt"})
            for words in (("merge", self.run_folder), ("export", self.run_folder, "--base")):
                with self.subTest(tensor=tensor, command=words[0]):
                    to = self.root / "never"
                    output = self.command(*words, "--to", to, expect=2)
                    self.assertIn(tensor, output)
                    self.assertFalse(to.exists())
            file.write_bytes(sound)

    def test_adapter_files(self):
        def adapter(name, tensors=None, **config):
            folder = self.root / name
            shutil.copytree(self.root / "adapter", folder, dirs_exist_ok=True)
            if tensors:
                changed = load_file(folder / "adapter_model.safetensors")
                tensors(changed)
                save_file(changed, folder / "adapter_model.safetensors", metadata={"format": "pt"})
            path = folder / "adapter_config.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | config))
            return folder

        lora_b = "base_model.model.model.layers.0.self_attn.o_proj.lora_B.weight"
        run = self.case("from", **{"adapter.from": adapter("same")})
        run.finish()
        no_json = adapter("no json")
        (no_json / "adapter_config.json").write_text('{"r": 4,\n "lora_alpha"')
        pickle = adapter("pickle")
        (pickle / "adapter_model.safetensors").rename(pickle / "adapter_model.bin")
        for name, folder, parts in (
            ("nan", adapter("nan", damage(lora_b)), (lora_b, "NaN or infinite")),
            ("pissa", adapter("pissa", init_lora_weights="pissa"), ("init_lora_weights", "pissa")),
            ("dora", adapter("dora", use_dora=True), ("use_dora",)),
            ("later", adapter("later", use_something_new=True), ("use_something_new",)),
            ("type", adapter("type", r="4"), ("adapter_config.json", "r is")),
            ("no json", no_json, ("adapter_config.json", "not valid JSON", "line 2")),
            ("pickle", pickle, ("adapter_model.bin", "safetensors")),
            ("a file", pickle / "adapter_config.json", ("is a file",)),
            ("nowhere", self.root / "nowhere", ("nowhere", "no such file")),
        ):
            with self.subTest(name):
                run = self.case(f"from {name}", **{"adapter.from": folder})
                self.refused(run, *parts, commands=("train", "validate"))

    def test_configurations(self):
        yarn = {"type": "yarn", "factor": 4, "original_max_position_embeddings": 64}

        def other_head(tensors):
            tensors["lm_head.weight"] = tensors["lm_head.weight"] * 2

        for name, tensors, config, parts in (
            ("tied", other_head, {"tie_word_embeddings": True}, ("tie_word_embeddings", "lm_head.weight")),
            (
                "two scalings",
                None,
                {"rope_scaling": yarn, "rope_parameters": {"rope_type": "default"}},
                ("rope_scaling", "rope_parameters", "yarn 4 x 64"),
            ),
            ("layers", None, {"num_hidden_layers": 2**32}, ("config.json", "num_hidden_layers is 4294967296")),
            ("experts", None, {"n_routed_experts": 2**62}, ("config.json", "n_routed_experts")),
            ("type", None, {"model_type": 0}, ("config.json", "model_type is 0")),
            ("list", None, {"hidden_size": [32]}, ("config.json", "hidden_size is [32]")),
            ("text", None, {"vocab_size": "1e9"}, ("config.json", "vocab_size is")),
        ):
            with self.subTest(name):
                run = self.case(f"config {name}", tensors, config)
                self.refused(run, *parts, commands=("train", "validate"))
                self.command("inspect", run.folder / "model", expect=0)

    def test_no_json(self):
        run = self.case("no json config")
        (run.folder / "model" / "config.json").write_text('{"model_type": "deepseek_v3",\n"a": }')
        self.refused(run, "config.json", "line 2", commands=("train", "validate"))
        self.command("inspect", run.folder / "model", expect=2)

    def test_the_banner_names_the_rotary_scaling(self):
        for scaling, text in (
            ({}, "rotary   default, theta 10000"),
            (
                {"rope_scaling": {"type": "yarn", "factor": 40, "original_max_position_embeddings": 64}},
                "rotary   yarn 40 x 64 positions, theta 10000",
            ),
        ):
            run = self.case("banner", None, {"max_position_embeddings": 256} | scaling)
            for command in ("validate", "train"):
                shutil.rmtree(run.folder / "run", ignore_errors=True)
                self.assertIn(text, self.command(*run.arguments(command)[1:], expect=0))

    def test_folders_of_links_and_shards(self):
        """A folder of links to files elsewhere trains; shards without an index do when all are there."""
        run = self.case("links")
        model = run.folder / "model"
        elsewhere = self.root / "elsewhere.safetensors"
        shutil.move(model / "model.safetensors", elsewhere)
        (model / "model.safetensors").symlink_to(elsewhere)
        run.finish()

        run = self.case("shards")
        model = run.folder / "model"
        tensors = load_file(model / "model.safetensors")
        (model / "model.safetensors").unlink()
        names = sorted(tensors)
        for part in range(3):
            file = model / f"model-{part + 1:05d}-of-00003.safetensors"
            save_file({name: tensors[name] for name in names[part::3]}, file, metadata={"format": "pt"})
        run.finish()
        shutil.rmtree(run.folder / "run")
        (model / "model-00002-of-00003.safetensors").unlink()
        self.refused(run, "missing are N = 2", commands=("train", "validate"))


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], "-v"])
