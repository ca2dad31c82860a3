"""DeepSeek-V3.2: V3 with an indexer that chooses `index_topk` tokens to attend to: all of them in every document here,
the longest of which has exactly as many. Published in FP8 blocks."""

import torch

import cases
from families.family import SMALL, YARN, Family, Shape

CONFIG = SMALL | dict(
    num_key_value_heads=4,
    q_lora_rank=24,
    kv_lora_rank=16,
    qk_nope_head_dim=16,
    qk_rope_head_dim=8,
    v_head_dim=12,
    attention_bias=False,
    index_topk=max(cases.LENGTHS),
    index_head_dim=16,
    index_n_heads=2,
    intermediate_size=48,
    moe_intermediate_size=16,
    first_k_dense_replace=1,
    moe_layer_freq=1,
    n_routed_experts=8,
    n_shared_experts=1,
    num_experts_per_tok=3,
    norm_topk_prob=True,
    n_group=2,
    topk_group=1,
    topk_method="noaux_tc",
    scoring_func="sigmoid",
    routed_scaling_factor=2.5,
    num_nextn_predict_layers=1,
    ep_size=1,
)

FAMILY = Family(
    model_type="deepseek_v32",
    architecture="DeepseekV32ForCausalLM",
    scores="sigmoid",
    config=CONFIG | dict(rope_scaling=YARN | dict(mscale=0.7, mscale_all_dim=0.9)),
    shapes={
        "groups": Shape(seed=1, dtype=torch.bfloat16, shards=2, mtp=True),
        "fp8": Shape(
            seed=2,
            dtype=torch.bfloat16,
            fp8=True,
            shards=2,
            config=dict(num_hidden_layers=2, hidden_size=160, intermediate_size=192, moe_intermediate_size=144),
        ),
        "plain": Shape(
            seed=3,
            new_spelling=True,
            config=dict(n_group=1, norm_topk_prob=False, rope_scaling=None, n_shared_experts=2),
        ),
    },
)
