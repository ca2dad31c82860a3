#!/usr/bin/env python3
"""Times LoRA training of moetune and of transformers + PEFT in turn on one GPU, at a model's true dimensions; with
--full training of all weights, beside transformers with torch's AdamW.

    .venv/bin/python scripts/bench/gpu_peer.py [--model deepseek-v3|qwen3-30b-a3b] [--tokens 16384] [--repeats 3]
        [--full] [--checkpointing] [--bf16-adapters] [--rows-at-once N] [key.sub=value ...]
    .venv/bin/python scripts/bench/gpu_peer.py --rehearse       # both sides with tiny dimensions on the CPU

deepseek-v3 is 1 dense + 3 MoE layers of it (--dense, --moe), qwen3-30b-a3b the whole model (--layers and
--num-experts cut it). With --full both sides compute in bf16; ours keeps fp32 masters and moments in host memory, the
peer bf16 weights and moments on the GPU, for torch's AdamW knows no masters.

Otherwise both sides: weights drawn at random, bf16 computation, LoRA of rank 16 on the maps of attention, AdamW,
clipping, documents of 4,096 random tokens, all of them targets, the same ones at each step. Ours holds the frozen
weights in NF4 and takes recipe keys (`train.keep=all`: graphs kept, as the peer keeps them without --checkpointing).
The peer holds them in bf16, drawn on the GPU, with its own defaults for the rest: sdpa, grouped products of the
experts, adapters in fp32 (PEFT's default; --bf16-adapters for the model's dtype). A document is a row, so nothing is
padded. Where memory does not suffice for a step's rows at once, the peer is run again with half of them, gradients
adding up, and that is said.

Printed for each run and over all: tokens/s, median of the steps after warm-up, least and most; peak memory; the ratio.
Weights differ in their random numbers, so losses only have to lie near log(vocabulary). Exit code 1: a side failed,
or our median is below --at-least times the peer's.
"""

import argparse
import dataclasses
import json
import math
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile

from v3_rows import size_text
from v3_runs import PROGRAM, REPOSITORY, SEED, Layers, Machine, Run, RunFailed

HERE = pathlib.Path(__file__).resolve().parent
OUT_OF_MEMORY = "OutOfMemoryError"
RANK = 16
QWEN3 = REPOSITORY / "recipes" / "models" / "qwen3-30b-a3b.json"
TINY_QWEN3 = {
    "vocab_size": 256,
    "hidden_size": 128,
    "head_dim": 32,
    "moe_intermediate_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts": 16,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 2,
}


@dataclasses.dataclass(frozen=True)
class DeepseekV3:
    layers: Layers
    targets = ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj")
    runs = Run

    def machine(self, options):
        return Machine(options.program, options.rehearse)


@dataclasses.dataclass(frozen=True)
class QwenMachine(Machine):
    layers_held: int | None = None  # all of them if not given
    experts_held: int | None = None

    @property
    def dims(self):
        dims = json.loads(QWEN3.read_text()) | (TINY_QWEN3 if self.rehearse else {})
        cuts = {"num_hidden_layers": self.layers_held, "num_experts": self.experts_held}
        return dims | {key: value for key, value in cuts.items() if value}


class QwenRun(Run):
    def _write_model(self):
        (self.folder / "config.json").write_text(json.dumps(self.machine.dims))

    def _write_recipe(self):
        self.values.pop("mtp.loss_weight", None)  # the family has no such module
        super()._write_recipe()


# All weights train, and no adapter is there.
FULL_TRAINING = {"adapter": "none", "model.base": "bf16"} | dict.fromkeys(
    ("adapter.rank", "adapter.alpha", "adapter.targets")
)


@dataclasses.dataclass(frozen=True)
class Qwen3:
    layers: Layers
    targets = ("q_proj", "k_proj", "v_proj", "o_proj")
    runs = QwenRun

    def machine(self, options):
        return QwenMachine(options.program, options.rehearse, options.layers, options.num_experts)


