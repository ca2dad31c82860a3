"""What moetune must compute on a checkpoint of any family, for reference.run.

    expected = reference.run(config, kind=oracle.Oracle)

The network is transformers' own, one document at a time, so that nothing depends on how it keeps packed documents
apart (DeepSeek-V2: its authors' equations). Adapters enter as in reference.Reference: every map is W + scale * B A, a
function of the leaves A and B, stacked afterwards as transformers holds experts.
"""

import contextlib
import json
import pathlib
import re

import torch
from transformers import AutoModelForCausalLM, Llama4ForCausalLM

import adapter_files
import held_weights
import parts
import reference
from families import FAMILIES, checkpoint, deepseek_v2_equations, mtp

CORRECTION_BIAS = "e_score_correction_bias"


def family(folder):
    """The Family of the checkpoint in `folder`."""
    model_type = json.loads((pathlib.Path(folder) / "config.json").read_text())["model_type"]
    return FAMILIES[{"llama4": "llama4_text"}.get(model_type, model_type)]


def pretrained(folder, dtype=torch.float32, attention="eager"):
    """transformers' model of a checkpoint folder, loaded its own way from the names on disk; attention None: what
    transformers takes for it by default."""
    text = "text_config" in json.loads((pathlib.Path(folder) / "config.json").read_text())
    kind = Llama4ForCausalLM if text else AutoModelForCausalLM
    config = checkpoint.configuration(folder)
    config._attn_implementation = attention
    return kind.from_pretrained(
        folder,
        config=config,
        dtype=dtype,
        attn_implementation=attention,
        experts_implementation="eager",
    ).eval()


def alone(model, documents):
    """Logits of a transformers (or PEFT) model, document by document."""
    inputs = [torch.tensor([document["input_ids"]]) for document in documents]
    return torch.cat([model(input_ids=ids, use_cache=False).logits[0] for ids in inputs])


class TransformersNetwork:
    """Logits of one document at a time under given maps; what each router did with it is in `routed`. With its module
    for multi-token prediction, those of the module too."""

    def __init__(self, folder, layout, dtype, with_mtp=False):
        self.layout, self.routed, self.state_TD = layout, {}, None
        config = checkpoint.configuration(folder)
        self.tied = config.tie_word_embeddings
        config.tie_word_embeddings = False  # the head is handed in
        self.network = AutoModelForCausalLM.from_config(config, dtype=torch.float32).to(dtype).eval()
        reference.keep_angles_narrow(self.network.model.rotary_emb)
        wide = dtype == torch.float64
        self.precision = reference.Widen if wide else contextlib.nullcontext
        self.routers = [
            name for name, module in self.network.named_modules() if re.search("Router$", type(module).__name__)
        ]
        for name in self.routers:
            self.network.get_submodule(name).register_forward_hook(
                lambda _module, _inputs, output, name=name: self.routed.update({name: routing(output)})
            )
        self.mtp = mtp.Module(self.network, layout) if with_mtp else None
        self.network.model.register_forward_hook(self.remember)

    def remember(self, _module, _inputs, output):
        self.state_TD = output.last_hidden_state[0]

    def mtp_logits(self, maps, tokens_T):
        """Of the document that logits() had last."""
        with self.precision():
            return self.mtp.logits(maps, tokens_T, self.state_TD)

    def logits(self, maps, tokens_T):
        maps = {name: tensor for name, tensor in maps.items() if not self.mtp or not name.startswith(self.mtp.prefix)}
        parameters = self.layout.network(maps)
        if self.tied:
            parameters["lm_head.weight"] = parameters["model.embed_tokens.weight"]
        missing = self.network.state_dict().keys() ^ parameters.keys()
        assert not missing, f"in the checkpoint or the network alone: {sorted(missing)}"
        with self.precision():
            return torch.func.functional_call(self.network, parameters, kwargs=dict(input_ids=tokens_T[None])).logits[0]


def routing(output):
    """(logits, weights, chosen) of a router; Llama-4's gives the scores of all experts, 0 where not chosen."""
    if len(output) == 3:
        return output
    scores_TE, logits_TE = output
    weights_TK, chosen_TK = scores_TE.topk(int((scores_TE > 0).sum(-1).max()))
    return logits_TE, weights_TK, chosen_TK


