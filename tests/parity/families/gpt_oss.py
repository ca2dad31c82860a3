"""gpt-oss: biases on every map and expert, sinks, a clamped activation, every second layer in a window."""

import torch

from families.family import SMALL, Family, Shape
from families.layouts import Joint

ALTERNATE = ["sliding_attention", "full_attention"]

FAMILY = Family(
    model_type="gpt_oss",
    architecture="GptOssForCausalLM",
    layout=Joint(),
    config=SMALL
    | dict(
        hidden_size=64,
        head_dim=16,
        intermediate_size=64,
        num_hidden_layers=4,
        layer_types=ALTERNATE * 2,
        sliding_window=6,
        attention_bias=True,
        num_local_experts=8,
        num_experts_per_tok=3,
        experts_per_token=3,
        swiglu_limit=7.0,
        initial_context_length=16,
        rope_scaling=dict(
            rope_type="yarn",
            factor=32.0,
            beta_fast=32.0,
            beta_slow=1.0,
            original_max_position_embeddings=16,
            truncate=False,
        ),
        output_router_logits=False,
        router_aux_loss_coef=0.9,
    ),
    shapes={
        "plain": Shape(seed=1, dtype=torch.bfloat16, shards=2),
        "mxfp4": Shape(
            seed=2,
            dtype=torch.bfloat16,
            layout=Joint(mxfp4=True),
            config=dict(num_hidden_layers=2, layer_types=ALTERNATE, intermediate_size=96, num_experts_per_tok=2),
        ),
        "own_layers": Shape(
            seed=3,
            new_spelling=True,
            config=dict(
                num_hidden_layers=3,
                layer_types=["full_attention", "sliding_attention", "sliding_attention"],
                sliding_window=3,
                num_key_value_heads=4,
                attention_bias=False,
                rope_scaling=None,
            ),
        ),
    },
)
