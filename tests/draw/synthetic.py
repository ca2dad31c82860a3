"""Run folders as the program leaves them (trainer/run/reporter.cpp), and plans as it prints them
(trainer/plan/plan_json.cpp), written by hand.

folder = write_run(folder, steps=30, evals=(10, 20, 30))
path.write_text(json.dumps(plan(gpus=2)))
"""

import json
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

RECIPE = """# Written by moetune: change a copy, not this file. SHA-256 of the lines below: 00
# Every value in force, and where it came from.
run:
  dir: {folder}                                   # command line
  seed: 17                                        # r.yaml:3
model:
  path: model                                     # r.yaml:5
adapter: none                                     # default
data:
  train: "a: b  # c.jsonl"                        # r.yaml:7
train:
  steps: {steps}                                  # command line
  clip: 1.0                                       # default
  optimizer:
    lr: {lr}                                      # r.yaml:9
"""


def start_line(step=0, steps=30, **more):
    return {
        "kind": "start",
        "step": step,
        "steps": steps,
        "model": "deepseek_v3",
        "parameters": 2_250_000,
        "trained_parameters": 499_200,
        "mesh": "pp 1 x dp 1 x ep 2 x tp 1",
        "ranks": 2,
        "device": "cuda:0",
        "planned_bytes": 3 << 30,
        "load_s": 0.5,
    } | more


def step_line(step, layers=3, **more):
    """Figures differ from step to step, so that a recount tells one from another."""
    loads = [1.0 + (step * (layer + 3) % 17) / 10 for layer in range(layers)]
    return {
        "kind": "step",
        "step": step,
        "loss": 2.0 + 6.0 * math.exp(-step / 10),
        "tokens": 2000 + step,
        "target_tokens": 1000,
        "grad_norm": 1.0 + step % 5,
        "lr": 0.001 * step,
        "step_s": 0.25 + 0.001 * (step % 7),
        "tokens_per_s": 8000.0 + 10 * step,
        "memory_bytes": (2 << 30) + (step << 20),
        "exchange_s": 0.05,
        "tensor_axis_s": 0.0,
        "weights_wait_s": 0.0,
        "optimizer_wait_s": 0.001,
        "expert_max_over_mean": max(loads),
        "expert_max_over_mean_of_layers": loads,
    } | more


def eval_line(step):
    return {"kind": "eval", "step": step, "loss": 2.1 + 6.0 * math.exp(-step / 11), "target_tokens": 4096}


def save_line(step):
    return {"kind": "save", "step": step, "save_s": 0.125, "replica_check_s": 0.01}


def end_line(step, signal=0):
    return {"kind": "end", "step": step, "loss": 2.5, "elapsed_s": 83.0, "stopped_by_signal": signal}