class Side:
    """Figures of one side's runs."""

    def __init__(self, name):
        self.name, self.medians, self.speeds, self.peaks, self.losses = name, [], [], [], []

    def add(self, speeds, peak, losses):
        self.medians.append(statistics.median(speeds))
        self.speeds += speeds
        self.peaks.append(peak)
        self.losses.append(losses)
        print(
            f"  {self.name}: {self.medians[-1]:,.0f} tokens/s ({min(speeds):,.0f} - {max(speeds):,.0f}, {len(speeds)}"
            f" steps), peak {size_text(peak)}, loss {losses[0]:.4f} -> {losses[-1]:.4f}",
            flush=True,
        )

    def median(self):
        return statistics.median(self.medians)

    def text(self):
        runs, steps = self.medians, self.speeds
        return (
            f"{self.name}: {self.median():,.0f} tokens/s, median of {len(runs)} runs ({min(runs):,.0f} -"
            f" {max(runs):,.0f}; single steps {min(steps):,.0f} - {max(steps):,.0f}), peak {size_text(max(self.peaks))}"
        )


class PeerFailed(Exception):
    pass


def ours(options, model, machine, folder):
    """A run of moetune: the Run and its figures."""
    values = {"train.steps": options.steps}
    values |= FULL_TRAINING if options.full else {"adapter.rank": RANK, "adapter.alpha": RANK}
    run = model.runs(
        folder, machine, model.layers, 1, options.tokens, options.document, values=values, words=options.words
    )
    run.finish()
    shutil.rmtree(run.folder / "run" / "checkpoints", ignore_errors=True)  # of all weights: tens of GB
    steps = run.lines("step")
    speeds = [line["tokens_per_s"] for line in steps[options.warm_up :]]
    return run, (speeds, max(line["memory_bytes"] for line in steps), [line["loss"] for line in steps])


