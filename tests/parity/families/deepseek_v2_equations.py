"""DeepSeek-V2 as its authors compute it: sections 2.1 and 2.2 of arXiv:2405.04434 and the modeling code that they
publish with the weights. Slow and plain: one document, every expert in turn.

transformers 5.17 differs (families_reference_test.py shows each):
- `norm_topk_prob: true` is ignored there, and the scaling factor applied; the authors normalise and then do not scale
- `moe_layer_freq` is ignored there: a layer has experts iff its index is at least `first_k_dense_replace` and a multiple
- YaRN with `mscale` but no `mscale_all_dim`: the authors multiply cosines and sines by m(mscale) / m(0) = m(mscale),
  m(a) = 0.1 a ln(factor) + 1; transformers by m(1)
"""

import math

import torch
from torch.nn import functional as F

LATENT_EPS = 1e-6  # the norms of the latents do not take the config's


class Network:
    """Logits of one document at a time under given maps ({name: tensor}, see layouts.py)."""

    def __init__(self, config, dtype):
        self.config, self.dtype = config, dtype
        self.inverse_frequencies, self.cosine_factor, self.score_factor = rotary(config)
        layers = range(config["num_hidden_layers"])
        self.routers = [f"model.layers.{layer}.mlp.gate" for layer in layers if self.has_experts(layer)]
        self.routed = {}

    def has_experts(self, layer):
        config = self.config
        return layer >= config["first_k_dense_replace"] and layer % config.get("moe_layer_freq", 1) == 0

    def logits(self, maps, tokens_T):
        config = self.config
        eps = config["rms_norm_eps"]
        x_TD = maps["model.embed_tokens.weight"][tokens_T]
        for layer in range(config["num_hidden_layers"]):
            prefix = f"model.layers.{layer}."
            h_TD = norm(x_TD, maps[prefix + "input_layernorm.weight"], eps)
            x_TD = x_TD + self.attention(maps, prefix + "self_attn.", h_TD)
            h_TD = norm(x_TD, maps[prefix + "post_attention_layernorm.weight"], eps)
            mlp = self.experts if self.has_experts(layer) else swiglu
            x_TD = x_TD + mlp(maps, prefix + "mlp.", h_TD)
        head_VD = maps["model.embed_tokens.weight" if config.get("tie_word_embeddings") else "lm_head.weight"]
        return norm(x_TD, maps["model.norm.weight"], eps) @ head_VD.T

    def attention(self, maps, prefix, h_TD):
        config = self.config
        T, H = len(h_TD), config["num_attention_heads"]
        nope, rope = config["qk_nope_head_dim"], config["qk_rope_head_dim"]
        linear = lambda name, x: x @ maps[prefix + name + ".weight"].T + maps.get(prefix + name + ".bias", 0.0)
        if config["q_lora_rank"] is None:
            q_TA = linear("q_proj", h_TD)
        else:
            latent = norm(linear("q_a_proj", h_TD), maps[prefix + "q_a_layernorm.weight"], LATENT_EPS)
            q_TA = linear("q_b_proj", latent)
        q_nope_THA, q_rope_THA = q_TA.view(T, H, nope + rope).split([nope, rope], -1)
        latent, k_rope_TA = linear("kv_a_proj_with_mqa", h_TD).split([config["kv_lora_rank"], rope], -1)
        latent = norm(latent, maps[prefix + "kv_a_layernorm.weight"], LATENT_EPS)
        kv_THA = linear("kv_b_proj", latent).view(T, H, nope + config["v_head_dim"])
        k_nope_THA, v_THA = kv_THA.split([nope, config["v_head_dim"]], -1)
        q_rope_THA, k_rope_THA = self.rotate(q_rope_THA), self.rotate(k_rope_TA[:, None])
        scores_HTT = torch.einsum("tha,sha->hts", q_nope_THA, k_nope_THA)
        scores_HTT = scores_HTT + torch.einsum("tha,sa->hts", q_rope_THA, k_rope_THA[:, 0])
        scores_HTT = scores_HTT * ((nope + rope) ** -0.5 * self.score_factor)
        future = torch.ones(T, T, dtype=torch.bool).triu(1)
        weights_HTT = scores_HTT.masked_fill(future, -torch.inf).softmax(-1)
        return linear("o_proj", torch.einsum("hts,sha->tha", weights_HTT, v_THA).flatten(1))

    def rotate(self, x_THA):
        """Neighbours (2i, 2i + 1) turn by position * frequency i; angles and their functions are fp32 everywhere."""
        angles_TA = torch.arange(len(x_THA), dtype=torch.float32)[:, None] * self.inverse_frequencies
        cos, sin = ((f(angles_TA) * self.cosine_factor).to(self.dtype)[:, None] for f in (torch.cos, torch.sin))
        even, odd = x_THA[..., ::2], x_THA[..., 1::2]
        return torch.stack([even * cos - odd * sin, odd * cos + even * sin], -1).flatten(-2)

    def experts(self, maps, prefix, h_TD):
        logits_TE = h_TD @ maps[prefix + "gate.weight"].T
        weights_TK, chosen_TK = self.choose(logits_TE.softmax(-1))
        self.routed[prefix + "gate"] = (logits_TE, weights_TK, chosen_TK)
        y_TD = torch.zeros_like(h_TD)
        for expert in range(self.config["n_routed_experts"]):
            row_idx, place_idx = (chosen_TK == expert).nonzero(as_tuple=True)
            out_XD = swiglu(maps, f"{prefix}experts.{expert}.", h_TD[row_idx])
            y_TD = y_TD.index_add(0, row_idx, out_XD * weights_TK[row_idx, place_idx, None])
        return y_TD + swiglu(maps, prefix + "shared_experts.", h_TD)

    def choose(self, scores_TE):
        config = self.config
        K = config["num_experts_per_tok"]
        if config["topk_method"] == "group_limited_greedy":
            scores_TGE = scores_TE.unflatten(-1, (config["n_group"], -1))
            best_TM = scores_TGE.amax(-1).topk(config["topk_group"]).indices
            kept_TG = torch.zeros(scores_TGE.shape[:2], dtype=torch.bool).scatter(1, best_TM, True)
            scores_TE = scores_TGE.masked_fill(~kept_TG[..., None], 0.0).flatten(1)
        weights_TK, chosen_TK = scores_TE.topk(K)
        if K > 1 and config.get("norm_topk_prob"):
            return weights_TK / (weights_TK.sum(-1, keepdim=True) + 1e-20), chosen_TK
        return weights_TK * config["routed_scaling_factor"], chosen_TK


