"""DeepSeek-V2, V2-Lite, V2-Chat: latent attention; softmax scores, greedy or limited to the groups with the best
expert; see deepseek_v2_equations.py for what its authors do and transformers does not."""

import torch

from families.family import SMALL, YARN, Family, Shape

FAMILY = Family(
    model_type="deepseek_v2",
    architecture="DeepseekV2ForCausalLM",
    equations=True,
    config=SMALL
    | dict(
        num_key_value_heads=4,
        q_lora_rank=24,
        kv_lora_rank=16,
        qk_nope_head_dim=16,
        qk_rope_head_dim=8,
        v_head_dim=12,
        attention_bias=False,
        intermediate_size=48,
        moe_intermediate_size=16,
        first_k_dense_replace=1,
        moe_layer_freq=1,
        n_routed_experts=8,
        n_shared_experts=2,
        num_experts_per_tok=3,
        norm_topk_prob=False,
        n_group=4,
        topk_group=2,
        topk_method="group_limited_greedy",
        scoring_func="softmax",
        routed_scaling_factor=4.0,
        seq_aux=True,
        aux_loss_alpha=0.001,
        ep_size=1,
        pretraining_tp=1,
        rope_scaling=YARN | dict(mscale=0.707, mscale_all_dim=0.707),
    ),
    shapes={
        "lite": Shape(
            seed=2,
            dtype=torch.bfloat16,
            shards=2,
            config=dict(q_lora_rank=None, topk_method="greedy", n_group=1, topk_group=1, routed_scaling_factor=1.0),
        ),
        "groups": Shape(seed=5),
        # Where the authors and transformers part: weights normalised and not scaled, experts in layers 2 and 4, cosines
        # and sines scaled.
        "normalised": Shape(
            seed=9,
            config=dict(
                norm_topk_prob=True,
                moe_layer_freq=2,
                num_hidden_layers=5,
                n_group=2,
                topk_group=1,
                rope_scaling=YARN | dict(mscale=0.8),
            ),
        ),
        "unscaled": Shape(
            seed=4,
            new_spelling=True,
            config=dict(rope_scaling=None, n_shared_experts=1, attention_bias=True, num_hidden_layers=2),
        ),
    },
)
