"""Qwen3-MoE: a norm of every query and key head before its rotation, heads that are not D / H wide."""

import torch

from families.family import SMALL, YARN, Family, Shape

FAMILY = Family(
    model_type="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    config=SMALL
    | dict(
        head_dim=12,
        intermediate_size=48,
        moe_intermediate_size=16,
        num_experts=8,
        num_experts_per_tok=3,
        norm_topk_prob=True,
        decoder_sparse_step=1,
        mlp_only_layers=[],
        attention_bias=False,
        rope_scaling=None,
        sliding_window=None,
        max_window_layers=3,
        use_sliding_window=False,
        output_router_logits=False,
        router_aux_loss_coef=0.001,
    ),
    shapes={
        "plain": Shape(seed=1, dtype=torch.bfloat16, shards=2),
        # Experts in layers 1 and 3 by the step, of which the list takes 3 away again; biases of q, k, v and o.
        "dense_layers": Shape(
            seed=3,
            config=dict(
                num_hidden_layers=4,
                decoder_sparse_step=2,
                mlp_only_layers=[3],
                norm_topk_prob=False,
                attention_bias=True,
            ),
        ),
        "yarn": Shape(seed=3, new_spelling=True, config=dict(rope_scaling=YARN, head_dim=8, num_experts_per_tok=4)),
    },
)
