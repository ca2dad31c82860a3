"""What moetune must compute, computed by transformers, torch.optim and, for the MTP module and the balance loss, by the
equations of the DeepSeek-V3 report (arXiv:2412.19437).

    expected = reference.run(config)      # takes a CONFIG, returns the tensors of moetune_parity by name (README.md)

Adapters enter as effective weights: every weight of the model is W + scale * B A, a function of the leaves A and B, and
the fused expert tensors of transformers 5 are stacked from such effective per-expert weights, so autograd yields the
gradient of every leaf under its Hugging Face name. reference_test.py compares this construction with PEFT itself.
"""

import contextlib

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from transformers import DeepseekV3Config
from transformers.masking_utils import create_causal_mask
from transformers.models.deepseek_v3 import modeling_deepseek_v3 as deepseek

import adapter_files
import held_weights
import models
import parts

IGNORED = -100


class Widen(TorchFunctionMode):
    """Turns every request for float32 inside transformers (norms, router, softmax) into one for float64."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        wide = lambda value: torch.float64 if value is torch.float32 else value
        if function is torch.Tensor.float:
            return args[0].double()
        return function(*map(wide, args), **{key: wide(value) for key, value in (kwargs or {}).items()})


def keep_angles_narrow(rotary):
    """Cosines and sines come from fp32 whatever else is wide: transformers says so, and so they are constants of the
    model."""
    forward = rotary.forward

    def narrow(x, position_ids):
        with torch._C.DisableTorchFunction():  # Widen included
            angles = forward(x.float(), position_ids=position_ids)
            if not torch.is_tensor(angles):
                return tuple(part.to(x.dtype) for part in angles)
            # One complex tensor where a family turns pairs; what is multiplied with it widens it. torch.polar makes it
            # of other cosines and sines in the last bit than torch.cos and torch.sin.
            turns = position_ids[..., None].float() * rotary.inv_freq.float()
            return torch.complex(turns.cos(), turns.sin()) * rotary.attention_scaling

    rotary.forward = narrow


class Network(nn.Module):
    """DeepseekV3ForCausalLM, with the MTP module, if the checkpoint has one, as layer L of `model.layers`.

    Parameter names are those of the checkpoint except that the routed experts are fused; transformers runs
    only the first L layers of the list by itself.
    """

    def __init__(self, folder, attention):
        super().__init__()
        self.config = config = DeepseekV3Config.from_pretrained(folder)
        config._attn_implementation, config._experts_implementation, config.use_cache = attention, "eager", False
        causal_lm = deepseek.DeepseekV3ForCausalLM(config)
        self.model, self.lm_head = causal_lm.model, causal_lm.lm_head
        if config.num_nextn_predict_layers:
            layer = deepseek.DeepseekV3DecoderLayer(config, config.num_hidden_layers)
            norm = lambda: deepseek.DeepseekV3RMSNorm(config.hidden_size, config.rms_norm_eps)
            layer.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
            layer.enorm, layer.hnorm = norm(), norm()
            layer.eh_proj = nn.Linear(2 * config.hidden_size, config.hidden_size, bias=False)
            layer.shared_head = nn.ModuleDict(
                dict(norm=norm(), head=nn.Linear(config.hidden_size, config.vocab_size, bias=False))
            )
            self.model.layers.append(layer)
        self.routers = {
            name: module for name, module in self.named_modules() if isinstance(module, deepseek.DeepseekV3TopkRouter)
        }
        self.routed = {}
        for name, router in self.routers.items():
            router.register_forward_hook(lambda _module, _inputs, output, name=name: self.routed.update({name: output}))

    def forward(self, documents, with_mtp):
        """Logits of the packed documents; the MTP module's (None without); {router: (logits, weights, chosen)}.

        documents: list of 1-D token tensors, laid end to end in one row; positions restart at each.
        """
        self.routed = {}
        tokens_T = torch.cat(documents)
        lengths = [len(document) for document in documents]
        h_TD = self.model(input_ids=tokens_T[None], position_ids=positions(lengths)[None]).last_hidden_state[0]
        mtp_TV = self.mtp(tokens_T, h_TD, lengths) if with_mtp else None
        return self.lm_head(h_TD), mtp_TV, dict(self.routed)

    def mtp(self, tokens_T, h_TD, lengths):
        """Equations 21-23 at depth 1 (the checkpoint's eh_proj takes the embedding first, the report's the state
        first).

        Row i of a document of n tokens, i = 0 .. n-2, sees h_i and t_{i+1} and predicts t_{i+2}; h is the trunk's
        output after model.norm.
        """
        layer = self.model.layers[self.config.num_hidden_layers]
        ends = torch.tensor(lengths).cumsum(0)
        has_next = torch.ones(len(tokens_T), dtype=torch.bool)
        has_next[ends - 1] = False
        row_idx = has_next.nonzero()[:, 0]
        z_TD = layer.eh_proj(
            torch.cat([layer.enorm(layer.embed_tokens(tokens_T[row_idx + 1])), layer.hnorm(h_TD[row_idx])], -1)
        )
        position_ids = positions([length - 1 for length in lengths])[None]
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=z_TD[None],
            attention_mask=None,
            past_key_values=None,
            position_ids=position_ids,
        )
        out_TD = layer(
            z_TD[None],
            attention_mask=mask,
            position_ids=position_ids,
            position_embeddings=self.model.rotary_emb(z_TD[None], position_ids=position_ids),
        )[0]
        return layer.shared_head["head"](layer.shared_head["norm"](out_TD))


def positions(lengths):
    """0 .. n-1 for each document, end to end."""
    return torch.cat([torch.arange(length) for length in lengths])


class Reference:
    """One model, one adapter or none, one set of losses; the leaves that train are in `leaves`."""

    def __init__(self, config, attention="sdpa"):
        self.config = config
        self.dtype = torch.float64 if config["compute"] == "fp64" else torch.float32
        # Not under Widen: the frequencies of the rotary angles are constants that transformers computes in fp32.
        self.network = Network(config["model"], attention).to(self.dtype)
        keep_angles_narrow(self.network.model.rotary_emb)
        self.weights = {
            name: tensor.to(self.dtype)
            for name, tensor in held_weights.held(models.read(config["model"]), config["base"]).items()
        }
        if self.network.config.tie_word_embeddings:
            self.weights["lm_head.weight"] = self.weights["model.embed_tokens.weight"]
        self.network.load_state_dict(
            fuse(self.weights, self.network.config.n_routed_experts)
        )  # nothing missing or left
        self.share_mtp_copies()
        self.leaves, self.adapter = {}, None
        if config["adapter"]:
            self.adapter = adapter_files.read(config["adapter"]["from"])
            for path, (A_RI, B_OR) in self.adapter.pairs.items():
                self.leaves[path + ".lora_A.weight"] = A_RI.to(self.dtype)
                self.leaves[path + ".lora_B.weight"] = B_OR.to(self.dtype)
        else:
            self.leaves = {
                name: tensor
                for name, tensor in self.weights.items()
                if not name.endswith("e_score_correction_bias") and self.takes_part(name) and name not in self.shared
            }
        for leaf in self.leaves.values():
            leaf.requires_grad_()

    def precision(self):
        """The context in which everything of transformers must run."""
        return Widen() if self.dtype == torch.float64 else contextlib.nullcontext()

    def takes_part(self, name):
        """Whether the tensor has any effect on the losses asked for: the MTP module has none at weight 0."""
        return self.with_mtp or not name.startswith(f"model.layers.{self.network.config.num_hidden_layers}.")

    @property
    def with_mtp(self):
        return self.config["mtp_loss_weight"] > 0

    def share_mtp_copies(self):
        """Embedding and head of the MTP module are the main ones where the files hold equal values."""
        layer = self.network.config.num_hidden_layers
        pairs = {
            f"model.layers.{layer}.embed_tokens.weight": "model.embed_tokens.weight",
            f"model.layers.{layer}.shared_head.head.weight": "lm_head.weight",
        }
        self.shared = {
            copy: main
            for copy, main in pairs.items()
            if copy in self.weights and torch.equal(self.weights[copy], self.weights[main])
        }

    def effective(self):
        """The parameters and buffers of `network`, as functions of the leaves."""
        weights = dict(self.weights)
        if self.adapter:
            for path in self.adapter.pairs:
                A_RI, B_OR = self.leaves[path + ".lora_A.weight"], self.leaves[path + ".lora_B.weight"]
                weights[path + ".weight"] = weights[path + ".weight"] + self.adapter.scale * (B_OR @ A_RI)
        for copy, main in self.shared.items():
            weights[copy] = weights[main]
        return fuse(weights, self.network.config.n_routed_experts)

    def forward(self, documents, effective):
        """Network.forward under the effective weights."""
        with self.precision():
            return torch.func.functional_call(self.network, effective, (documents, self.with_mtp))

    def losses(self, documents):
        """{"logits", "loss", "mtp_loss", "balance_loss", "total", "routed"} of [{"input_ids", "labels"}]."""
        tokens = [torch.tensor(document["input_ids"]) for document in documents]
        labels = [torch.tensor(document["labels"]) for document in documents]
        logits_TV, mtp_TV, routed = self.forward(tokens, self.effective())
        result = dict(logits=logits_TV, routed=routed, loss=mean_nll(logits_TV, labels, 1))
        result["total"] = result["loss"]
        if self.with_mtp:
            result["mtp_loss"] = mean_nll(mtp_TV, labels, 2)
            result["total"] = result["total"] + self.config["mtp_loss_weight"] * result["mtp_loss"]
        if self.config["balance_loss"] > 0:
            routers = [routed[name] for name in self.trunk_routers()]
            scores = [(probabilities(logits_TE, "sigmoid"), chosen_TK) for logits_TE, _, chosen_TK in routers]
            lengths = [len(document) for document in tokens]
            result["balance_loss"] = self.config["balance_loss"] * balance_loss(self.config["balance"], scores, lengths)
            result["total"] = result["total"] + result["balance_loss"]
        return result

    def trunk_routers(self):
        """Names of the routers, those of the MTP module left out."""
        return [
            name for name in self.network.routers if int(name.split(".")[2]) < self.network.config.num_hidden_layers
        ]

    def router_biases(self):
        """{router: correction bias} of those that take part."""
        return {
            name: self.weights[name + ".e_score_correction_bias"]
            for name in self.network.routers
            if self.takes_part(name)
        }

    def update_router_bias(self, routed):
        for name, bias_E in self.router_biases().items():
            _, _, chosen_TK = routed[name]
            update_bias(bias_E, chosen_TK, self.config["bias_rate"])


def update_bias(bias_E, chosen_TK, rate):
    """b_i += rate * sign(mean load - load_i) over all tokens of the step (section 2.1.2 of the report)."""
    load_E = torch.bincount(chosen_TK.flatten(), minlength=len(bias_E))
    bias_E += rate * torch.sign(load_E.sum() - load_E * len(bias_E)).to(bias_E.dtype)


def fuse(weights, num_experts):
    """Per-expert tensors stacked as transformers 5 holds them: gate_up_proj [E, 2F, D], down_proj [E, D, F]."""
    fused = {name: tensor for name, tensor in weights.items() if ".mlp.experts." not in name}
    for prefix in {name.split(".experts.")[0] + ".experts." for name in weights if ".mlp.experts." in name}:
        stack = lambda leaf: torch.stack([weights[f"{prefix}{expert}.{leaf}.weight"] for expert in range(num_experts)])
        fused[prefix + "gate_up_proj"] = torch.cat([stack("gate_proj"), stack("up_proj")], 1)
        fused[prefix + "down_proj"] = stack("down_proj")
    return fused


def mean_nll(logits_TV, labels, ahead):
    """Mean of -log p over the targets: row i of a document predicts its label i + ahead, unless that is -100.

    logits_TV: `len - ahead + 1` rows a document (the last one has no target).
    """
    targets_T = torch.cat([F.pad(label, (0, 1), value=IGNORED)[ahead:] for label in labels])
    return F.cross_entropy(logits_TV, targets_T, ignore_index=IGNORED)


def probabilities(logits_TE, scores):
    """What a balance loss takes for the probability of each expert: softmax, or sigmoids over their sum."""
    if scores == "softmax":
        return logits_TE.softmax(-1)
    scores_TE = logits_TE.sigmoid()
    return scores_TE / scores_TE.sum(-1, keepdim=True)


def balance_loss(kind, routers, lengths):
    """Without its weight. routers: (probabilities [T, E], chosen [T, K]) of each layer, over the tokens of the step;
    lengths: of its documents."""
    if kind == "sequence":
        return sequence_balance_loss(routers, lengths)
    if kind == "pooled":
        return pooled_balance_loss(routers)
    assert kind == "switch", kind
    return sum(pooled_balance_loss([router]) for router in routers)


def sequence_balance_loss(routers, lengths):
    """Equations 17-20: sum over layers of sum_i f_i P_i, averaged over documents.

    f_i counts the top-k of the plain scores (no bias, no groups) and carries no gradient.
    """
    terms = []
    for probability_TE, chosen_TK in routers:
        top_k = chosen_TK.shape[-1]
        for document_TE in probability_TE.split(lengths):
            T, E = document_TE.shape
            f_E = torch.bincount(document_TE.topk(top_k).indices.flatten(), minlength=E).to(document_TE.dtype)
            terms.append((f_E * E / (top_k * T) * document_TE.mean(0)).sum())
    return sum(terms) / len(lengths)


def pooled_balance_loss(routers):
    """E sum_i f_i P_i over the tokens of these layers together, f_i being the choices of expert i a token, all K
    counted: of one layer Fedus et al. 2021, eq. 4-6, of all transformers' load_balancing_loss_func."""
    probability_TE, chosen_TK = (torch.cat(tensors) for tensors in zip(*routers))
    T, E = probability_TE.shape
    f_E = torch.bincount(chosen_TK.flatten(), minlength=E).to(probability_TE.dtype) / T
    return E * (f_E * probability_TE.mean(0)).sum()


