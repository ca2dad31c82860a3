"""Tiny random checkpoints of every family, in the layout that users download.

    folder = checkpoint.write(FAMILIES["mixtral"], "window", "/tmp/window")
    maps = checkpoint.maps(folder)                       # {name: tensor}, see layouts.py

Weights are scaled so that nothing is close to linear or idle: norms differ from 1, biases, sinks and correction biases
from 0, routing is uneven and experts stay empty. For the last, all embeddings share a direction from
which one row of every router points away; a correction bias or a router's bias helps where there is one.
"""

import json
import math
import pathlib

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

import adapter_files
import models
from families.family import ABSENT

logging.disable_progress_bar()

VISION = dict(
    model_type="llama4_vision_model",
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=64,
    vision_output_dim=16,
    image_size=28,
    patch_size=14,
    projector_input_dim=16,
    projector_output_dim=16,
)


def write_config(family, shape_name, folder):
    """Writes config.json of family.shapes[shape_name] alone into `folder` (created) and returns its path."""
    shape, folder = family.shapes[shape_name], pathlib.Path(folder)
    folder.mkdir(parents=True)
    settings = published(family, shape, shape.layout or family.layout)
    (folder / "config.json").write_text(json.dumps(settings, indent=2))
    if shape.new_spelling:
        whole = AutoConfig.from_pretrained(folder)
        whole.save_pretrained(folder)
    return folder


def write(family, shape_name, folder):
    """Writes the checkpoint of family.shapes[shape_name] into `folder` (created) and returns its path."""
    shape, folder = family.shapes[shape_name], write_config(family, shape_name, folder)
    layout = shape.layout or family.layout
    config, settings = configuration(folder), text_settings(folder)
    generator = torch.Generator().manual_seed(shape.seed)
    state = AutoModelForCausalLM.from_config(config).state_dict()
    names = layout.maps(
        {name: tensor for name, tensor in state.items() if name != "lm_head.weight" or untied(settings)}
    )
    if family.equations:
        names = with_dense_layers(names, settings)
    maps = draw({name: tensor.shape for name, tensor in names.items()}, generator)
    if shape.mtp:
        maps |= mtp_module(maps, config.num_hidden_layers, generator)
    if shape.separated:
        separate(maps, settings, generator)
    maps = {
        name: tensor if name.endswith("correction_bias") else tensor.to(shape.dtype) for name, tensor in maps.items()
    }
    tensors = layout.disk(maps)
    if "text_config" in json.loads((folder / "config.json").read_text()):
        tensors |= vision_tensors(generator, shape.dtype)
    projections = [name for name in tensors if adapter_files.is_projection(name)]
    scales = models.quantise_fp8(tensors, names=projections) if shape.fp8 else {}
    if shape.shards == 1:
        save_file(tensors | scales, folder / "model.safetensors", metadata={"format": "pt"})
    else:
        models.write_shards(folder, models.split(tensors | scales, shape.shards))
    return folder


def published(family, shape, layout):
    """config.json with the keys that published files have."""
    settings = {key: value for key, value in (family.config | shape.config).items() if value is not ABSENT}
    if shape.new_spelling and settings.get("rope_scaling", ABSENT) is None:
        # transformers reads a key that is there but null as its own default scaling where a family has one.
        del settings["rope_scaling"]
        settings["rope_parameters"] = dict(rope_type="default", rope_theta=settings.pop("rope_theta"))
    dtype = str(shape.dtype).removeprefix("torch.")
    head = dict(architectures=[family.architecture], model_type=family.model_type, torch_dtype=dtype)
    if shape.fp8:
        head["quantization_config"] = dict(
            quant_method="fp8", fmt="e4m3", activation_scheme="dynamic", weight_block_size=[models.FP8_BLOCK] * 2
        )
    if getattr(layout, "mxfp4", False):
        kept = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
        head["quantization_config"] = dict(quant_method="mxfp4", modules_to_not_convert=kept)
    if not getattr(layout, "wrapper", ""):
        return head | settings
    text = dict(model_type=family.model_type, torch_dtype=dtype) | settings
    return head | dict(
        architectures=["Llama4ForConditionalGeneration"],
        model_type="llama4",
        text_config=text,
        vision_config=VISION,
        boi_token_index=120,
        eoi_token_index=121,
        image_token_index=122,
        tie_word_embeddings=False,
    )


