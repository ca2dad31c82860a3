"""dots.llm1: grouped-query attention with Qwen3's norms, DeepSeek-V3's router and names."""

import torch

from families.family import SMALL, Family, Shape

FAMILY = Family(
    model_type="dots1",
    architecture="Dots1ForCausalLM",
    scores="sigmoid",
    config=SMALL
    | dict(
        num_key_value_heads=4,
        intermediate_size=48,
        moe_intermediate_size=16,
        first_k_dense_replace=1,
        n_routed_experts=8,
        n_shared_experts=2,
        num_experts_per_tok=3,
        norm_topk_prob=True,
        n_group=1,
        topk_group=1,
        scoring_func="noaux_tc",
        routed_scaling_factor=2.5,
        attention_bias=False,
        sliding_window=None,
        max_window_layers=3,
        rope_scaling=None,
    ),
    shapes={
        "plain": Shape(seed=1, dtype=torch.bfloat16, shards=2),
        # Layers from `max_window_layers` on slide.
        "window": Shape(
            seed=2, config=dict(sliding_window=6, max_window_layers=1, num_key_value_heads=2, attention_bias=True)
        ),
        "groups": Shape(
            seed=3, new_spelling=True, config=dict(n_group=2, norm_topk_prob=False, n_shared_experts=1, head_dim=12)
        ),
    },
)