def run(config, kind=Reference):
    """Every tensor that moetune_parity writes for `config`; `kind` makes the object with `leaves` and `losses`.

    `logits`, the losses and `grad/` belong to the parameters at the start (gradients as the update takes them: clipped,
    where there is one), `losses` to each of `steps` AdamW steps on the same batch, `adapter/` (or `weight/`) and
    `router_bias/` to the state after them.
    """
    reference = kind(config)
    documents, leaves = config["documents"], reference.leaves
    decayed = [leaf for name, leaf in leaves.items() if parts.decays(name)]
    others = [leaf for name, leaf in leaves.items() if not parts.decays(name)]
    groups = [dict(params=decayed, weight_decay=config["weight_decay"]), dict(params=others, weight_decay=0.0)]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=config["lr"], eps=config["eps"])
    result, losses = {}, []
    for step in range(max(1, config["steps"])):
        optimizer.zero_grad()
        step_losses = reference.losses(documents)
        step_losses["total"].backward()
        for leaf in leaves.values():  # an expert that got no token trains with a gradient of zero
            leaf.grad = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        losses.append(step_losses["loss"].item())
        if config["steps"]:
            torch.nn.utils.clip_grad_norm_(leaves.values(), config["clip"])
        if step == 0:
            scalars = ("loss", "mtp_loss", "balance_loss")
            result["logits"] = step_losses["logits"].detach()
            result |= {name: step_losses[name].detach()[None] for name in scalars if name in step_losses}
            result |= {f"grad/{name}": leaf.grad.clone() for name, leaf in leaves.items()}
        if config["steps"]:
            optimizer.step()
            if config["router_bias"] == "update":
                reference.update_router_bias(step_losses["routed"])
    if config["steps"]:
        result["losses"] = torch.tensor(losses, dtype=torch.float64)
        kind = "adapter" if reference.adapter else "weight"
        result |= {f"{kind}/{name}": leaf.detach() for name, leaf in leaves.items()}
        if config["router_bias"] == "update":
            result |= {f"router_bias/{name.split('.')[2]}": bias for name, bias in reference.router_biases().items()}
    return result
