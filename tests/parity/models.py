"""Tiny random DeepSeek-V3 checkpoints in Hugging Face layout.

    folder = models.write("groups", "/tmp/groups")        # config.json + *.safetensors, the same bytes on every call

transformers builds each model and writes its tensors, under per-expert names; what it cannot write (the MTP module, FP8
blocks, the spelling of config.json that DeepSeek ships) is added here. Weights are scaled so that no part of the
network is close to linear or idle: norms differ from 1, the correction bias changes choices, one expert of every MoE
layer gets no token, loads are unequal. rms_norm_eps is large because the norms of the latents use 1e-6 whatever
config.json says.
"""

import json
import math
import pathlib
from dataclasses import dataclass, field, replace

import torch
from safetensors.torch import load_file, save_file
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM
from transformers.utils import logging

logging.disable_progress_bar()

FP8_BLOCK = 128
FP8_MAX = 448.0

SMALL = dict(
    vocab_size=128,
    hidden_size=32,
    intermediate_size=48,
    moe_intermediate_size=16,
    num_hidden_layers=3,
    first_k_dense_replace=1,
    num_attention_heads=4,
    num_key_value_heads=4,
    q_lora_rank=24,
    kv_lora_rank=16,
    qk_nope_head_dim=16,
    qk_rope_head_dim=8,
    v_head_dim=12,
    n_routed_experts=8,
    n_shared_experts=2,
    num_experts_per_tok=3,
    n_group=2,
    topk_group=1,
    norm_topk_prob=True,
    routed_scaling_factor=2.5,
    num_nextn_predict_layers=0,
    rms_norm_eps=1e-3,
    max_position_embeddings=64,
    rope_theta=1000.0,
)
YARN = dict(
    type="yarn",
    factor=4,
    original_max_position_embeddings=16,
    beta_fast=32,
    beta_slow=1,
    mscale=0.7,
    mscale_all_dim=0.9,
)


@dataclass
class Shape:
    """What one checkpoint looks like: differences from SMALL, and how it lies on disk."""

    seed: int
    config: dict = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    shard: str = "1GB"  # of transformers' own writer
    own_config: bool = True  # config.json spelt as DeepSeek ships it; False: as transformers 5 writes it
    mtp_copies: bool = True  # the module's embedding and head are copies of the main ones, as DeepSeek ships it
    fp8: bool = False
    e8m0: bool = False  # the scales are powers of two, of which U8 holds the exponent
    head_copy: bool = False  # of a tied model: the file holds the embedding once more, as the head


SHAPES = {
    "groups": Shape(seed=1, config=dict(rope_scaling=YARN)),
    "plain": Shape(
        seed=2,
        dtype=torch.bfloat16,
        shard="30KB",
        own_config=False,
        config=dict(
            q_lora_rank=None,
            n_group=1,
            norm_topk_prob=False,
            n_shared_experts=1,
            rope_theta=None,
            rope_parameters=dict(rope_type="default", rope_theta=500.0),
        ),
    ),
    # Two ranks of a tensor axis cut its matrices at borders of NF4 blocks.
    "blocks": Shape(seed=6, config=dict(intermediate_size=128, moe_intermediate_size=64, v_head_dim=32)),
    # Widths of three blocks, and of no whole number of them: ranks cut the one unevenly, the other not between blocks.
    "uneven": Shape(
        seed=9,
        config=dict(intermediate_size=192, moe_intermediate_size=192, n_shared_experts=1, v_head_dim=32),
    ),
    "half_blocks": Shape(
        seed=10, config=dict(intermediate_size=150, moe_intermediate_size=90, n_shared_experts=1, num_hidden_layers=2)
    ),
    "mtp": Shape(seed=3, config=dict(num_hidden_layers=2, num_nextn_predict_layers=1, rope_scaling=YARN)),
    "mtp_own_head": Shape(
        seed=4, mtp_copies=False, config=dict(num_hidden_layers=2, num_nextn_predict_layers=1, q_lora_rank=None)
    ),
    "tied": Shape(seed=8, config=dict(tie_word_embeddings=True)),
    "tied_twice": Shape(seed=8, head_copy=True, config=dict(tie_word_embeddings=True)),
    "fp8": Shape(
        seed=5,
        fp8=True,
        dtype=torch.bfloat16,
        config=dict(
            num_hidden_layers=2,
            num_nextn_predict_layers=1,
            hidden_size=192,
            intermediate_size=320,
            moe_intermediate_size=160,
            n_shared_experts=1,
            n_routed_experts=4,
            num_experts_per_tok=2,
            n_group=1,
            q_lora_rank=144,
            kv_lora_rank=64,
            num_attention_heads=2,
            num_key_value_heads=2,
            qk_nope_head_dim=64,
            qk_rope_head_dim=16,
            v_head_dim=96,
        ),
    ),
}
SHAPES["fp8_e8m0"] = replace(SHAPES["fp8"], seed=7, e8m0=True)


