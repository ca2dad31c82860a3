"""Training runs at DeepSeek-V3's dimensions, weights and tokens drawn from a seed: what the programs of this folder
share.

    run = Run(folder, Machine(program), Layers(dense=1, moe=3), ranks=2, tokens=16384, values={"mesh.ep": 2,
        "train.steps": 20})
    run.finish()                               # moetune train, under mpirun for more than one rank
    figures(run, warm_up=3)["tokens_per_s"]    # of a rank, the median over the steps but the first three

Rehearsed (Machine(program, rehearse=True)) the same runs are made on CPU ranks: tiny dimensions, a 128th of the tokens.
"""

import dataclasses
import functools
import json
import math
import os
import pathlib
import random
import re
import statistics
import subprocess
import time

SEED = 17
REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
PROGRAM = REPOSITORY / "build" / "moetune"
ROPE = {
    "rope_theta": 10000,
    "rope_scaling": {
        "type": "yarn",
        "factor": 40,
        "original_max_position_embeddings": 4096,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
    },
}
V3 = {
    "model_type": "deepseek_v3",
    "vocab_size": 129280,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "n_group": 8,
    "topk_group": 4,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 163840,
    "num_nextn_predict_layers": 1,
    **ROPE,
}
# The same routing, in sizes of which a run takes seconds on CPU ranks.
TINY = V3 | {
    "vocab_size": 256,
    "hidden_size": 128,
    "intermediate_size": 256,
    "moe_intermediate_size": 128,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "q_lora_rank": 64,
    "kv_lora_rank": 64,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 32,
    "n_routed_experts": 32,
}
REHEARSAL_PART = 128  # of the tokens


@dataclasses.dataclass(frozen=True)
class Layers:
    dense: int
    moe: int
    mtp: bool = False  # the module for multi-token prediction, a layer more

    def __str__(self):
        return f"{self.dense} dense + {self.moe} MoE layers{' + MTP' if self.mtp else ''}"


@dataclasses.dataclass(frozen=True)
class Machine:
    """Where runs are made and of what size: GPUs at true dimensions, or CPU ranks at tiny ones."""

    program: pathlib.Path = PROGRAM
    rehearse: bool = False

    def __post_init__(self):
        if not self.program.exists():
            raise SystemExit(
                f"{self.program} does not exist: scripts/build makes build/moetune, --program names another"
            )

    @property
    def dims(self):
        return TINY if self.rehearse else V3

    @property
    def device(self):
        return "cpu" if self.rehearse else "cuda"

    def tokens(self, tokens):
        return tokens // REHEARSAL_PART if self.rehearse else tokens

    def launch(self, ranks):
        """The words that start `ranks` ranks of what follows them."""
        if ranks == 1:
            return []
        return [
            "mpirun",
            "--allow-run-as-root",
            "--bind-to",
            "none",
            *(["--oversubscribe"] if self.rehearse else []),
            "-np",
            str(ranks),
        ]

    def environment(self):
        return os.environ | ({"OMP_NUM_THREADS": "1"} if self.rehearse else {})

    @functools.cache
    def text(self):
        if self.rehearse:
            return (
                f"rehearsal: tiny dimensions, tokens / {REHEARSAL_PART}, CPU ranks on {os.cpu_count()} cores; the"
                " figures mean nothing"
            )
        query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
        gpus = subprocess.run(query, text=True, capture_output=True).stdout.strip().splitlines()
        return f"{len(gpus)} GPUs ({', '.join(sorted(set(gpus)))}), {os.cpu_count()} cores"


