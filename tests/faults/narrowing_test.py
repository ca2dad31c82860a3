"""Adapters and trained weights of some layers and some experts: what is chosen, saved, resumed and exported; no layout
changes the result.

.venv/bin/python tests/faults/narrowing_test.py [BUILD_FOLDER]
"""

import json
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

import torch

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from safetensors import safe_open
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_torch

from tiny_run import TinyRun, program

CONSTANT = {"train.schedule": "{kind: constant}", "adapter.targets": "[experts]", "router.bias": "frozen"}


class NarrowingTest(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)

    def exported(self, run):
        """{module path: [layer, expert]} of the adapters of an export, experts alone."""
        to = self.folder / "export"
        subprocess.run([program(), "export", run.folder / "run", "--to", to], check=True, capture_output=True)
        with safe_open(to / "adapter_model.safetensors", "np") as file:
            found = [re.search(r"layers\.(\d+)\.mlp\.experts\.(\d+)\.", name) for name in file.keys()]
        shutil.rmtree(to)
        return {(int(match[1]), int(match[2])) for match in found}

    def test_listed_layers_and_experts(self):
        """On four ranks of two experts each: one holds none of the three, and the checkpoint is that of one rank."""
        narrow = CONSTANT | {"adapter.layers": "[1, mtp]", "adapter.experts": "[0, 4-5]", "train.steps": 5}
        names, losses = [], []
        for ranks in (1, 4):
            run = TinyRun(self.folder / f"listed{ranks}", **narrow, **{"mesh.ep": ranks})
            run.finish(ranks)
            self.assertEqual(self.exported(run), {(layer, e) for layer in (1, 3) for e in (0, 4, 5)})
            losses.append([run.losses()[step] for step in sorted(run.losses())])
            names.append(
                {n for file in run.checkpoints()[-1].glob("*.safetensors") for n in load_file(file) if "master" in n}
            )
        self.assertEqual(names[0], names[1])
        self.assertIn(" on experts of layers 1, mtp, of the experts 0, 4-5\n", self.inspected(run.folder / "run"))
        # vLLM takes all experts of a layer, and none of the MTP module's: zeros for those that have no adapter.
        to = self.folder / "vllm"
        subprocess.run(
            [program(), "export", run.folder / "run", "--to", to, "--for", "vllm"], check=True, capture_output=True
        )
        tensors = load_file(to / "adapter_model.safetensors")
        self.assertEqual(len(tensors), 8 * 3 * 2)
        trained = {int(re.search(r"experts\.(\d+)\.", name)[1]) for name, tensor in tensors.items() if tensor.any()}
        self.assertEqual(trained, {0, 4, 5})
        said = self.inspected(to)
        self.assertIn("  layers 1\n  experts 0-7\n", said)  # as they are named, zeros too
        self.assertIn("  only maps of layers 1, mtp, of the experts 0, 4-5 were trained\n", said)
        # The form that is fused over experts has them at their own places.
        self.require_fused_experts_in_place(run)
        for one, four in zip(*losses):
            self.assertAlmostEqual(one, four, delta=2e-4)

    def inspected(self, path):
        return subprocess.run([program(), "inspect", path], check=True, capture_output=True, text=True).stdout

    def require_fused_experts_in_place(self, run):
        """down_proj's A of PEFT's fused form [E R, I]: zeros but for the experts that the plain form has."""
        plain, fused = self.folder / "plain", self.folder / "fused"
        for to, reader in ((plain, "peft"), (fused, "peft3d")):
            command = [program(), "export", run.folder / "run", "--to", to, "--for", reader]
            subprocess.run(command, check=True, capture_output=True)
        self.assertIn("  layers 1, 3\n  experts 0, 4-5\n", self.inspected(plain))
        single = load_file(plain / "adapter_model.safetensors")
        stack = load_file(fused / "adapter_model.safetensors")
        experts = "base_model.model.model.layers.1.mlp.experts"
        A_ERI = stack[f"{experts}.lora_A.weight"].reshape(8, -1, stack[f"{experts}.lora_A.weight"].shape[1])
        for e in range(8):
            name = f"{experts}.{e}.down_proj.lora_A.weight"
            self.assertEqual(A_ERI[e].tolist(), single[name].tolist() if name in single else (0 * A_ERI[e]).tolist())

    def test_top_experts_are_chosen_saved_and_resumed(self):
        top = CONSTANT | {"adapter.experts": "top 2", "mesh.ep": 2}
        whole = TinyRun(self.folder / "whole", **top, **{"train.steps": 20})
        self.assertIn("chosen by load", whole.finish(2))
        chosen = json.loads((self.folder / "whole/run/experts.json").read_text())
        self.assertEqual(set(chosen["layers"]), {"1", "2", "3"})
        pairs = set()
        for layer, entry in chosen["layers"].items():
            self.assertEqual(len(entry["experts"]), 2)
            self.assertGreater(entry["share"], 2 / 8)
            pairs |= {(int(layer), expert) for expert in entry["experts"]}
        self.assertEqual(self.exported(whole), pairs)
        self.assertIn(
            " on experts, of each layer's experts the 2 with the greatest load\n",
            self.inspected(self.folder / "whole/run"),
        )
        run = TinyRun(self.folder / "half", **top, **{"train.steps": 10})
        run.finish(2)
        # What is resumed is what was saved, whatever the file says that people read.
        (self.folder / "half/run/experts.json").write_text("{}")
        run.values["train.steps"] = 20
        run.finish(2, resume=True)
        self.assertEqual(run.losses(), whole.losses())
        self.assertEqual(run.state(), whole.state())
        # Another number of experts is another run.
        run.values["adapter.experts"] = "top 3"
        self.assertIn("adapter.experts", run.finish(2, resume=True, expect=2))

    def test_no_layout_changes_the_result(self):
        for experts in ("[0-2]", "top 3"):
            run = TinyRun(self.folder / experts, **CONSTANT, **{"adapter.experts": experts, "router.train": "lora"})
            process = run.start(4, command="verify-layout")
            output, _ = process.communicate(timeout=400)
            self.assertEqual(process.returncode, 0, output[-3000:])

    def weights(self, experts, **changes):
        """A run in which the weights of some experts train, and nothing else."""
        keys = {"train.parts": "[experts]", "train.experts": experts, "train.schedule": "{kind: constant}"}
        run = TinyRun(self.folder / f"weights{len(list(self.folder.iterdir()))}", **keys | changes)
        run.values = {key: value for key, value in run.values.items() if not key.startswith("adapter.")}
        run.values["adapter"] = "none"
        return run

    def test_weights_of_top_experts_are_chosen_saved_and_resumed(self):
        whole = self.weights("top 2", **{"train.steps": 20, "mesh.ep": 2})
        process = whole.start(command="validate")
        said, _ = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 0, said)
        # Two layers and the MTP module's block, two of eight experts each, three matrices of 32 x 32.
        numbers = 3 * 2 * 3 * 32 * 32
        self.assertIn(f"trains   {numbers / 1e3:.1f}k parameters, ", said)
        self.assertIn("the weights themselves of experts (top 2) train", said)
        self.assertIn("train.experts: chosen by load", whole.finish(2))
        chosen = json.loads((whole.folder / "run/experts.json").read_text())["layers"]
        masters = {
            name: int(text["whole"][0]) and text["experts"]
            for file in whole.checkpoints()[-1].glob("*.safetensors")
            for name, text in self.runs_in(file)
        }
        self.assertEqual(len(masters), 9)
        for name, experts in masters.items():
            self.assertEqual(chosen[re.search(r"layers\.(\d+)\.", name)[1]]["experts"], experts)
        half = self.weights("top 2", **{"train.steps": 10, "mesh.ep": 2})
        half.finish(2)
        (half.folder / "run/experts.json").write_text("{}")
        other = self.folder / "other"
        shutil.copytree(half.folder, other)
        half.values["train.steps"] = 20
        half.finish(2, resume=True)
        self.assertEqual(half.losses(), whole.losses())
        self.assertEqual(half.state(), whole.state())
        # On another mesh, where a rank of four holds none of a layer's perhaps.
        half.folder, half.log = other, other / "run/log.jsonl"
        half.values |= {"run.dir": str(other / "run"), "mesh.ep": 4}
        half.finish(4, resume=True)
        for step, loss in whole.losses().items():
            self.assertAlmostEqual(half.losses()[step], loss, delta=2e-4)
        half.values["train.experts"] = "top 3"
        self.assertIn("train.experts", half.finish(4, resume=True, expect=2))
        inspected = self.inspected(whole.folder / "run")
        self.assertIn("none (the weights train: experts (top 2))", inspected)

    def runs_in(self, file):
        """(name, description) of each run of numbers of a tensor in a checkpoint's file."""
        with safe_open(file, "np") as opened:
            return [(name, json.loads(text)) for name, text in opened.metadata().items() if name != "format"]

    def test_no_layout_changes_trained_experts(self):
        layouts = ("ep=2", "dp=2,shard=all", "tp=2,expert_tp=2", "pp=2", "ep=2,dp=2,shard=all,offload=all", "ep=4,buffer_rows=5", "pp=2,ep=2,pp_groups=2", "tp=2,ep=2")  # fmt: skip
        run = self.weights("[0-2]", **{"train.parts": "[experts, router]", "model.base": "nf4"})
        run.options = [word for layout in layouts for word in ("--layout", layout)]
        process = run.start(4, command="verify-layout")
        output, _ = process.communicate(timeout=400)
        self.assertEqual(process.returncode, 0, output[-3000:])

    def test_what_is_not_there_is_refused(self):
        for key, value, said in (
            ("adapter.layers", "[0, 1]", "lies in 0;"),
            ("adapter.layers", "[7]", "lies in 7;"),
            ("adapter.experts", "[0, 8]", "8 is more than there is"),
            ("adapter.experts", "top 9", "top 9 is more than there is"),
        ):
            with self.subTest(f"{key}: {value}"):
                run = TinyRun(self.folder / "refused", **CONSTANT | {key: value})
                self.assertIn(said, run.finish(expect=2))

    def test_routers_train_and_leave(self):
        """Weights of routers and adapters of them go into the adapter's file, weights into what is merged too, and
        beside the adapter for servers."""
        for train in ("full", "lora"):
            run = TinyRun(self.folder / train, **CONSTANT | {"router.train": train, "train.steps": 4})
            run.finish()
            masters = {n: t for f in run.checkpoints()[-1].glob("*.safetensors") for n, t in load_file(f).items()}
            export, merged = self.folder / f"{train}-export", self.folder / f"{train}-merged"
            for command, to in (("export", export), ("merge", merged)):
                subprocess.run([program(), command, run.folder / "run", "--to", to], check=True, capture_output=True)
            name = "model.layers.1.mlp.gate"
            if train == "full":
                config = json.loads((export / "adapter_config.json").read_text())
                self.assertEqual(config["modules_to_save"], ["mlp.gate"])
                with safe_open(export / "adapter_model.safetensors", "np") as file:
                    written = file.get_tensor(f"base_model.model.{name}.weight")
                self.assertTrue((written.ravel() == masters[f"master/{name}.weight"]).all())
                vllm = self.folder / "vllm"
                command = [program(), "export", run.folder / "run", "--to", vllm, "--for", "vllm"]
                subprocess.run(command, check=True, capture_output=True)
                routers = load_file(vllm / "router.safetensors")
                self.assertEqual(len(routers), 3)
                self.assertTrue((routers[name + ".weight"].ravel() == masters[f"master/{name}.weight"]).all())
                weights = {n: t for f in merged.glob("*.safetensors") for n, t in load_torch(f).items()}
                weight = weights[name + ".weight"]
                self.assertTrue((weight == torch.from_numpy(routers[name + ".weight"]).to(weight.dtype)).all())
            else:
                with safe_open(export / "adapter_model.safetensors", "np") as file:
                    self.assertIn(f"base_model.model.{name}.lora_B.weight", file.keys())
                self.assertNotIn("gate", json.loads((export / "adapter_config.json").read_text())["target_modules"])
            run.finish(resume=True)


if __name__ == "__main__":
    program()
    unittest.main(argv=[sys.argv[0]] + [a for a in sys.argv[1:] if not pathlib.Path(a).is_dir()])