def norm(x, weight, eps):
    return weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps))


def swiglu(maps, prefix, x):
    gate, up = (x @ maps[f"{prefix}{name}.weight"].T for name in ("gate_proj", "up_proj"))
    return (F.silu(gate) * up) @ maps[prefix + "down_proj.weight"].T


def rotary(config):
    """(inverse frequencies [rope / 2], factor of cosines and sines, factor of the attention scores)."""
    new = config.get("rope_parameters", {})  # transformers 5 writes all of it there
    scaling = config.get("rope_scaling") or (new if new.get("rope_type", "default") != "default" else None)
    dim, theta = config["qk_rope_head_dim"], config.get("rope_theta") or new["rope_theta"]
    frequencies = 1.0 / theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    if not scaling:
        return frequencies, 1.0, 1.0
    factor = scaling["factor"]
    border = lambda turns: (
        dim * math.log(scaling["original_max_position_embeddings"] / (turns * 2 * math.pi)) / (2 * math.log(theta))
    )
    low = max(math.floor(border(scaling["beta_fast"])), 0)
    high = min(math.ceil(border(scaling["beta_slow"])), dim - 1)
    ramp = (torch.arange(dim // 2, dtype=torch.float32) - low) / (high - low or 0.001)
    stretched = ramp.clamp(0, 1)
    m = lambda mscale: 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0
    all_dim = scaling.get("mscale_all_dim", 0)
    return (
        frequencies / factor * stretched + frequencies * (1 - stretched),
        m(scaling.get("mscale", 1)) / m(all_dim),
        m(all_dim) ** 2 if all_dim else 1.0,
    )
