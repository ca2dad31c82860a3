"""GLM-5: DeepSeek-V3.2 with other numbers; layers may share one indexer's choice."""

import torch

from families.deepseek_v32 import CONFIG
from families.family import Family, Shape

FAMILY = Family(
    model_type="glm_moe_dsa",
    architecture="GlmMoeDsaForCausalLM",
    scores="sigmoid",
    config=CONFIG | dict(n_group=1, v_head_dim=16, qk_nope_head_dim=12, rope_scaling=None),
    shapes={
        "plain": Shape(seed=1, dtype=torch.bfloat16, shards=2, mtp=True),
        "shared_choice": Shape(
            seed=2,
            config=dict(
                indexer_types=["full", "shared", "full", "shared"], num_hidden_layers=4, first_k_dense_replace=3
            ),
        ),
        "new": Shape(seed=3, new_spelling=True, config=dict(n_shared_experts=2, norm_topk_prob=False, n_group=2)),
    },
)
