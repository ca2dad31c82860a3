"""PEFT adapter folders with random, non-zero A and B, under per-expert two-dimensional keys.

section = adapter_files.write("/tmp/a", model_folder, targets=["attention", "experts"], rank=4, alpha=6.0, seed=1)
adapter = adapter_files.read("/tmp/a")        # Adapter: scale, and {weight name: (A_RI, B_OR)}
"""

import json
import math
import pathlib
from dataclasses import dataclass

import torch
from safetensors.torch import load_file, save_file

import models

PREFIX = "base_model.model."
ATTENTION = ("q_proj", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj")
GROUPS = {"attention": ".self_attn.", "experts": ".experts.", "shared_expert": ".shared_expert"}


@dataclass
class Adapter:
    """delta W = scale * B A for every module path of `pairs` (a path ends before `.weight`)."""

    rank: int
    scale: float
    pairs: dict


def is_projection(name):
    """Whether `name` is a linear map that an adapter can sit on and that NF4 holds; the MTP module's eh_proj, the maps
    of an indexer and a vision tower are not."""
    path, _, kind = name.rpartition(".")
    leaf = path.split(".")[-1]
    named = leaf.endswith("_proj") or leaf in ("kv_a_proj_with_mqa", "w1", "w2", "w3")
    return named and kind == "weight" and not any(part in name for part in ("eh_proj", ".indexer.", "vision_model."))


def group(path):
    """attention, experts, shared_expert or dense_mlp."""
    return next((name for name, part in GROUPS.items() if part in path), "dense_mlp")


def is_router(name):
    """Whether `name` is the map of a router, which an adapter sits on where the recipe's router.train says so."""
    return name.endswith((".mlp.gate.weight", ".block_sparse_moe.gate.weight", ".router.weight"))


def matches(path, target):
    """Whether the recipe's target covers the linear map at `path`.

    A target is a group, a leaf name, or `experts.` and a leaf name; gate_proj, up_proj and down_proj by themselves are
    those of dense MLPs and shared experts.
    """
    leaf = path.split(".")[-1]
    return target in ("all_linear", group(path), "experts." + leaf if group(path) == "experts" else leaf)


def targeted(maps, targets, routers=False):
    """{module path: [O, I]} of every linear map among the tensors `maps` that `targets` cover; `routers`: theirs too."""
    return {
        name.removesuffix(".weight"): tensor.shape
        for name, tensor in maps.items()
        if (is_projection(name) and any(matches(name.removesuffix(".weight"), target) for target in targets))
        or (routers and is_router(name))
    }


def trunk_and_mtp(model_folder, mtp):
    """The tensors of a DeepSeek-V3 checkpoint; those of the MTP module only when `mtp`."""
    num_layers = json.loads((pathlib.Path(model_folder) / "config.json").read_text())["num_hidden_layers"]
    tensors = models.read(model_folder)
    return {
        name: tensor
        for name, tensor in tensors.items()
        if mtp or not name.startswith("model.layers.") or int(name.split(".")[2]) < num_layers
    }


def write(
    folder, model_folder, targets, rank, alpha, seed, rslora=False, mtp=False, maps=None, translate=dict, routers=False
):
    """Writes adapter_config.json and adapter_model.safetensors into `folder` (created).

    maps: the model's tensors where they do not lie on disk one by one; translate: from {map.lora_A.weight: tensor} to
    what the file holds. Returns the `adapter` section of a CONFIG that goes on from them.
    """
    maps = trunk_and_mtp(model_folder, mtp) if maps is None else maps
    folder, generator = pathlib.Path(folder), torch.Generator().manual_seed(seed)
    folder.mkdir(parents=True)
    tensors = {}
    for path, (outputs, inputs) in targeted(maps, targets, routers).items():
        tensors[f"{PREFIX}{path}.lora_A.weight"] = torch.randn(rank, inputs, generator=generator) / math.sqrt(inputs)
        tensors[f"{PREFIX}{path}.lora_B.weight"] = (
            torch.randn(outputs, rank, generator=generator) * 0.3 / math.sqrt(rank)
        )
    leaves = sorted({key.split(".")[-3] for key in tensors})
    save_file(translate(tensors), folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(
        json.dumps(
            dict(
                base_model_name_or_path=str(model_folder),
                bias="none",
                fan_in_fan_out=False,
                inference_mode=True,
                init_lora_weights=True,
                lora_alpha=alpha,
                lora_dropout=0.0,
                modules_to_save=None,
                peft_type="LORA",
                r=rank,
                target_modules=leaves,
                task_type="CAUSAL_LM",
                use_dora=False,
                use_rslora=rslora,
            ),
            indent=2,
        )
    )
    return dict(rank=rank, alpha=alpha, rslora=rslora, targets=targets) | {"from": str(folder)}


def read(folder):
    """The Adapter in `folder`."""
    folder = pathlib.Path(folder)
    settings = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    root = math.sqrt(settings["r"]) if settings["use_rslora"] else settings["r"]
    paths = [key.removesuffix(".lora_A.weight") for key in tensors if key.endswith(".lora_A.weight")]
    return Adapter(
        settings["r"],
        settings["lora_alpha"] / root,
        {
            path.removeprefix(PREFIX): (tensors[path + ".lora_A.weight"], tensors[path + ".lora_B.weight"])
            for path in paths
        },
    )