def write(name, folder):
    """Writes the checkpoint of SHAPES[name] into `folder` (created) and returns its path."""
    shape, folder = SHAPES[name], pathlib.Path(folder)
    settings = {
        key: value for key, value in (SMALL | shape.config).items() if value is not None or key == "q_lora_rank"
    }
    num_layers, num_mtp = settings["num_hidden_layers"], settings["num_nextn_predict_layers"]
    # The decoder layer inside the MTP module is one more layer of the trunk, as far as its tensors go.
    built = settings | dict(num_hidden_layers=num_layers + num_mtp)
    model = DeepseekV3ForCausalLM(DeepseekV3Config(**built))
    generator = torch.Generator().manual_seed(shape.seed)
    fill(model, generator)
    model.to(shape.dtype)
    for module in model.modules():  # stays fp32 on disk, as in the published files
        if hasattr(module, "e_score_correction_bias"):
            module.e_score_correction_bias = module.e_score_correction_bias.float()
    model.save_pretrained(folder, max_shard_size=shape.shard)
    if num_mtp or shape.fp8 or shape.head_copy:
        tensors = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        if num_mtp:
            tensors |= mtp_extras(tensors, num_layers, generator, shape)
        if shape.head_copy:
            tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        scales = quantise_fp8(tensors, shape.e8m0) if shape.fp8 else {}
        write_shards(folder, [*split(tensors, 2), scales] if scales else split(tensors, 2))
    if shape.own_config:
        published = settings | dict(
            architectures=["DeepseekV3ForCausalLM"],
            model_type="deepseek_v3",
            hidden_act="silu",
            scoring_func="sigmoid",
            topk_method="noaux_tc",
            moe_layer_freq=1,
            ep_size=1,
            aux_loss_alpha=0.001,
            seq_aux=True,
            attention_bias=False,
            attention_dropout=0.0,
            tie_word_embeddings=settings.get("tie_word_embeddings", False),
            bos_token_id=0,
            eos_token_id=1,
            torch_dtype=str(shape.dtype).removeprefix("torch."),
        )
        if shape.fp8:
            published["quantization_config"] = dict(
                quant_method="fp8", fmt="e4m3", activation_scheme="dynamic", weight_block_size=[FP8_BLOCK, FP8_BLOCK]
            )
        (folder / "config.json").write_text(json.dumps(published, indent=2))
    return folder


def fill(model, generator):
    """Draws every weight of `model` in place."""
    moe_layer_idx = 0
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            noise = torch.randn(tensor.shape, generator=generator)
            if name.endswith("e_score_correction_bias"):
                tensor.copy_(0.3 * noise)
                tensor[(3 * moe_layer_idx + 1) % tensor.numel()] = -2.0  # below any sigmoid: this expert stays empty
                moe_layer_idx += 1
            elif name.endswith("norm.weight"):
                tensor.copy_(1.0 + 0.2 * noise)
            elif name.endswith("embed_tokens.weight"):
                tensor.copy_(noise)
            elif name.endswith("mlp.gate.weight"):
                tensor.copy_(1.5 / math.sqrt(tensor.shape[-1]) * noise)
            elif name.split(".")[-1] in ("weight", "gate_up_proj", "down_proj"):
                tensor.copy_(noise / math.sqrt(tensor.shape[-1]))
            else:
                assert name.endswith("inv_freq"), name


