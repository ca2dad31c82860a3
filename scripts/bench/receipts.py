#!/usr/bin/env python3
"""What the planner says beside what runs take, over kinds of runs on one GPU: each leaves its receipt.

    python scripts/bench/receipts.py OUT [--only NAME ...] [--steps 9] [--profile N] [--check]
    build/moetune plan --receipts OUT

Weights and tokens are drawn; models are flagships of recipes/models, most of them cut to a few layers. Odd numbers are
those that correct the planner (recipes/machines), even ones those that it is judged by. --check only validates.
"""

import argparse
import json
import pathlib
import random
import shutil
import subprocess
import tempfile

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
PROGRAM = REPOSITORY / "build" / "moetune"
V3_CUT = {"num_hidden_layers": 4, "first_k_dense_replace": 1}
ATTENTION = "adapter={rank: 16, targets: [attention]}"
EXPERTS = "adapter={rank: 16, targets: [attention, experts]}"

# name -> model, keys of its config.json, tokens a step, tokens of a sequence, (median, sigma) of documents' lengths or
# None: they fill the sequence, recipe
RUNS = {
    "01-v3-cut-kept": ("deepseek-v3", V3_CUT, 16384, 4096, None, [ATTENTION, "train.keep=all"]),
    "02-v3-cut-recomputed": ("deepseek-v3", V3_CUT, 16384, 4096, None, [ATTENTION, "train.keep=none"]),
    "03-v3-cut-experts": ("deepseek-v3", V3_CUT, 16384, 4096, None, [EXPERTS, "train.keep=none"]),
    "04-v3-cut-short-documents": ("deepseek-v3", V3_CUT, 16384, 4096, (400, 1.0), [ATTENTION, "train.keep=none"]),
    "05-v3-cut-streamed": ("deepseek-v3", V3_CUT, 16384, 4096, None, [ATTENTION, "offload.frozen=all"]),
    "06-v3-cut-long-document": ("deepseek-v3", V3_CUT, 32768, 32768, None, [ATTENTION]),
    "07-qwen3-30b-half": ("qwen3-30b-a3b", {"num_hidden_layers": 24}, 32768, 4096, None, [ATTENTION]),
    "08-qwen3-30b-half-experts": (
        "qwen3-30b-a3b",
        {"num_hidden_layers": 24},
        16384,
        4096,
        (700, 0.8),
        [EXPERTS, "train.keep=none"],
    ),
    "09-gpt-oss-20b": ("gpt-oss-20b", {}, 16384, 4096, None, [ATTENTION]),
    "10-deepseek-v2-lite-experts": ("deepseek-v2-lite", {}, 16384, 4096, None, [EXPERTS]),
    "11-mixtral-8x7b-cut": ("mixtral-8x7b", {"num_hidden_layers": 8}, 16384, 4096, None, [ATTENTION]),
    "12-glm-4.5-air-cut": ("glm-4.5-air", {"num_hidden_layers": 8}, 16384, 4096, None, [ATTENTION, "train.keep=none"]),
    "13-olmoe-cut-full": (
        "olmoe-1b-7b",
        {"num_hidden_layers": 4},
        8192,
        2048,
        None,
        ["adapter=none", "model.base=bf16"],
    ),
    "14-qwen3-30b-8-double": (
        "qwen3-30b-a3b",
        {"num_hidden_layers": 8},
        8192,
        2048,
        None,
        [ATTENTION, "model.base=nf4_double"],
    ),
}


def write_model(folder, name, keys):
    config = json.loads((REPOSITORY / "recipes" / "models" / f"{name}.json").read_text())
    layers = keys.get("num_hidden_layers")
    if layers and "layer_types" in config:
        keys = keys | {"layer_types": config["layer_types"][:layers]}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config | keys))
    return config["vocab_size"]


def write_documents(path, vocabulary, tokens, sequence, lengths):
    draw = random.Random(7)
    with path.open("w") as file:
        while tokens > 0:
            length = sequence if lengths is None else int(draw.lognormvariate(0.0, lengths[1]) * lengths[0])
            length = min(max(length, 2), sequence)
            ids = draw.choices(range(vocabulary), k=length)
            file.write(json.dumps({"input_ids": ids, "labels": ids}) + "\n")
            tokens -= length


def run(out, name, steps, check, profile):
    model, keys, tokens, sequence, lengths, values = RUNS[name]
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        vocabulary = write_model(folder / "model", model, keys)
        write_documents(folder / "data.jsonl", vocabulary, (2 if check else steps) * tokens, sequence, lengths)
        (folder / "recipe.yaml").write_text(
            f"run: {{dir: {folder}/run, check_replicas_every: 0}}\n"
            f"model: {{path: {folder}/model, weights: random}}\n"
            f"data: {{train: {folder}/data.jsonl, max_tokens: {sequence}}}\n"
            f"train: {{steps: {steps}, batch: {tokens // sequence}}}\n"
        )
        command = [PROGRAM, "validate" if check else "train", folder / "recipe.yaml", *values]
        command += ["--profile", str(profile)] if profile else []
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        said = (done.stdout + done.stderr).splitlines()
        if done.returncode != 0:
            print(f"{name}: ended with {done.returncode}:", *said[-8:], sep="\n  ", flush=True)
            return
        if check:
            print(f"{name}: valid", flush=True)
            return
        shutil.copy(folder / "run" / "receipt.json", out / f"receipt-{name}.json")
        if profile:
            shutil.copy(folder / "run" / "profile" / "rank-0.json", out / f"trace-{name}.json")
        begin = next((i for i, line in enumerate(said) if "predicted beside measured" in line), len(said))
        print(name, *said[begin : begin + 8], sep="\n  ", flush=True)


parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("out", type=pathlib.Path)
parser.add_argument("--only", nargs="+", default=list(RUNS), choices=list(RUNS), metavar="NAME")
parser.add_argument("--steps", type=int, default=9)
parser.add_argument("--check", action="store_true", help="validate the recipes, no more")
parser.add_argument("--profile", type=int, default=0, metavar="N", help="leave a trace of N steps too")
options = parser.parse_args()
options.out.mkdir(parents=True, exist_ok=True)
for each in options.only:
    run(options.out, each, options.steps, options.check, options.profile)
