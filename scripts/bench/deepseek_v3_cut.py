#!/usr/bin/env python3
"""Times training steps at DeepSeek-V3's true dimensions, cut to a few layers, with weights drawn from the seed.

    python scripts/bench/deepseek_v3_cut.py [--ranks 1] [--tokens 16384] [--document 4096] [--steps 20] [key.sub=value ...]

Makes a model folder with config.json alone and documents of random tokens in a temporary folder, runs `moetune train` (under mpirun
for more than one rank, experts spread over them), and prints the median tokens/s of all steps but the first three, their spread, peak memory and what
was set. Random tokens skew the router less than text does, so expert loads are near balance: the printed imbalance says how near.
"""
import argparse
import json
import os
import pathlib
import random
import statistics
import subprocess
import tempfile

V3 = {
    "model_type": "deepseek_v3", "vocab_size": 129280, "hidden_size": 7168, "intermediate_size": 18432, "moe_intermediate_size": 2048,
    "num_attention_heads": 128, "num_key_value_heads": 128, "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64, "v_head_dim": 128, "n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8, "n_group": 8,
    "topk_group": 4, "norm_topk_prob": True, "routed_scaling_factor": 2.5, "rms_norm_eps": 1e-6, "max_position_embeddings": 163840,
    "rope_theta": 10000, "rope_scaling": {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "beta_fast": 32,
                                          "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0},
}
SEED = 17
WARM_UP_STEPS = 3

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("--ranks", type=int, default=1)
parser.add_argument("--tokens", type=int, default=16384, help="of a step on each rank")
parser.add_argument("--document", type=int, default=4096, help="tokens of a document")
parser.add_argument("--steps", type=int, default=20)
parser.add_argument("--dense", type=int, default=1, help="dense layers")
parser.add_argument("--moe", type=int, default=3, help="layers with routed experts")
parser.add_argument("--program", default=str(pathlib.Path(__file__).resolve().parents[2] / "build" / "moetune"))
parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="recipe keys")
options = parser.parse_args()

with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    (folder / "config.json").write_text(json.dumps(V3 | {"num_hidden_layers": options.dense + options.moe, "first_k_dense_replace": options.dense}))
    draw = random.Random(SEED)
    with open(folder / "train.jsonl", "w") as file:
        for _ in range(options.ranks * options.tokens // options.document):
            ids = [draw.randrange(V3["vocab_size"]) for _ in range(options.document)]
            file.write(json.dumps({"input_ids": ids, "labels": ids}) + "\n")
    (folder / "recipe.yaml").write_text(f"""
run: {{dir: {folder}/run, seed: {SEED}}}
model: {{path: {folder}, weights: random, base: nf4, compute: bf16}}
adapter: {{rank: 16, alpha: 16, targets: [attention]}}
data: {{train: {folder}/train.jsonl, max_tokens: {options.document}}}
train: {{steps: {options.steps}, batch: {options.ranks * options.tokens // options.document}, optimizer: {{lr: 1.0e-4}}}}
mesh: {{ep: {options.ranks}}}
""")
    launch = ["mpirun", "--allow-run-as-root", "--bind-to", "none", "-np", str(options.ranks)] if options.ranks > 1 else []
    done = subprocess.run([*launch, options.program, "train", str(folder / "recipe.yaml"), *options.overrides], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode != 0:
        raise SystemExit(f"moetune ended with {done.returncode}:\n{done.stdout[-4000:]}")
    lines = [json.loads(line) for line in open(folder / "run" / "log.jsonl")]

steps = [line for line in lines if line["kind"] == "step"][WARM_UP_STEPS:]
start = next(line for line in lines if line["kind"] == "start")


def median(key):
    return statistics.median(line.get(key, 0.0) for line in steps)


speed = [line["tokens_per_s"] / options.ranks for line in steps]
print(f"{options.dense} dense + {options.moe} MoE layers, {options.ranks} rank(s), {options.tokens} tokens a rank in documents of {options.document}, "
      f"{' '.join(options.overrides) or 'recipe as it is'}:\n"
      f"  {statistics.median(speed):,.0f} tokens/s a rank (min {min(speed):,.0f}, max {max(speed):,.0f}, {len(speed)} steps of {median('step_s'):.3f} s), "
      f"peak {max(line['memory_bytes'] for line in steps) / 2**30:.1f} GiB (planned {start['planned_bytes'] / 2**30:.1f}), expert max/mean {median('expert_max_over_mean'):.2f}, "
      f"loss {steps[0]['loss']:.4f} -> {steps[-1]['loss']:.4f}\n"
      f"  a step copied {median('weights_copied_bytes') / 2**30:.2f} GiB and gathered {median('weights_gathered_bytes') / 2**30:.2f} GiB of weights, stood {median('weights_wait_s'):.3f} s waiting for them; "
      f"exchange sent {median('exchange_sent_bytes') / 2**30:.2f} GiB in {median('exchange_s'):.3f} s; optimizer waited for {median('optimizer_wait_s'):.3f} s\n"
      f"  weights were there after {start['load_s']:.1f} s; cache: {start['cache_read_bytes'] / 2**30:.2f} GiB read, {start['cache_written_bytes'] / 2**30:.2f} GiB written, the most of any rank", flush=True)
