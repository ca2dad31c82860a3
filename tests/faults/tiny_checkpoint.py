"""A checkpoint for TinyRun, as Hugging Face keeps it.

sizes = write_checkpoint(folder, hidden_size=1024)
"""

import json

import torch
from safetensors.torch import save_file

from tiny_run import CONFIG


def write_checkpoint(folder, **changes):
    """CONFIG with changes, without MTP module, and random bf16 weights in one file: {tensor: bytes}."""
    config = CONFIG | {"num_nextn_predict_layers": 0} | changes
    width, expert_width, experts = config["hidden_size"], config["moe_intermediate_size"], config["n_routed_experts"]
    (folder / "config.json").write_text(json.dumps(config))
    shapes = {
        "model.embed_tokens": (config["vocab_size"], width),
        "lm_head": (config["vocab_size"], width),
        "model.norm": (width,),
    }
    heads, qk = config["num_attention_heads"], config["qk_nope_head_dim"] + config["qk_rope_head_dim"]
    for layer in range(config["num_hidden_layers"]):
        add = lambda name, *shape: shapes.__setitem__(f"model.layers.{layer}.{name}", shape)
        add("input_layernorm", width), add("post_attention_layernorm", width)
        add("self_attn.q_a_proj", config["q_lora_rank"], width), add("self_attn.q_a_layernorm", config["q_lora_rank"])
        (
            add("self_attn.q_b_proj", heads * qk, config["q_lora_rank"]),
            add("self_attn.kv_a_layernorm", config["kv_lora_rank"]),
        )
        add("self_attn.kv_a_proj_with_mqa", config["kv_lora_rank"] + config["qk_rope_head_dim"], width)
        add("self_attn.kv_b_proj", heads * (config["qk_nope_head_dim"] + config["v_head_dim"]), config["kv_lora_rank"])
        add("self_attn.o_proj", width, heads * config["v_head_dim"])
        if layer < config["first_k_dense_replace"]:
            mlps = {"mlp": config["intermediate_size"]}
        else:
            mlps = {"mlp.shared_experts": expert_width} | {f"mlp.experts.{e}": expert_width for e in range(experts)}
            add("mlp.gate", experts, width)
        for path, features in mlps.items():
            (
                add(f"{path}.gate_proj", features, width),
                add(f"{path}.up_proj", features, width),
                add(f"{path}.down_proj", width, features),
            )
    generator = torch.Generator().manual_seed(1)
    tensors = {
        f"{name}.weight": torch.randn(shape, generator=generator).mul_(0.02).bfloat16()
        for name, shape in shapes.items()
    }
    for layer in range(config["first_k_dense_replace"], config["num_hidden_layers"]):
        tensors[f"model.layers.{layer}.mlp.gate.e_score_correction_bias"] = torch.zeros(experts)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return {name: tensor.numel() * tensor.element_size() for name, tensor in tensors.items()}