def write_run(folder, lines=None, steps=30, evals=(10, 20, 30), lr=0.001, tail=""):
    """`lines`: of the log, instead of those of a run of so many steps; `tail`: what stands behind them."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if lines is None:
        lines = [start_line(steps=steps)]
        for step in range(1, steps + 1):
            lines.append(step_line(step))
            lines += [eval_line(step), save_line(step)] if step in evals else []
        lines.append(end_line(steps))
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + tail)
    (folder / "recipe.yaml").write_text(RECIPE.format(folder=folder, steps=steps, lr=lr))
    return str(folder)


def receipt():
    """As train leaves it beside the log."""
    return {
        "format": "moetune-receipt-1",
        "date": "2026-11-29",
        "host": "gpu1",
        "version": "0.1.0",
        "machine": {"device": "cuda", "ranks": 2, "ranks_per_host": 8},
        "memory": {
            "where": "device",
            "predicted_bytes": 5 << 30,
            "measured_bytes": 6 << 30,
            "parts": [
                {"name": "frozen weights", "bytes": 4 << 30, "where": "device", "phase": "always"},
                {"name": "activations", "bytes": 1 << 30, "where": "device", "phase": "up"},
            ],
            "ranks": [
                {"rank": 0, "predicted_bytes": 5 << 30, "measured_bytes": 6 << 30},
                {"rank": 1, "predicted_bytes": 5 << 30, "measured_bytes": 11 << 29},
            ],
        },
        "time": {
            "calibrated": False,
            "predicted_step_s": {"low": 0.2, "expected": 0.24, "high": 0.3},
            "measured_step_s": {"median": 0.26, "min": 0.25, "max": 0.31},
            "parts": [
                {"name": "attention", "predicted_s": 0.125, "exposed_s": 0.125, "measured_s": 0.135},
                {"name": "token exchange", "predicted_s": 0.095, "exposed_s": 0.015, "measured_s": None},
            ],
        },
    }


def plan(gpus=2, machine="h200", dollars=12.5, host_limit=100 << 30):
    """A step of 2 s of eight layers; the optimizer runs past its end."""
    operations = [("embed embedding", 0.1), *((f"down layer {layer}", 0.1) for layer in range(8)), ("head turn", 0.1)]
    operations += [(f"up layer {layer}", 0.12) for layer in range(7, -1, -1)]
    spans, at = [["copy", "experts of layer 2", 0.1, 0.4]], 0.0
    for name, seconds in operations:
        spans.append(["compute", name, at, at + seconds])
        at += seconds
        if name.startswith("up"):
            spans.append(["network", name.replace("up", "reduce"), at, at + 0.01])
    spans.append(["compute", "end of the step", at, 2.0])
    spans.append(["host", "update layer 0", 1.9, 2.1])
    parts = [
        ("frozen experts", 60 << 30, "device", "run", "16 of 32 experts a layer in nf4"),
        ("head", 2 << 30, "device", "step", "<1024> rows"),
    ]
    parts += [
        ("one block, way up", 5 << 30, "device", "step", "T x 3 KiB"),
        ("map on its way in", 1 << 30, "device", "load", "the largest"),
    ]
    parts += [
        ("optimizer", 8 << 30, "host", "run", "18 B each"),
        ("layer on its way out", 1 << 20, "host", "save", "in fp32"),
    ]
    host = (8 << 30) + (1 << 20)
    return {
        "model": {
            "parameters": 30e9,
            "active_parameters": 3e9,
            "layers": 8,
            "experts": 32,
            "model_type": "a_type",
            "path": "/models/A-Model",
        },
        "adapter": {"parameters": 12345678, "bytes": 49382712},
        "mesh": {"gpus": gpus, "pp": 1, "dp": 1, "ep": gpus, "tp": 1, "shard": "none"},
        "machine": {
            "name": machine,
            "device": f"NVIDIA {machine}",
            "gpus_per_host": 8,
            "network": "ndr",
            "figures": {
                "device_copy": {"value": 4.25e12, "source": "moetune bench, <here>"},
                "dense.qwen3_q": {"value": 641e12, "source": "a peak x 0.65"},
                "optimizer.adamw": {"value": 3.5e9, "source": ""},
                "small_blocks": {"value": 2210.0, "source": ""},
                "all_gather": {"value": 3.2e11, "source": ""},
                "all_gather.small": {"value": 41500.0, "source": ""},
            },
        },
        "memory": {
            "device_bytes": 65 << 30,
            "host_bytes": host,
            "device_limit_bytes": 80 << 30,
            "host_limit_bytes": host_limit,
            "fits": host <= host_limit,
            "parts": [dict(zip(("name", "bytes", "where", "phase", "formula"), part)) for part in parts],
        },
        "time": {
            "step_s": {"low": 1.5, "expected": 2.0, "high": 3.0},
            "tokens_per_s": 8000.0,
            "tokens_per_s_per_gpu": 8000.0 / gpus,
            "parts": [
                {"name": "dense products", "s": 1.25, "exposed_s": 1.25},
                {"name": "grouped products", "s": 0.5, "exposed_s": 0.5},
                {"name": "host copies of weights", "s": 0.4, "exposed_s": 0.25},
                {"name": "optimizer", "s": 0.2, "exposed_s": 0.0},
            ],
            "calibrated": False,
            "computing": 1.0,
            "spans": spans,
            "pipeline": None,
        },
        "run": {
            "steps": 1800,
            "tokens": 28800000,
            "hours": 1.125,
            "hours_low": 0.875,
            "hours_high": 1.625,
            "load_s": 400.0,
            "evaluation_s": 0.0,
            "save_s": 50.0,
            "sequences_a_step": 4,
            "max_tokens": 4096,
            "data": "7200 documents of 4000 tokens",
        },
        "cost": {
            "dollars": dollars,
            "dollars_per_million_tokens": dollars and dollars / 28.8,
            "price_per_gpu_hour": dollars and dollars / 1.125 / gpus,
            "price_source": dollars and "a table, https://prices.example",
        },
        **({} if host <= host_limit else {"changes_to_fit": ["train.batch=2", "--host-memory 10"]}),
    }


def in_stages(whole, stages=2, groups=3, wait_s=0.0):
    """The plan in stages that are alike, ways up twice as long as ways down, sent in no time; the first stage's first
    group waits so long for its optimizer. Turn by turn: stage s has P - 1 - s ways down before it goes by turns."""
    down, up = 0.1, 0.2
    order = []  # of each stage: (group, is up)
    for stage in range(stages):
        ahead = min(groups, stages - stage) - 1
        ops = []
        for turn in range(groups + ahead):
            ops += [(turn, False)] if turn < groups else []
            ops += [(turn - ahead, True)] if turn >= ahead else []
        order.append(ops)
    ends, now, passes = {}, [0.0] * stages, [[] for _ in range(stages)]
    while any(order):
        for stage, ops in enumerate(order):
            while ops:
                group, is_up = ops[0]
                source = stage + (1 if is_up else -1)
                needed = (source, group, is_up)
                if 0 <= source < stages and needed not in ends:
                    break
                wait = wait_s if stage == group == 0 and not is_up else 0.0
                begin = max(now[stage], ends.get(needed, 0.0))
                end = now[stage] = ends[stage, group, is_up] = begin + wait + (up if is_up else down)
                goes_on = 0 <= stage + (-1 if is_up else 1) < stages
                way = "up" if is_up else "down"
                passes[stage].append([group, way, begin, end, wait, end if goes_on else 0.0])
                ops.pop(0)
    step_s = max(now)
    whole["mesh"]["pp"] = stages
    whole["time"]["pipeline"] = {
        "groups": groups,
        "bubble": (stages - 1) / (groups + stages - 1),
        "step_s": step_s,
        "stages": [{"holds": f"layer {stage}", "passes": of} for stage, of in enumerate(passes)],
    }
    return whole
