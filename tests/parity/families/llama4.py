"""The text model of Llama-4: alone, or inside Llama4ForConditionalGeneration beside a vision tower.

Where `no_rope_layers` holds 1 a layer turns features (and attends within its chunk); [] means that every fourth does
not. Scout's published scaling has both of llama3's factors equal: no frequency lies between them.
"""

import torch

from families.family import ABSENT, SMALL, Family, Shape
from families.layouts import InputMajor

LLAMA3 = dict(rope_type="llama3", factor=16.0, original_max_position_embeddings=16)

FAMILY = Family(
    model_type="llama4_text",
    architecture="Llama4ForCausalLM",
    scores="sigmoid",
    layout=InputMajor(wrapper="language_model."),
    config=SMALL
    | dict(
        hidden_size=64,
        head_dim=16,
        num_hidden_layers=4,
        intermediate_size=64,
        intermediate_size_mlp=128,
        num_local_experts=8,
        num_experts_per_tok=1,
        interleave_moe_layer_step=1,
        no_rope_layers=[],
        attention_chunk_size=8,
        attn_temperature_tuning=True,
        attn_scale=0.1,
        floor_scale=4,
        attention_bias=False,
        use_qk_norm=True,
        rope_scaling=LLAMA3 | dict(low_freq_factor=1.0, high_freq_factor=1.0),
        for_llm_compressor=False,
        output_router_logits=False,
        router_aux_loss_coef=0.001,
        router_jitter_noise=0.0,
    ),
    shapes={
        "scout": Shape(seed=1, dtype=torch.bfloat16, shards=2),
        "maverick": Shape(
            seed=2,
            layout=InputMajor(wrapper="language_model.", wrapped_adapter=False),
            config=dict(
                interleave_moe_layer_step=2,
                use_qk_norm=False,
                rope_scaling=None,
                attention_chunk_size=16,
                no_rope_layers=[1, 0, 1, 1],
            ),
        ),
        "text": Shape(
            seed=3,
            layout=InputMajor(),
            new_spelling=True,
            config=dict(
                num_hidden_layers=3,
                interleave_moe_layer_step=ABSENT,
                moe_layers=[0, 2],
                no_rope_layers=[0, 1, 1],
                attn_temperature_tuning=False,
                attention_bias=True,
                num_experts_per_tok=2,
                rope_scaling=LLAMA3 | dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0),
            ),
        ),
    },
)