def text_settings(folder):
    """What config.json says about the text model, as a dictionary."""
    settings = json.loads((pathlib.Path(folder) / "config.json").read_text())
    return settings.get("text_config", settings)


def untied(settings):
    return not settings.get("tie_word_embeddings", False)


def configuration(folder):
    """transformers' configuration of the text model, for its plain implementations."""
    config = AutoConfig.from_pretrained(folder)
    config = config.get_text_config()
    rotary_dim = text_settings(folder).get("rotary_dim")
    if rotary_dim:  # MiniMax-M2 says so how many features of a head turn; transformers 5.17 does not read it
        config.rope_parameters["partial_rotary_factor"] = rotary_dim / config.head_dim
    config._attn_implementation, config._experts_implementation, config.use_cache = "eager", "eager", False
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    return config


def layout(family, folder):
    """Where the experts of the checkpoint in `folder` lie."""
    wrapped = (pathlib.Path(folder) / "config.json").read_text().find('"text_config"') >= 0
    return family.layout if wrapped or not hasattr(family.layout, "wrapper") else type(family.layout)()


def maps(family, folder, with_mtp=False):
    """Every tensor of the text model, FP8 and MXFP4 decoded; of an MTP module only `with_mtp`."""
    tensors = layout(family, folder).from_disk(models.read(folder))
    num_layers = text_settings(folder)["num_hidden_layers"]
    return {
        name: tensor
        for name, tensor in tensors.items()
        if with_mtp or not name.startswith("model.layers.") or int(name.split(".")[2]) < num_layers
    }


def draw(shapes, generator):
    """{name: fp32 tensor} for {name: shape}."""
    noise = lambda shape: torch.randn(shape, generator=generator)
    vocab, width = shapes["model.embed_tokens.weight"]
    common_D = torch.where(noise((width,)) > 0, 1.0, -1.0)
    drawn, empty = {}, {}
    for name, shape in shapes.items():
        layer, leaf = name.partition(".layers.")[2].split(".")[0], name.removesuffix(".weight").split(".")[-1]
        router = leaf in ("gate", "router") or ".router." in name
        if router or leaf == "e_score_correction_bias":
            empty[layer] = (3 * len(empty) + 1) % shape[0] if layer not in empty else empty[layer]
        if name == "model.embed_tokens.weight":
            drawn[name] = 0.8 * noise(shape) + 0.7 * common_D
        elif router and name.endswith(".weight"):
            drawn[name] = 1.5 / math.sqrt(width) * noise(shape)
            drawn[name][empty[layer]] = -8.0 / math.sqrt(width) * common_D
        elif leaf == "e_score_correction_bias":
            drawn[name] = 0.3 * noise(shape)
            drawn[name][empty[layer]] = -2.0  # below any sigmoid
        elif router:
            drawn[name] = 0.5 * noise(shape)
            drawn[name][empty[layer]] = -8.0
        elif leaf.endswith("norm"):
            drawn[name] = 1.0 + 0.2 * noise(shape)
        elif leaf == "sinks":
            drawn[name] = noise(shape)
        elif "experts." in name and "gate_up_proj" in name:  # gpt-oss: so large that some gates and ups are clamped
            drawn[name] = 2.0 * noise(shape) if leaf == "bias" else 2.5 / math.sqrt(width) * noise(shape)
        elif leaf == "bias":
            drawn[name] = 0.3 * noise(shape)
        else:
            drawn[name] = noise(shape) / math.sqrt(shape[-1])
    return drawn


