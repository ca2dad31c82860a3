"""Qwen1.5-MoE and Qwen2-MoE: biases of q, k and v, a shared expert behind a sigmoid gate.

Published files leave `qkv_bias` out (it is true) and carry a window that `use_sliding_window: false` turns off;
transformers 5 writes that window as 0.
"""

import torch

from families.family import SMALL, Family, Shape

FAMILY = Family(
    model_type="qwen2_moe",
    architecture="Qwen2MoeForCausalLM",
    config=SMALL
    | dict(
        intermediate_size=48,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=40,
        num_experts=8,
        num_experts_per_tok=3,
        norm_topk_prob=False,
        decoder_sparse_step=1,
        sliding_window=8,
        max_window_layers=2,
        use_sliding_window=False,
        output_router_logits=False,
        router_aux_loss_coef=0.001,
    ),
    shapes={
        "plain": Shape(seed=1, dtype=torch.bfloat16, shards=2, config=dict(num_key_value_heads=4)),
        "every_second": Shape(
            seed=1, new_spelling=True, config=dict(norm_topk_prob=True, decoder_sparse_step=2, num_hidden_layers=4)
        ),
        "dense_layers": Shape(seed=4, config=dict(mlp_only_layers=[1], qkv_bias=False, tie_word_embeddings=True)),
    },
)
