"""OLMoE: one norm over all query heads together and one over all keys, softmax scores, optionally clipped q, k, v."""

import torch

from families.family import SMALL, Family, Shape

FAMILY = Family(
    model_type="olmoe",
    architecture="OlmoeForCausalLM",
    config=SMALL
    | dict(
        num_key_value_heads=4,
        intermediate_size=16,
        num_experts=8,
        num_experts_per_tok=3,
        norm_topk_prob=False,
        attention_bias=False,
        clip_qkv=None,
        rope_scaling=None,
        output_router_logits=False,
        router_aux_loss_coef=0.01,
    ),
    shapes={
        "plain": Shape(seed=1, dtype=torch.bfloat16, shards=2),
        "normalised": Shape(seed=2, config=dict(norm_topk_prob=True, num_experts=12)),
        "clipped": Shape(seed=2, refused="clip_qkv", config=dict(clip_qkv=1.2)),
        "biases": Shape(
            seed=3,
            new_spelling=True,
            config=dict(attention_bias=True, num_key_value_heads=2, tie_word_embeddings=True, num_hidden_layers=2),
        ),
    },
)
