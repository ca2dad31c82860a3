"""A tiny run of the real program: config.json, tokens and recipe in a folder of its own, no checkpoint needed (weights:
random).

    run = TinyRun(folder, steps=40)
    run.start(ranks=2).wait()
    run.state()      # SHA-256 of every tensor of the newest checkpoint
"""

import hashlib
import json
import os
import pathlib
import random
import subprocess
import sys
import time

from safetensors.numpy import load_file

CONFIG = {
    "model_type": "deepseek_v3",
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 3,
    "first_k_dense_replace": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 256,
    "num_nextn_predict_layers": 1,
}


def program():
    """The built program: first argument that is a folder, or MOETUNE_BUILD, or ./build."""
    given = next((a for a in sys.argv[1:] if pathlib.Path(a).is_dir()), None)
    path = pathlib.Path(given or os.environ.get("MOETUNE_BUILD", "build")).resolve() / "moetune"
    if not path.exists():
        sys.exit(f"{path} does not exist: give the build folder as first argument or in MOETUNE_BUILD")
    return path


class TinyRun:
    def __init__(self, folder, **changes):
        self.folder = pathlib.Path(folder)
        (self.folder / "model").mkdir(parents=True, exist_ok=True)
        (self.folder / "model" / "config.json").write_text(json.dumps(CONFIG))
        draw = random.Random(5)
        with open(self.folder / "train.jsonl", "w") as file:
            for _ in range(200):
                ids = [draw.randrange(CONFIG["vocab_size"]) for _ in range(draw.randrange(4, 30))]
                file.write(json.dumps({"input_ids": ids, "labels": ids}) + "\n")
        self.values = {
            "run.dir": str(self.folder / "run"),
            "run.device": "cpu",
            "run.threads": 1,
            "model.path": str(self.folder / "model"),
            "model.weights": "random",
            "model.base": "nf4",
            "model.compute": "fp32",
            "adapter.rank": 4,
            "adapter.alpha": 8,
            "adapter.dropout": 0.1,
            "adapter.targets": "[all_linear]",
            "data.train": str(self.folder / "train.jsonl"),
            "data.max_tokens": 64,
            "train.steps": 30,
            "train.batch": 4,
            "train.optimizer.lr": 0.01,
            "router.bias": "update",
            "mtp.loss_weight": 0.3,
            "checkpoint.every_steps": 10,
            "checkpoint.keep_last": 2,
        } | changes
        self.log = self.folder / "run" / "log.jsonl"
        self.options = []  # words behind the recipe

    def arguments(self, command, resume=False):
        """Writes the recipe and returns what starts the program on it."""
        sections = {}
        for key, value in self.values.items():
            place, names = sections, key.split(".")
            for name in names[:-1]:
                place = place.setdefault(name, {})
            place[names[-1]] = value
        recipe = self.folder / "recipe.yaml"
        recipe.write_text(as_yaml(sections))
        return [str(program()), command, str(recipe)] + (["--resume"] if resume else []) + self.options

    def start(self, ranks=1, resume=False, command="train", before_start=None):
        """The running process; with more ranks it is mpirun. `before_start` is called in it first."""
        launch = (
            ["mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-np", str(ranks)]
            if ranks > 1
            else []
        )
        return subprocess.Popen(
            [*launch, *self.arguments(command, resume)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            preexec_fn=before_start,
        )

    def finish(self, ranks=1, resume=False, expect=0):
        """Runs to the end and returns the output; fails when the exit code is another."""
        process = self.start(ranks, resume)
        output, _ = process.communicate(timeout=240)
        assert process.returncode == expect, f"exit code {process.returncode}, expected {expect}:\n{output[-3000:]}"
        return output

    def wait_for_step(self, step, process, timeout_s=120):
        """Returns as soon as log.jsonl has a line of that step or a later one."""
        end = time.time() + timeout_s
        while time.time() < end:
            if self.log.exists() and any(line["step"] >= step for line in self.lines("step")):
                return
            assert process.poll() is None, f"the run ended before step {step}:\n{process.communicate()[0][-3000:]}"
            time.sleep(0.002)
        raise AssertionError(f"no step {step} within {timeout_s} s")

    def lines(self, kind):
        """Lines of log.jsonl of one kind; a line still being written is left out."""
        lines = []
        for text in self.log.read_text().splitlines():
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                continue
            if line["kind"] == kind:
                lines.append(line)
        return lines

    def losses(self):
        return {line["step"]: line["loss"] for line in self.lines("step")}

    def checkpoints(self):
        return sorted((self.folder / "run" / "checkpoints").glob("step-*"))

    def state(self):
        """{tensor: SHA-256 of its bytes} of the newest checkpoint, files joined."""
        digests = {}
        for file in sorted(self.checkpoints()[-1].glob("*.safetensors")):
            for name, tensor in load_file(file).items():
                digests[f"{file.name}/{name}"] = hashlib.sha256(tensor.tobytes()).hexdigest()
        return digests


def as_yaml(sections, depth=0):
    text = ""
    for name, value in sections.items():
        if isinstance(value, dict):
            text += "  " * depth + f"{name}:\n" + as_yaml(value, depth + 1)
        else:
            text += "  " * depth + f"{name}: {value}\n"
    return text
