"""DeepSeek-V3, R1, Moonlight, Kimi-K2: what models.py has, through the harness of all families."""

import torch

from families.deepseek_v32 import CONFIG
from families.family import YARN, Family, Shape

FAMILY = Family(
    model_type="deepseek_v3",
    architecture="DeepseekV3ForCausalLM",
    scores="sigmoid",
    config={key: value for key, value in CONFIG.items() if not key.startswith("index_")}
    | dict(rope_scaling=YARN | dict(mscale=0.7, mscale_all_dim=0.9)),
    shapes={
        "groups": Shape(seed=1, dtype=torch.bfloat16, shards=2, mtp=True),
        # Moonlight: one group, no latent of the queries.
        "moonlight": Shape(
            seed=2, config=dict(q_lora_rank=None, n_group=1, num_nextn_predict_layers=0, rope_scaling=None)
        ),
        "plain": Shape(seed=3, new_spelling=True, config=dict(norm_topk_prob=False, n_shared_experts=2)),
    },
)
