"""The batches and the CONFIG that the tests share."""

import os

import torch

# Rows of 56 tokens: any sensible packing of these needs three, so `batch` is 3. One document of two tokens has a target
# and no target of the MTP module.
LENGTHS = (20, 17, 11, 28, 18, 2, 9, 25, 14)
MAX_TOKENS, BATCH = 56, 3


def documents(vocab_size=128, lengths=LENGTHS, seed=7):
    """Random documents; every second one is a prompt (labels -100) and an answer, and one has a masked hole."""
    generator = torch.Generator().manual_seed(seed)
    result = []
    for index, length in enumerate(lengths):
        tokens = torch.randint(vocab_size, (length,), generator=generator).tolist()
        labels = list(tokens)
        if index % 2 == 0:
            labels[: length // 3] = [-100] * (length // 3)
        if index == 3:
            labels[10:15] = [-100] * 5
        result.append({"input_ids": tokens, "labels": labels})
    return result


def config(model, adapter=None, **changes):
    """CONFIG for the checkpoint `model` and the section that adapter_files.write returned (None: the weights train)."""
    return {
        "device": os.environ.get("MOETUNE_TEST_DEVICE", "cpu"),
        "model": str(model),
        "base": "fp32",
        "compute": "fp32",
        "adapter": adapter,
        "parts": "auto",
        "experts": "all",
        "documents": documents(),
        "max_tokens": MAX_TOKENS,
        "batch": BATCH,
        "slice_tokens": 1024,
        "keep": "none",
        "steps": 0,
        "lr": 1e-3,
        "eps": 1e-8,
        "clip": 1.0,
        "weight_decay": 0.0,
        "mtp_loss_weight": 0.0,
        "balance": "sequence",
        "balance_loss": 0.0,
        "router_train": "none",
        "router_bias": "frozen",
        "bias_rate": 0.001,
        "mesh": {"dp": 1, "ep": 1, "tp": 1},
        "expert_tp": 1,
        "shard": "none",
        "offload": "none",
        "activations": "none",
        "buffer_rows": "auto",
    } | changes
