"""GLM-4.5 and GLM-4.5-Air: the first features of a head turn, in halves; DeepSeek-V3's router."""

import torch

from families.family import SMALL, Family, Shape

FAMILY = Family(
    model_type="glm4_moe",
    architecture="Glm4MoeForCausalLM",
    scores="sigmoid",
    config=SMALL
    | dict(
        head_dim=16,
        partial_rotary_factor=0.5,
        attention_bias=True,
        use_qk_norm=False,
        intermediate_size=48,
        moe_intermediate_size=16,
        first_k_dense_replace=1,
        n_routed_experts=8,
        n_shared_experts=1,
        num_experts_per_tok=3,
        norm_topk_prob=True,
        n_group=1,
        topk_group=1,
        routed_scaling_factor=1.0,
        num_nextn_predict_layers=1,
        rope_scaling=None,
    ),
    shapes={
        "air": Shape(seed=1, dtype=torch.bfloat16, shards=2, mtp=True),
        "large": Shape(
            seed=2,
            config=dict(
                use_qk_norm=True,
                routed_scaling_factor=2.5,
                first_k_dense_replace=2,
                num_hidden_layers=4,
                n_shared_experts=2,
            ),
        ),
        "groups": Shape(
            seed=4,
            new_spelling=True,
            config=dict(
                attention_bias=False,
                use_qk_norm=True,
                norm_topk_prob=False,
                partial_rotary_factor=0.25,
                n_group=4,
                topk_group=2,
                first_k_dense_replace=0,
                num_hidden_layers=2,
            ),
        ),
    },
)