def peer(options, model, machine, folder, data, rows_at_once):
    """A run of transformers + PEFT on the documents that ours wrote."""
    documents = [json.loads(line) for line in data.read_text().splitlines()]
    with open(folder / "steps.jsonl", "w") as file:
        for _ in range(options.steps):
            file.write(json.dumps({"sequences": [[document] for document in documents]}) + "\n")
    config = json.loads((data.parent / "config.json").read_text())
    config.pop("torch_dtype", None)
    spec = {
        "model": config,
        "adapter": None if options.full else {"r": RANK, "lora_alpha": RANK, "target_modules": list(model.targets)},
        "steps": str(folder / "steps.jsonl"),
        "lrs": [1e-4] * options.steps,
        "device": machine.device,
        "dtype": "bfloat16",
        "adapter_dtype": "bfloat16" if options.bf16_adapters else "float32",
        "checkpointing": options.checkpointing,
        "experts": options.experts,
        "attention": options.attention,
        "rows_at_once": rows_at_once,
        "threads": 1 if options.rehearse else len(os.sched_getaffinity(0)),
        "seed": SEED,
    }
    (folder / "spec.json").write_text(json.dumps(spec))
    environment = machine.environment() | {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    command = [sys.executable, str(HERE / "peft_side.py"), str(folder / "spec.json")]
    done = subprocess.run(command, text=True, capture_output=True, env=environment)
    if done.returncode != 0:
        raise PeerFailed(done.stderr[-4000:])
    start, *steps = map(json.loads, done.stdout.splitlines())
    speeds = [line["tokens"] / line["step_s"] for line in steps[options.warm_up :]]
    peak = max(line["memory_bytes"] for line in steps)
    return start["versions"], (speeds, peak, [line["loss"] for line in steps])


def peer_that_fits(options, model, machine, folder, data, rows_at_once):
    """peer() with as many rows at once as memory allows, and that number."""
    while True:
        try:
            return *peer(options, model, machine, folder, data, rows_at_once), rows_at_once
        except PeerFailed as failure:
            if OUT_OF_MEMORY not in str(failure) or rows_at_once == 1:
                raise
        rows_at_once //= 2
        print(f"  peer: out of memory, again with {rows_at_once} rows at once", flush=True)


def measure(options, folder):
    layers = Layers(options.dense, options.moe)
    model = DeepseekV3(layers) if options.model == "deepseek-v3" else Qwen3(Layers(0, 0))
    machine = model.machine(options)
    about = str(layers) if options.model == "deepseek-v3" else f"{machine.dims['num_hidden_layers']} layers"
    rows = machine.tokens(options.tokens) // machine.tokens(options.document)
    print(
        f"{machine.text()}\n{options.model}, {about}; {machine.tokens(options.tokens):,} tokens a step in documents of"
        f" {machine.tokens(options.document):,}, {options.steps} steps a run, {options.warm_up} of them warm-up",
        flush=True,
    )
    sides, at_once = {name: Side(name) for name in ("ours", "peer")}, min(options.rows_at_once or rows, rows)
    for repeat in range(options.repeats):
        print(f"Run {repeat + 1}:", flush=True)
        here = folder / str(repeat)
        run, found = ours(options, model, machine, here)
        sides["ours"].add(*found)
        versions, found, at_once = peer_that_fits(options, model, machine, here, run.folder / "train.jsonl", at_once)
        sides["peer"].add(*found)
    trained = "all weights" if options.full else f"adapters in {'bf16' if options.bf16_adapters else 'fp32'}"
    setting = (
        f"{options.attention}, experts {options.experts}, {trained},"
        f" {'every layer recomputed' if options.checkpointing else 'graphs kept'}, {at_once} of {rows} rows at once"
    )
    held = "all weights in bf16" if options.full else "NF4"
    print(f"\nOurs: {held}, {' '.join(options.words) or 'recipe as it is'}.\nPeer: {versions}, bf16, {setting}.")
    for side in sides.values():
        print(side.text())
    ratio = sides["ours"].median() / sides["peer"].median()
    pairs = [a / b for a, b in zip(sides["ours"].medians, sides["peer"].medians)]
    print(f"ratio of medians {ratio:.2f}, of runs that followed each other {min(pairs):.2f} - {max(pairs):.2f}")
    uniform = math.log(machine.dims["vocab_size"])
    for side in sides.values():
        first = side.losses[0][0]
        if not abs(first - uniform) < 0.15 * uniform:
            return f"{side.name}'s first loss is {first:.3f}, of random weights expected was about {uniform:.2f}"
    if not options.rehearse and ratio < options.at_least:
        return f"ours is {ratio:.2f} times the peer, asked for was {options.at_least}"
    return None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("deepseek-v3", "qwen3-30b-a3b"), default="deepseek-v3")
    parser.add_argument("--dense", type=int, default=1, help="dense layers of deepseek-v3")
    parser.add_argument("--moe", type=int, default=3, help="its layers with routed experts")
    parser.add_argument("--layers", type=int, help="of qwen3-30b-a3b, all if not given")
    parser.add_argument("--num-experts", type=int, help="of a layer of qwen3-30b-a3b, all if not given")
    parser.add_argument("--full", action="store_true", help="all weights train, no adapter")
    parser.add_argument("--tokens", type=int, default=16384, help="of a step")
    parser.add_argument("--document", type=int, default=4096, help="tokens of a document")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each side")
    parser.add_argument("--steps", type=int, help="of a run: 20 if not given (rehearsed: 4)")
    parser.add_argument("--warm-up", type=int, help="of them: 3 if not given (rehearsed: 1)")
    parser.add_argument("--checkpointing", action="store_true", help="the peer recomputes every layer")
    parser.add_argument("--bf16-adapters", action="store_true", help="the peer's adapters in the model's dtype")
    parser.add_argument(
        "--rows-at-once", type=int, default=0, help="documents in a batch of the peer, 0: all of a step"
    )
    parser.add_argument("--experts", default="grouped_mm", help="the peer's experts_implementation")
    parser.add_argument("--attention", default="sdpa", help="the peer's attn_implementation")
    parser.add_argument("--at-least", type=float, default=0.0, help="times the peer's speed; 0 demands nothing")
    parser.add_argument("--program", type=pathlib.Path, default=PROGRAM)
    parser.add_argument("--rehearse", action="store_true", help="tiny dimensions on the CPU")
    parser.add_argument("words", nargs="*", metavar="key.sub=value", help="recipe keys of ours")
    options = parser.parse_args()
    options.steps = options.steps or (4 if options.rehearse else 20)
    options.warm_up = options.warm_up if options.warm_up is not None else 1 if options.rehearse else 3
    if not 0 <= options.warm_up < options.steps:
        parser.error("--warm-up must leave steps to count")
    with tempfile.TemporaryDirectory() as folder:
        try:
            failure = measure(options, pathlib.Path(folder))
        except (RunFailed, PeerFailed) as error:
            failure = f"{error}\n{getattr(error, 'output', '')[-3000:]}"
    if failure:
        print(f"FAILED {failure}")
        raise SystemExit(1)


if __name__ == "__main__":
    main()