class Oracle:
    """One checkpoint and one adapter; the leaves that train are in `leaves`."""

    def __init__(self, config):
        self.config, folder = config, config["model"]
        self.dtype = torch.float64 if config["compute"] == "fp64" else torch.float32
        self.family = family(folder)
        layout = checkpoint.layout(self.family, folder)
        if self.family.equations:
            self.network = deepseek_v2_equations.Network(checkpoint.text_settings(folder), self.dtype)
        else:
            self.network = TransformersNetwork(folder, layout, self.dtype, self.with_mtp)
        stored = checkpoint.maps(self.family, folder, self.with_mtp)
        shared = mtp.shared_copies(stored)
        self.chosen = self.chosen_experts(stored, shared)
        trained = {name: tensor for name, tensor in stored.items() if self.trains(name) and name not in shared}
        held = held_weights.held(stored, config["base"]) | trained
        self.weights = {name: tensor.to(self.dtype) for name, tensor in held.items()}
        self.weights |= {copy: self.weights[main] for copy, main in shared.items()}
        self.leaves, self.adapter = {}, None
        if config["adapter"]:
            self.adapter = adapter_files.read(config["adapter"]["from"])
            self.pairs = layout.pairs(self.adapter.pairs, self.adapter.rank)
            for path, (A_RI, B_OR) in self.pairs.items():
                self.leaves[path + ".lora_A.weight"] = A_RI.to(self.dtype)
                self.leaves[path + ".lora_B.weight"] = B_OR.to(self.dtype)
        self.leaves |= {name: self.weights[name] for name in trained}
        for leaf in self.leaves.values():
            leaf.requires_grad_()

    def chosen_experts(self, stored, shared):
        """A function of the layer's number: the experts whose weights train; None: all."""
        said = self.config["experts"]
        if said == "all":
            return lambda layer: None
        if not str(said).startswith("top "):
            return lambda layer: said
        # Those of the greatest load on all documents, as transformers' routers send them.
        self.weights = {name: tensor.to(self.dtype) for name, tensor in stored.items()}
        self.weights |= {copy: self.weights[main] for copy, main in shared.items()}
        load = {}
        with torch.no_grad():
            for document in self.config["documents"]:
                self.network.logits(self.weights, torch.tensor(document["input_ids"]))
                for name, (logits_TE, _, chosen_TK) in self.network.routed.items():
                    layer = int(name.split(".")[2])
                    count = torch.bincount(chosen_TK.flatten(), minlength=logits_TE.shape[-1])
                    load[layer] = load.get(layer, 0) + count
        count = int(said.removeprefix("top "))
        self.loads = load
        order = {layer: torch.sort(load_E, stable=True, descending=True).indices for layer, load_E in load.items()}
        return lambda layer: sorted(order[layer][:count].tolist())

    def trains(self, name):
        """Whether the tensor itself trains."""
        expert = re.search(r"\.layers\.(\d+)\..*\.experts\.(\d+)\.", name)
        if expert and (chosen := self.chosen(int(expert[1]))) is not None and int(expert[2]) not in chosen:
            return False
        named = self.config["parts"]
        if named == "auto":
            named = [] if self.config["adapter"] else parts.ALL
        if self.config["router_train"] == "full":
            named = [*named, "router"]
        return not name.endswith(CORRECTION_BIAS) and parts.part(name) in named

    def effective(self):
        """The maps as functions of the leaves."""
        weights = dict(self.weights)
        if self.adapter:
            for path in self.pairs:
                A_RI, B_OR = self.leaves[path + ".lora_A.weight"], self.leaves[path + ".lora_B.weight"]
                weights[path + ".weight"] = weights[path + ".weight"] + self.adapter.scale * (B_OR @ A_RI)
        return weights

    @property
    def with_mtp(self):
        return self.config["mtp_loss_weight"] > 0

    def router_biases(self):
        """{router: correction bias}; none in most families."""
        biases = {name.split(".")[2]: tensor for name, tensor in self.weights.items() if name.endswith(CORRECTION_BIAS)}
        return {name: biases[name.split(".")[2]] for name in self.network.routers if biases}

    def update_router_bias(self, routed):
        for name, bias_E in self.router_biases().items():
            chosen_TK = torch.cat([chosen_TK for _, _, chosen_TK in routed[name]])
            reference.update_bias(bias_E, chosen_TK, self.config["bias_rate"])

    def balance_loss(self, routed, documents):
        routers = []
        for parts in routed.values():
            logits_TE, chosen_TK = (torch.cat([part[i] for part in parts]) for i in (0, 2))
            routers.append((reference.probabilities(logits_TE, self.family.scores), chosen_TK))
        lengths = [len(document["input_ids"]) for document in documents]
        return self.config["balance_loss"] * reference.balance_loss(self.config["balance"], routers, lengths)

    def losses(self, documents):
        """{"logits", "loss", "mtp_loss" and "balance_loss" where they are on, "total", "routed": {router: [(logits,
        weights, chosen) of each document]}}."""
        effective, logits, mtp_logits, routed = self.effective(), [], [], {}
        for document in documents:
            tokens_T = torch.tensor(document["input_ids"])
            logits.append(self.network.logits(effective, tokens_T))
            if self.with_mtp:
                mtp_logits.append(self.network.mtp_logits(effective, tokens_T))
            for name, routing in self.network.routed.items():
                routed.setdefault(name, []).append(routing)
        logits_TV = torch.cat(logits)
        labels = [torch.tensor(document["labels"]) for document in documents]
        loss = reference.mean_nll(logits_TV, labels, 1)
        result = dict(logits=logits_TV, loss=loss, total=loss, routed=routed)
        if self.with_mtp:
            result["mtp_loss"] = reference.mean_nll(torch.cat(mtp_logits), labels, 2)
            result["total"] = result["total"] + self.config["mtp_loss_weight"] * result["mtp_loss"]
        if self.config["balance_loss"] > 0:
            result["balance_loss"] = self.balance_loss(routed, documents)
            result["total"] = result["total"] + result["balance_loss"]
        return result
