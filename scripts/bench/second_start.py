#!/usr/bin/env python3
"""Times the first start of a run with model.cache, which reads and quantises a checkpoint, and the second, which does
not.

    python scripts/bench/second_start.py [--layers 5] [--width 2048] [--expert-width 1024] [--experts 32] [--repeats 3]
        [--cold] [key.sub=value ...]

Makes a checkpoint in a temporary folder (weights drawn from the seed, exported in bf16), runs one step on it twice,
with a new cache at each repeat, and prints how the weights came into memory and at which rate. --cold has the system
forget its copies of files before each start, which only root may.
"""

import argparse
import json
import os
import pathlib
import subprocess
import tempfile

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("--layers", type=int, default=5, help="one of them dense")
parser.add_argument("--width", type=int, default=2048)
parser.add_argument("--expert-width", type=int, default=1024)
parser.add_argument("--experts", type=int, default=32)
parser.add_argument("--repeats", type=int, default=3)
parser.add_argument("--cold", action="store_true")
parser.add_argument("--folder", help="where the temporary folder is made")
parser.add_argument("--program", default=str(pathlib.Path(__file__).resolve().parents[2] / "build" / "moetune"))
parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="recipe keys")
options = parser.parse_args()

CONFIG = {
    "model_type": "deepseek_v3",
    "vocab_size": 1024,
    "hidden_size": options.width,
    "intermediate_size": 4 * options.expert_width,
    "moe_intermediate_size": options.expert_width,
    "num_hidden_layers": options.layers,
    "first_k_dense_replace": 1,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "q_lora_rank": 256,
    "kv_lora_rank": 256,
    "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 32,
    "v_head_dim": 64,
    "n_routed_experts": options.experts,
    "n_shared_experts": 1,
    "num_experts_per_tok": 4,
    "n_group": 1,
    "topk_group": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 1024,
    "num_nextn_predict_layers": 0,
}


def moetune(*arguments):
    done = subprocess.run(
        [options.program, *map(str, arguments)], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if done.returncode != 0:
        raise SystemExit(f"moetune {arguments[0]} ended with {done.returncode}:\n{done.stdout[-4000:]}")


with tempfile.TemporaryDirectory(dir=options.folder) as folder:
    folder = pathlib.Path(folder)
    (folder / "drawn").mkdir()
    (folder / "drawn" / "config.json").write_text(json.dumps(CONFIG))
    (folder / "train.jsonl").write_text(json.dumps({"input_ids": list(range(64)), "labels": list(range(64))}) + "\n")
    (folder / "recipe.yaml").write_text(f"""
run: {{dir: {folder}/run}}
model: {{path: {folder}/drawn, weights: random, base: bf16, compute: bf16}}
adapter: {{rank: 4, targets: [attention]}}
data: {{train: {folder}/train.jsonl, max_tokens: 64}}
train: {{steps: 1, batch: 1}}
""")
    moetune("train", folder / "recipe.yaml")
    moetune("export", folder / "run", "--to", folder / "model", "--base")
    (folder / "model" / "config.json").write_text(json.dumps(CONFIG))
    for start in [f"{which} {number + 1}" for number in range(options.repeats) for which in ("first", "second")]:
        run = folder / start.replace(" ", "-")
        if options.cold:
            os.sync()
            pathlib.Path("/proc/sys/vm/drop_caches").write_text("3")
        moetune(
            "train",
            folder / "recipe.yaml",
            f"run.dir={run}",
            f"model.path={folder}/model",
            "model.weights=pretrained",
            "model.base=nf4",
            f"model.cache={folder}/cache-{start[-1]}",
            *options.overrides,
        )
        line = json.loads((run / "log.jsonl").read_text().splitlines()[0])
        read = line["checkpoint_read_bytes"] + line["cache_read_bytes"]
        print(
            f"{start}: {line['load_s']:.2f} s; read {line['checkpoint_read_bytes'] / 1e6:.1f} MB of the checkpoint,"
            f" {line['cache_read_bytes'] / 1e6:.1f} MB of the cache, {read / line['load_s'] / 1e9:.2f} GB/s; wrote"
            f" {line['cache_written_bytes'] / 1e6:.1f} MB; frozen weights {line['frozen_digest']}"
        )
