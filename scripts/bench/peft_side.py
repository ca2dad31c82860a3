#!/usr/bin/env python3
"""The peer of cpu_peer.py and gpu_peer.py: transformers + PEFT train LoRA, or transformers alone all weights; a JSON line
a step on standard output.

    .venv/bin/python scripts/bench/peft_side.py SPEC.json

SPEC.json holds (Spec has the defaults):

    model       folder of a checkpoint, or config.json's content: weights are then drawn where they are held
    adapter     folder of a PEFT adapter to go on from, or {"r", "lora_alpha", "target_modules"} of a new one, or null:
                all weights train, in the model's dtype
    steps       file with a line a step: {"sequences": [[{"input_ids", "labels"}, ...], ...]}, documents by sequence
    lrs         learning rate of each step;  lr_b_ratio that of B over it, betas, eps, weight_decay, clip
    device, dtype, threads, attention, experts (transformers' experts_implementation)
    adapter_dtype   "float32", what PEFT makes of adapters on half-precision weights, or that of the model
    checkpointing   true: transformers' gradient checkpointing, not reentrant
    rows        how a step becomes batches:
                "padded"    a document a row, padded on the right to the longest; attention masked
                "packed"    a sequence a row, its documents behind each other, position_ids from 0 in each, from
                            which transformers masks attention between them
    rows_at_once    rows of a batch, 0: all of a step; gradients of several add up
    untangle    true: the adapters of gate_proj and up_proj, which PEFT puts on the diagonal of one of twice the rank,
                stay there: gradients beside the diagonal are set to zero

A step's loss is the sum of the targets' negative log-likelihoods over their number, as transformers' Trainer has it.
Its seconds hold all that a training loop does: batches, forward, backward, clipping, AdamW (torch's fused one).
"""

import dataclasses
import json
import logging
import os
import pathlib
import sys
import time
import warnings

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
warnings.filterwarnings("ignore", message="The following (rank|alpha)_pattern keys")
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

IGNORED = -100


@dataclasses.dataclass
class Spec:
    model: str | dict
    adapter: str | dict | None
    steps: str
    lrs: list
    lr_b_ratio: float = 1.0
    betas: tuple = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip: float = 1.0
    device: str = "cpu"
    dtype: str = "float32"
    threads: int = 1
    attention: str = "sdpa"
    experts: str | None = None
    adapter_dtype: str = "float32"
    checkpointing: bool = False
    rows: str = "padded"
    rows_at_once: int = 0
    untangle: bool = False
    seed: int = 17


def run(spec, out):
    """Trains as `spec` says; writes the line of the start and one a step to `out`, in JSON."""
    import torch

    torch.set_num_threads(spec.threads)
    torch.manual_seed(spec.seed)
    if spec.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    model = built(spec) if spec.adapter is None else adapted(spec, built(spec))
    pairs = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if spec.untangle:
        untangle(model)
    groups = [
        {"params": [p for name, p in pairs if ("lora_B" in name) == is_b], "ratio": spec.lr_b_ratio if is_b else 1.0}
        for is_b in (False, True)
    ]
    optimizer = torch.optim.AdamW(
        groups, lr=0.0, betas=tuple(spec.betas), eps=spec.eps, weight_decay=spec.weight_decay, fused=True
    )
    write(out, {"kind": "start", "versions": versions(), "trained_parameters": sum(p.numel() for _, p in pairs)})
    with open(spec.steps) as lines:
        for number, (line, lr) in enumerate(zip(lines, spec.lrs, strict=True), 1):
            sequences = json.loads(line)["sequences"]
            synchronize(spec)
            begin = time.perf_counter()
            for group in optimizer.param_groups:
                group["lr"] = lr * group["ratio"]
            figures = step(spec, model, [p for _, p in pairs], optimizer, sequences)
            synchronize(spec)
            figures |= {"kind": "step", "step": number, "step_s": time.perf_counter() - begin}
            write(out, figures | {"memory_bytes": peak_bytes(spec)})


