"""GLM-4.7-Flash: latent attention, DeepSeek-V3's router."""

import torch

from families.family import ABSENT, SMALL, YARN, Family, Shape

FAMILY = Family(
    model_type="glm4_moe_lite",
    architecture="Glm4MoeLiteForCausalLM",
    scores="sigmoid",
    config=SMALL
    | dict(
        num_key_value_heads=4,
        q_lora_rank=24,
        kv_lora_rank=16,
        qk_nope_head_dim=12,
        qk_rope_head_dim=8,
        v_head_dim=16,
        attention_bias=False,
        intermediate_size=48,
        moe_intermediate_size=16,
        first_k_dense_replace=1,
        n_routed_experts=8,
        n_shared_experts=1,
        num_experts_per_tok=3,
        norm_topk_prob=True,
        n_group=1,
        topk_group=1,
        topk_method="noaux_tc",
        routed_scaling_factor=1.8,
        num_nextn_predict_layers=1,
        rope_scaling=None,
    ),
    shapes={
        "flash": Shape(seed=1, dtype=torch.bfloat16, shards=2, mtp=True),
        "no_q_latent": Shape(
            seed=2,
            config=dict(
                q_lora_rank=None,
                attention_bias=True,
                n_group=2,
                n_shared_experts=2,
                rope_scaling=YARN | dict(mscale_all_dim=0.9, mscale=0.7),
            ),
        ),
        "halves": Shape(seed=2, refused="rope_interleave", config=dict(rope_interleave=False)),
        # Dense layers anywhere.
        "dense_layers": Shape(
            seed=3,
            new_spelling=True,
            config=dict(
                mlp_layer_types=["dense", "sparse", "dense", "sparse"],
                first_k_dense_replace=ABSENT,
                num_hidden_layers=4,
                norm_topk_prob=False,
                attention_bias=True,
            ),
        ),
    },
)