def mtp_extras(tensors, layer, generator, shape):
    """The tensors of the MTP module (layer index `layer`) beside those of its decoder layer."""
    vocab, hidden = tensors["lm_head.weight"].shape
    draw = lambda *size: torch.randn(size, generator=generator)
    norm = lambda: 1.0 + 0.2 * draw(hidden)
    copies = shape.mtp_copies
    extras = {
        "enorm.weight": norm(),
        "hnorm.weight": norm(),
        "shared_head.norm.weight": norm(),
        "eh_proj.weight": draw(hidden, 2 * hidden) / math.sqrt(2 * hidden),
        "embed_tokens.weight": tensors["model.embed_tokens.weight"].clone() if copies else draw(vocab, hidden),
        "shared_head.head.weight": tensors["lm_head.weight"].clone()
        if copies
        else draw(vocab, hidden) / math.sqrt(hidden),
    }
    return {f"model.layers.{layer}.{name}": tensor.to(shape.dtype) for name, tensor in extras.items()}


def quantise_fp8(tensors, e8m0=False, names=None):
    """Replaces the projections in `tensors`, or those called `names`, by e4m3 and returns their `weight_scale_inv`
    tensors."""
    scales = {}
    for name in names or [name for name in tensors if "_proj" in name and "eh_proj" not in name]:
        weight_OI = tensors[name].float()
        rows, columns = (math.ceil(size / FP8_BLOCK) for size in weight_OI.shape)
        scale = torch.empty(rows, columns)
        for row in range(rows):
            for column in range(columns):
                block = fp8_block(weight_OI, row, column)
                scale[row, column] = block.abs().max() / FP8_MAX
                if e8m0:
                    scale[row, column] = 2.0 ** math.ceil(math.log2(scale[row, column]))
                block /= scale[row, column]
        tensors[name] = weight_OI.to(torch.float8_e4m3fn)
        scales[name + "_scale_inv"] = (scale.log2() + 127).to(torch.uint8) if e8m0 else scale
    return scales


def fp8_block(weight_OI, row, column):
    """The 128x128 block of `weight_OI` (the last ones may be smaller), as a view."""
    return weight_OI[row * FP8_BLOCK : (row + 1) * FP8_BLOCK, column * FP8_BLOCK : (column + 1) * FP8_BLOCK]


def split(tensors, parts):
    """`tensors` dealt out in turn over `parts` dictionaries, so that every layer lies in several shards."""
    names = sorted(tensors)
    return [{name: tensors[name].contiguous() for name in names[part::parts]} for part in range(parts)]


def write_shards(folder, shards):
    """Writes one safetensors file per dictionary, and the index."""
    weight_map = {}
    for index, tensors in enumerate(shards, 1):
        file = f"model-{index:05d}-of-{len(shards):05d}.safetensors"
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
    total = sum(tensor.numel() * tensor.element_size() for tensors in shards for tensor in tensors.values())
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}, indent=2)
    )


def read(folder):
    """Every tensor of a checkpoint under its name on disk; FP8 blocks as bf16, like DeepSeek's own conversion
    script."""
    tensors = {}
    for file in sorted(pathlib.Path(folder).glob("*.safetensors")):
        tensors |= load_file(file)
    for name in [name for name in tensors if name.endswith("_scale_inv")]:
        scale, weight = tensors.pop(name), name.removesuffix("_scale_inv")
        if scale.dtype == torch.uint8:
            scale = 2.0 ** (scale.float() - 127)
        weight_OI = tensors[weight].float()
        for row in range(scale.shape[0]):
            for column in range(scale.shape[1]):
                fp8_block(weight_OI, row, column).mul_(scale[row, column])
        tensors[weight] = weight_OI.bfloat16()
    return tensors