def step(spec, model, parameters, optimizer, sequences):
    import torch

    tokens = sum(len(d["input_ids"]) for documents in sequences for d in documents)
    targets = sum(label != IGNORED for documents in sequences for d in documents for label in d["labels"][1:])
    loss, positions = 0.0, 0
    for batch in batches(spec, sequences):
        positions += batch["input_ids"].numel()
        part = model(**batch, use_cache=False, num_items_in_batch=targets).loss
        part.backward()
        loss += part.detach()
    norm = torch.nn.utils.clip_grad_norm_(parameters, spec.clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return {
        "loss": float(loss),
        "grad_norm": float(norm),
        "tokens": tokens,
        "target_tokens": targets,
        "positions": positions,
    }


def batches(spec, sequences):
    """What the model is given for a step, batch by batch."""
    if spec.rows == "packed":
        rows = sequences
    else:  # the longest first, so that batches of some rows need little padding
        rows = sorted(([d] for documents in sequences for d in documents), key=lambda row: -len(row[0]["input_ids"]))
    at_once = spec.rows_at_once or len(rows)
    for begin in range(0, len(rows), at_once):
        yield batch_of(rows[begin : begin + at_once], spec.device)


def batch_of(rows, device):
    import torch

    width = max(sum(len(d["input_ids"]) for d in row) for row in rows)
    alone = all(len(row) == 1 for row in rows)
    columns = {"input_ids": [], "labels": [], "position_ids" if not alone else "attention_mask": []}
    padded = False
    for row in rows:
        ids = [token for d in row for token in d["input_ids"]]
        # The first label of a document is that of no row before it.
        labels = [label for d in row for label in [IGNORED, *d["labels"][1:]]]
        rest = width - len(ids)
        padded |= rest > 0
        columns["input_ids"].append(ids + [0] * rest)
        columns["labels"].append(labels + [IGNORED] * rest)
        if alone:
            columns["attention_mask"].append([1] * len(ids) + [0] * rest)
        else:  # what pads a row is a document of its own
            columns["position_ids"].append([i for d in row for i in range(len(d["input_ids"]))] + list(range(rest)))
    if not padded:
        columns.pop("attention_mask", None)
    return {name: torch.tensor(values, device=device) for name, values in columns.items()}


def built(spec):
    """The frozen model; with a config instead of a folder its weights are drawn on the device, in the dtype."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    options = {"dtype": getattr(torch, spec.dtype), "attn_implementation": spec.attention}
    if spec.experts:
        options["experts_implementation"] = spec.experts
    if isinstance(spec.model, str):
        model = AutoModelForCausalLM.from_pretrained(spec.model, **options).to(spec.device)
    else:
        values = dict(spec.model)
        config = AutoConfig.for_model(values.pop("model_type"), **values)
        with torch.device(spec.device):
            model = AutoModelForCausalLM.from_config(config, **options)
    if spec.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.train()


def adapted(spec, model):
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model

    autocast = spec.adapter_dtype == "float32"
    if isinstance(spec.adapter, str):
        model = PeftModel.from_pretrained(model, spec.adapter, is_trainable=True, autocast_adapter_dtype=autocast)
    else:
        config = LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.0, bias="none", **spec.adapter)
        model = get_peft_model(model, config, autocast_adapter_dtype=autocast)
    wanted = getattr(torch, spec.adapter_dtype)
    found = {p.dtype for p in model.parameters() if p.requires_grad}
    if found != {wanted}:
        raise SystemExit(f"adapters are held in {found}, asked for was {wanted}")
    return model.train()


def untangle(model):
    """Keeps B of the fused gate_up_proj block-diagonal, [[B_gate, 0], [0, B_up]], as PEFT made it of two adapters."""
    import torch
    from peft.tuners.lora.layer import ParamWrapper

    found = 0
    for module in model.modules():
        if isinstance(module, ParamWrapper) and module.parameter_name == "gate_up_proj":
            weight = module.lora_B["default"].weight  # [2F, 2R * E], the experts' numbers innermost
            outputs, rank, experts = weight.shape[0], module.r["default"], module.num_experts
            mask = torch.zeros(outputs, rank, experts, dtype=weight.dtype, device=weight.device)
            mask[: outputs // 2, : rank // 2] = 1
            mask[outputs // 2 :, rank // 2 :] = 1
            mask = mask.reshape(weight.shape)
            if (weight.detach() * (1 - mask)).any():
                raise SystemExit("an adapter of gate_up_proj is not block-diagonal as read: PEFT's layout has changed")
            weight.register_hook(lambda gradient, mask=mask: gradient * mask)
            found += 1
    if not found:
        raise SystemExit("no fused gate_up_proj has an adapter: nothing to untangle")


def synchronize(spec):
    if spec.device == "cuda":
        import torch

        torch.cuda.synchronize()


def peak_bytes(spec):
    if spec.device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def versions():
    import peft
    import torch
    import transformers

    return f"torch {torch.__version__}, transformers {transformers.__version__}, PEFT {peft.__version__}"


def write(out, line):
    print(json.dumps(line), file=out, flush=True)


def main():
    spec = Spec(**json.loads(pathlib.Path(sys.argv[1]).read_text()))
    # What libraries print goes with the errors: standard output is the log's alone.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    run(spec, out)


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        print(__doc__)
        raise SystemExit(0 if sys.argv[1:] in (["-h"], ["--help"]) else 2)
    main()
