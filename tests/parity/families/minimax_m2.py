"""MiniMax-M2: one norm over all query heads together and one over all keys, the first features of a head turn, sigmoid
scores with a correction bias, no shared expert. Published in FP8 blocks."""

import torch

from families.family import SMALL, Family, Shape
from families.layouts import PerExpert

FAMILY = Family(
    model_type="minimax_m2",
    architecture="MiniMaxM2ForCausalLM",
    scores="sigmoid",
    layout=PerExpert(gate="w1", up="w3", down="w2", block="block_sparse_moe"),
    config=SMALL
    | dict(
        head_dim=16,
        rotary_dim=8,
        intermediate_size=16,
        mlp_intermediate_size=48,
        shared_intermediate_size=0,
        num_local_experts=8,
        num_experts_per_tok=3,
        attn_type_list=[1, 1, 1],
        qk_norm_type="per_layer",
        scoring_func="sigmoid",
        use_qk_norm=True,
        use_routing_bias=True,
        use_mtp=True,
        num_mtp_modules=3,
        mtp_transformer_layers=1,
        output_router_logits=False,
        router_aux_loss_coef=0.001,
        router_jitter_noise=0.0,
    ),
    shapes={
        "plain": Shape(seed=1, shards=2),
        "fp8": Shape(
            seed=2,
            dtype=torch.bfloat16,
            fp8=True,
            shards=2,
            config=dict(
                num_hidden_layers=2,
                attn_type_list=[1, 1],
                hidden_size=192,
                intermediate_size=160,
                num_experts_per_tok=2,
            ),
        ),
        "whole_heads": Shape(
            seed=3, dtype=torch.bfloat16, new_spelling=True, config=dict(rotary_dim=16, num_key_value_heads=4)
        ),
    },
)