def as_yaml(value):
    """On one line; text without quotes."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {as_yaml(item)}" for name, item in value.items()) + "}"
    return "[" + ", ".join(map(as_yaml, value)) + "]" if isinstance(value, list) else str(value)


class RunFailed(Exception):
    def __init__(self, code, output):
        errors = [line for line in output.splitlines() if "error: " in line]
        super().__init__(f"exit code {code}: {errors[0] if errors else output[-400:]}")
        self.output = output


class Run:
    """A folder with model, data and recipe, and the training run in it."""

    def __init__(self, folder, machine, layers, ranks, tokens, document=4096, values=None, words=(), lognormal=None):
        """`tokens` of a step on each rank, in documents of `document`, or, with `lognormal` (median, sigma), of such
        lengths, packed to it, other ones in each step; `values`: keys of the recipe, None: not in it; `words`: what
        stands behind it on the command line."""
        self.folder, self.machine, self.layers, self.ranks, self.words = (
            pathlib.Path(folder),
            machine,
            layers,
            ranks,
            list(words),
        )
        self.tokens, self.document = machine.tokens(tokens), machine.tokens(document)
        self.mtp_rows = layers.mtp * (
            1 - 1 / self.document
        )  # of the module, over those of a layer: the last token of a document has none
        self.log = self.folder / "run" / "log.jsonl"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write_model()
        documents = self.ranks * self.tokens // self.document
        steps = (values or {}).get("train.steps", 20)
        self._write_documents(documents, steps * documents * self.document if lognormal else 0, lognormal)
        self.values = (
            {
                "run.dir": f"{self.folder}/run",
                "run.seed": SEED,
                "run.device": machine.device,
                "model.path": str(self.folder),
                "model.weights": "random",
                "model.base": "nf4",
                "model.compute": "bf16",
                "adapter.rank": 16,
                "adapter.alpha": 16,
                "adapter.targets": ["attention"],
                "data.train": f"{self.folder}/train.jsonl",
                "data.max_tokens": self.document,
                "train.batch": documents,
                "train.optimizer.lr": 0.0001,
                "mtp.loss_weight": 0.3 if layers.mtp else 0.0,
            }
            | ({"run.threads": 1} if machine.rehearse else {})
            | (values or {})
        )
        self.values = {key: value for key, value in self.values.items() if value is not None}
        self.recipe = self.folder / "recipe.yaml"
        self._write_recipe()

    def _write_model(self):
        layers = {"num_hidden_layers": self.layers.dense + self.layers.moe, "first_k_dense_replace": self.layers.dense}
        (self.folder / "config.json").write_text(json.dumps(self.machine.dims | layers))

    def _write_documents(self, count, tokens, lognormal):
        draw = random.Random(SEED)
        lengths = [] if lognormal else [self.document] * count
        while sum(lengths) < tokens:
            median, sigma = lognormal
            length = round(draw.lognormvariate(math.log(self.machine.tokens(median * 1000) / 1000), sigma))
            lengths.append(min(max(length, 2), self.document))
        with open(self.folder / "train.jsonl", "w") as file:
            for length in lengths:
                ids = draw.choices(range(self.machine.dims["vocab_size"]), k=length)
                file.write(json.dumps({"input_ids": ids, "labels": ids}) + "\n")

    def _write_recipe(self):
        sections = {}
        for key, value in self.values.items():
            *names, last = key.split(".")
            place = sections
            for name in names:
                place = place.setdefault(name, {})
            place[last] = value
        self.recipe.write_text("".join(f"{name}: {as_yaml(value)}\n" for name, value in sections.items()))

    def command(self, verb="train", *options):
        return [
            *self.machine.launch(self.ranks),
            str(self.machine.program),
            verb,
            str(self.recipe),
            *self.words,
            *options,
        ]

    def start(self, verb="train", *options):
        """The running process; output and errors are one stream."""
        return subprocess.Popen(
            self.command(verb, *options),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=self.machine.environment(),
        )

    def finish(self, verb="train", *options):
        """Runs to the end and returns what was printed; RunFailed for any exit code but 0."""
        begin = time.monotonic()
        process = self.start(verb, *options)
        output, _ = process.communicate()
        self.wall_s = time.monotonic() - begin
        if process.returncode != 0:
            raise RunFailed(process.returncode, output)
        return output

    def lines(self, kind):
        """Lines of log.jsonl of one kind; one that is still being written is left out."""
        if not self.log.exists():
            return []
        whole = [text for text in self.log.read_text().splitlines(keepends=True) if text.endswith("\n")]
        return [line for line in map(json.loads, whole) if line["kind"] == kind]


def exchange_bytes(run, ep):
    """What a rank of `ep` sends to experts on others in a step where loads are even and every token goes to as many
    ranks as the routing allows (docs/parallelism.md, What an exchange sends; every layer recomputed, bf16)."""
    dims, layers = run.machine.dims, run.layers.moe + run.mtp_rows
    chosen, ranks_of_groups = dims["num_experts_per_tok"], dims["topk_group"] * max(1, ep // dims["n_group"])
    counts = layers * 8 * (ep - 1) * (1 + dims["n_routed_experts"] // ep)
    return round(
        layers * run.tokens * min(chosen, ep - 1, ranks_of_groups) * (10 * dims["hidden_size"] + 10 * chosen) + counts
    )


def tensor_axis_bytes(run, tp):
    """What a rank of `tp` sends to the others of its axis in a step (docs/parallelism.md, What a tensor axis sends;
    every layer recomputed, bf16)."""
    dims, layers, turns = run.machine.dims, run.layers.dense + run.layers.moe + run.mtp_rows, 1 + run.mtp_rows
    width, latents = dims["hidden_size"], dims["q_lora_rank"] + dims["kv_lora_rank"] + dims["qk_rope_head_dim"]
    numbers = run.tokens * (layers * (3 * (latents + width) + 5 * width) + turns * (2 * width + width))
    targets = run.tokens * (1 - 1 / run.document + run.layers.mtp * (1 - 2 / run.document))  # of the axis, over tp
    loads = 2 / tp * 8 * dims["n_routed_experts"] * (run.layers.moe + run.layers.mtp)
    return round((tp - 1) * (2 * numbers + 2 * 3 * 4 * targets + loads))


def figures(run, warm_up):
    """Medians over the steps of a finished run but the first `warm_up`, and what they are to be held against. Times in
    seconds, speed of a rank."""
    start, steps = run.lines("start")[0], run.lines("step")
    counted = steps[warm_up:]
    speed = [line["tokens_per_s"] / run.ranks for line in counted]
    result = {
        "tokens_per_s": statistics.median(speed),
        "tokens_per_s_min": min(speed),
        "tokens_per_s_max": max(speed),
        "counted_steps": len(counted),
    }
    for key in (
        "step_s",
        "exchange_s",
        "tensor_axis_s",
        "weights_wait_s",
        "optimizer_wait_s",
        "weights_copied_bytes",
        "weights_gathered_bytes",
        "exchange_sent_bytes",
        "tensor_axis_sent_bytes",
        "expert_max_over_mean",
    ):
        result[key] = statistics.median(line.get(key, 0.0) for line in counted)
    for key in (
        "mesh",
        "planned_bytes",
        "planned_weights_copied_bytes",
        "planned_weights_gathered_bytes",
        "load_s",
        "cache_read_bytes",
        "cache_written_bytes",
    ):
        result[key] = start[key]
    result["replica_check_s"] = statistics.median(
        [line["replica_check_s"] for line in steps if line.get("replica_check_s")] or [0.0]
    )
    axes = {axis: int(size) for axis, size in re.findall(r"(\w+) (\d+)", start["mesh"])}
    return result | {
        "planned_exchange_sent_bytes": exchange_bytes(run, axes["ep"]),
        "planned_tensor_axis_sent_bytes": tensor_axis_bytes(run, axes["tp"]),
        "peak_bytes": max(line["memory_bytes"] for line in steps),
        "first_loss": counted[0]["loss"],
        "last_loss": counted[-1]["loss"],
        "besides_s": run.wall_s - sum(line["step_s"] for line in steps),
    }
