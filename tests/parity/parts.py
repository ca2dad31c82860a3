"""The named parts of a model, as a recipe's train.parts has them, by the names of the tensors that checkpoints have.

parts.part("model.layers.0.self_attn.sinks") == "attention"
parts.decays("model.norm.weight")            # False: AdamW's weight decay is for matrices
"""

import re

import adapter_files

ALL = ("experts", "attention", "dense_mlp", "shared_expert", "router", "norms", "embedding", "head")


def is_norm(name):
    return re.search(r"norm\.weight$", name) is not None


def part(name):
    """Of a tensor that gradients move; routers' correction biases are in none."""
    if is_norm(name):
        return "norms"
    if name.endswith("embed_tokens.weight"):
        return "embedding"
    if name.endswith(("lm_head.weight", "shared_head.head.weight", "eh_proj.weight")):
        return "head"
    if ".shared_expert" in name:  # its gate too
        return "shared_expert"
    if ".experts." in name:
        return "experts"
    if adapter_files.is_router(name) or name.endswith(".router.bias"):
        return "router"
    return "attention" if ".self_attn." in name else "dense_mlp"


def decays(name):
    """Whether those who train with transformers let it decay: no norms, biases or sinks."""
    return not (is_norm(name) or name.endswith((".bias", ".sinks")))
