"""Mixtral 8x7B and 8x22B. The window, where there is one, is that of every layer."""

import torch

from families.family import ABSENT, SMALL, Family, Shape
from families.layouts import PerExpert

FAMILY = Family(
    model_type="mixtral",
    architecture="MixtralForCausalLM",
    layout=PerExpert(gate="w1", up="w3", down="w2", block="block_sparse_moe"),
    config=SMALL
    | dict(
        intermediate_size=48,
        num_local_experts=8,
        num_experts_per_tok=2,
        sliding_window=None,
        output_router_logits=False,
        router_aux_loss_coef=0.02,
    ),
    shapes={
        "plain": Shape(seed=3, dtype=torch.bfloat16, shards=2),
        # Shorter than most documents; heads that are not D / H wide.
        "window": Shape(seed=3, config=dict(sliding_window=5, head_dim=12, num_experts_per_tok=3)),
        # Before transformers knew `sliding_window: null`, the key was left out. Every head has its own keys.
        "six": Shape(
            seed=3,
            new_spelling=True,
            config=dict(sliding_window=ABSENT, num_key_value_heads=4, num_local_experts=6, num_experts_per_tok=1),
        ),
    },
)