def separate(maps, settings, generator):
    """Every token is of a kind that its embedding says and every router hears: it gives K experts of one group high
    scores and the others low ones, so that rounding to bf16 changes no choice. Changes `maps`."""
    embedding_VD = maps["model.embed_tokens.weight"]
    vocab, width = embedding_VD.shape
    kinds, strength = 6, 3.0
    direction_CD = torch.linalg.qr(torch.randn(width, kinds, generator=generator)).Q.T
    kind_VC = torch.nn.functional.one_hot(torch.arange(vocab) % kinds, kinds).float()
    noise_VD = 0.8 * torch.randn(vocab, width, generator=generator)
    embedding_VD.copy_(noise_VD + strength * math.sqrt(width) * kind_VC @ direction_CD)
    for name, tensor in maps.items():
        if name.endswith("eh_proj.weight"):  # the module for multi-token prediction hears the kind of the next token
            tensor[:, :width] += strength * direction_CD.T @ direction_CD
        elif name.endswith("embed_tokens.weight"):
            tensor.copy_(embedding_VD)
        elif name.endswith("e_score_correction_bias"):
            tensor.copy_((0.05 * torch.randn(tensor.shape, generator=generator)).bfloat16())
        elif name.endswith("router.bias"):
            tensor.copy_(0.2 * torch.randn(tensor.shape, generator=generator))
        elif "experts." in name and ".gate_up_proj." in name:
            tensor.mul_(0.4)  # gpt-oss: at the size of the other families', or its experts would drown the kind
        elif adapter_files.is_router(name):
            level_EC = torch.stack([levels(len(tensor), settings, generator) for _ in range(kinds)], 1)
            tensor.copy_(level_EC @ direction_CD / math.sqrt(width) * 2)


def levels(num_experts, settings, generator):
    """Scores of all experts for one kind of token: from 2 to 1 for the chosen ones, from -0.5 to -1.5 for the others."""
    top_k, groups = settings["num_experts_per_tok"], settings.get("n_group") or 1
    size, shuffled = num_experts // groups, lambda count: torch.randperm(count, generator=generator)
    chosen = shuffled(groups)[0] * size + shuffled(size)[:top_k]
    level_E = torch.linspace(-0.5, -1.5, num_experts)[shuffled(num_experts)]
    level_E[chosen] = torch.linspace(2.0, 1.0, top_k)
    return level_E


def with_dense_layers(names, settings):
    """DeepSeek-V2's `moe_layer_freq`, which transformers does not know: layers between have one dense MLP."""
    frequency = settings.get("moe_layer_freq", 1)
    dense = {
        f"model.layers.{layer}.mlp."
        for layer in range(settings["first_k_dense_replace"], settings["num_hidden_layers"])
        if layer % frequency
    }
    kept = {name: tensor for name, tensor in names.items() if not name.startswith(tuple(dense) or ("-",))}
    width, inner = settings["hidden_size"], settings["intermediate_size"]
    for prefix in sorted(dense):
        for leaf in ("gate_proj", "up_proj", "down_proj"):
            kept[f"{prefix}{leaf}.weight"] = torch.empty((width, inner) if leaf == "down_proj" else (inner, width))
    return kept


def mtp_module(maps, layer, generator):
    """One more decoder layer like the last, and what stands around it."""
    last = f"model.layers.{layer - 1}."
    names = {name: tensor.shape for name, tensor in maps.items() if name.startswith(last)}
    names["model.embed_tokens.weight"] = maps["model.embed_tokens.weight"].shape
    module = draw(names, generator)
    module = {name.replace(last, f"model.layers.{layer}."): module[name] for name in names if name.startswith(last)}
    return module | models.mtp_extras(maps, layer, generator, models.Shape(seed=0))


def vision_tensors(generator, dtype):
    """Some of what stands beside the text model, under published names."""
    names = {
        "vision_model.patch_embedding.linear.weight": (16, 588),
        "vision_model.class_embedding": (16,),
        "vision_model.model.layers.0.self_attn.q_proj.weight": (16, 16),
        "vision_model.model.layers.0.mlp.fc1.weight": (64, 16),
        "vision_model.vision_adapter.mlp.fc1.weight": (16, 64),
        "multi_modal_projector.linear_1.weight": (64, 16),
    }
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in names.items()}
