"""What a page of a family holds."""

from dataclasses import dataclass, field

import torch

from families.layouts import PerExpert

ABSENT = object()  # in Shape.config: the key is not in config.json

# Of every tiny model, under the keys of Llama that all families share. rms_norm_eps is large so that a norm that takes
# another one shows; rope_theta is small so that every feature turns within a document.
SMALL = dict(
    vocab_size=128,
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    hidden_act="silu",
    rms_norm_eps=1e-3,
    max_position_embeddings=64,
    rope_theta=1000.0,
    attention_dropout=0.0,
    initializer_range=0.02,
    tie_word_embeddings=False,
    use_cache=True,
    bos_token_id=0,
    eos_token_id=1,
)
YARN = dict(type="yarn", factor=4, original_max_position_embeddings=16, beta_fast=32, beta_slow=1)


@dataclass(frozen=True)
class Shape:
    """One tiny checkpoint: differences from the family's config.json, and how it lies on disk."""

    seed: int
    config: dict = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    shards: int = 1
    new_spelling: bool = False  # config.json as transformers 5 writes it, not as the publishers do
    mtp: bool = False  # the file holds a multi-token-prediction module after the last layer
    fp8: bool = False  # maps are e4m3 with a scale for each block
    layout: PerExpert | None = None  # where it is not the family's
    separated: bool = False  # no near tie in any choice of experts, not even under bf16's rounding
    refused: str | None = None  # the key of config.json that moetune refuses by name, until it computes it


@dataclass(frozen=True)
class Family:
    """`config` is config.json as it is published, with tiny numbers; `text` whether that is one section of it."""

    model_type: str
    architecture: str
    config: dict
    shapes: dict
    layout: PerExpert = PerExpert()
    equations: bool = False  # the oracle is deepseek_v2_equations, not transformers
    scores: str = "softmax"  # of a router's logits; or sigmoid
