"""A checkpoint and an adapter as transformers and PEFT train them together, in any dtype: what a user has otherwise.

    peer = PeftPeer(config, torch.bfloat16, "cuda")
    tensors = peer.run()                        # logits, loss, mtp_loss, grad/NAME of every map by itself, on the CPU

transformers loads the folder, PEFT puts its layers on it: on linear maps x W^T + s (x A^T) B^T, on the fused experts
(`target_parameters`) W + s B A. Base, activations and adapters are of one dtype, which is what PEFT makes of a model
of that dtype with autocast_adapter_dtype=False. Documents lie packed in one row, so that each gradient is one product
and its sum is not rounded document by document. The module for multi-token prediction is transformers' own
(families/mtp.py).
"""

import warnings

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora.layer import LoraLayer, ParamWrapper
from torch import nn
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

import adapter_files
import reference
from families import checkpoint, mtp
from families.layouts import Joint
from families.oracle import CORRECTION_BIAS, family, pretrained


class PeftPeer(nn.Module):
    def __init__(self, config, dtype, device="cpu"):
        super().__init__()
        self.config, self.device, folder = config, device, config["model"]
        self.layout = checkpoint.layout(family(folder), folder)
        self.trunk = pretrained(folder, dtype, attention=None)
        self.with_mtp = config["mtp_loss_weight"] > 0
        if self.with_mtp:
            module = mtp.Module(self.trunk, self.layout)
            maps = checkpoint.maps(family(folder), folder, with_mtp=True)
            parameters, self.embedding, self.head = module.parameters(maps)
            keep_correction_biases(module.layer)
            module.layer.load_state_dict(parameters)
            self.embedding, self.head = (tensor.to(device, dtype) for tensor in (self.embedding, self.head))
            self.mtp, self.mtp_layer = module, module.layer
        self.to(device)
        self.add_adapters(adapter_files.read(config["adapter"]["from"]))

    def add_adapters(self, adapter):
        self.rank, pairs = adapter.rank, self.layout.pairs(adapter.pairs, adapter.rank)
        modules = [
            name for name, part in self.named_modules() if isinstance(part, nn.Linear) and self.map(name) in pairs
        ]
        stacks = [
            f"{name}.{leaf}"
            for name, part in self.named_modules()
            if name.endswith(".experts")
            for leaf, _ in part.named_parameters(recurse=False)
            if f"{self.map(name)}.0.{self.parts(leaf)[0]}" in pairs
        ]
        # As PEFT itself widens ranks when it fuses the adapters of single maps.
        counts = {leaf: len(self.parts(leaf)) for leaf in {name.split(".")[-1] for name in stacks}}
        fused = {rf".*\.experts\.{leaf}": count for leaf, count in counts.items() if count > 1}
        alpha = adapter.scale * adapter.rank
        settings = LoraConfig(
            r=adapter.rank,
            lora_alpha=alpha,
            target_modules=modules,
            target_parameters=stacks,
            rank_pattern={name: count * adapter.rank for name, count in fused.items()},
            alpha_pattern={name: count * alpha for name, count in fused.items()},
        )
        with warnings.catch_warnings():  # PEFT looks for the patterns among modules, and obeys them in parameters too
            warnings.filterwarnings("ignore", message="The following (rank|alpha)_pattern keys")
            inject_adapter_in_model(settings, self)
        taken = set()
        with torch.no_grad():
            for path, A, B in self.adapters():
                if isinstance(path, list):  # of each expert the maps that are fused
                    A_ERI = torch.stack([torch.cat([pairs[name][0] for name in each]) for each in path])
                    B_EOR = torch.stack([torch.block_diag(*[pairs[name][1] for name in each]) for each in path])
                    A.copy_(A_ERI.flatten(0, 1))
                    B.copy_(B_EOR.permute(1, 2, 0).flatten(1))
                    taken.update(name for each in path for name in each)
                else:
                    A.copy_(pairs[path][0])
                    B.copy_(pairs[path][1])
                    taken.add(path)
        assert taken == pairs.keys(), f"PEFT has no layer for {sorted(pairs.keys() - taken)}"

    def map(self, name):
        """The path of a module as the checkpoint has it."""
        name = name.replace(".base_layer", "").removeprefix("trunk.").replace(".mlp.", f".{self.layout.block}.")
        return name.replace("mtp_layer.mtp_block.", f"model.layers.{self.trunk.config.num_hidden_layers}.")

    def parts(self, leaf):
        """The maps of one expert that transformers holds in one stack."""
        if leaf == "gate_up_proj" and not isinstance(self.layout, Joint):
            return [self.layout.gate, self.layout.up]
        return [self.layout.down if leaf == "down_proj" else leaf]

    def adapters(self):
        """(path, A, B) of PEFT's layers; of a stack the paths of every expert's maps, [E][maps fused]."""
        for name, part in self.named_modules():
            if not isinstance(part, LoraLayer):
                continue
            path = self.map(name)
            if isinstance(part, ParamWrapper):
                leaves = self.parts(part.parameter_name)
                path = [[f"{path}.{expert}.{leaf}" for leaf in leaves] for expert in range(part.num_experts)]
            yield path, part.lora_A["default"].weight, part.lora_B["default"].weight

    def gradients(self):
        """{map.lora_A.weight: tensor} of every map by itself."""
        found = {}
        for path, A, B in self.adapters():
            if not isinstance(path, list):
                found |= {f"{path}.lora_A.weight": A.grad, f"{path}.lora_B.weight": B.grad}
                continue
            count = len(path[0])
            A_ERI, B_EOR = A.grad.unflatten(0, (len(path), -1)), B.grad.unflatten(1, (-1, len(path))).permute(2, 0, 1)
            for expert, names in enumerate(path):
                for i, name in enumerate(names):
                    found[f"{name}.lora_A.weight"] = A_ERI[expert].chunk(count, 0)[i]
                    found[f"{name}.lora_B.weight"] = B_EOR[expert].chunk(count, 0)[i].chunk(count, 1)[i]
        return found

    def masks(self, position_1T):
        """What keeps packed documents apart where transformers does not see them: GptOssModel makes its masks without
        the positions."""
        config = self.trunk.config
        if config.model_type != "gpt_oss":
            return None
        like_1TD = self.trunk.get_input_embeddings().weight.new_empty(*position_1T.shape, config.hidden_size)
        packed = dict(
            config=config, inputs_embeds=like_1TD, attention_mask=None, past_key_values=None, position_ids=position_1T
        )
        kinds = dict(full_attention=create_causal_mask, sliding_attention=create_sliding_window_causal_mask)
        return {kind: make(**packed) for kind, make in kinds.items()}

    def run(self):
        """The tensors of moetune_parity before any step, on the CPU; losses in fp32, as transformers takes them."""
        documents = [torch.tensor(document["input_ids"], device=self.device) for document in self.config["documents"]]
        labels = [torch.tensor(document["labels"], device=self.device) for document in self.config["documents"]]
        positions_T = reference.positions([len(document) for document in documents]).to(self.device)
        tokens_1T = torch.cat(documents)[None]
        inputs = dict(position_ids=positions_T[None], attention_mask=self.masks(positions_T[None]), use_cache=False)
        h_TD = self.trunk.model(tokens_1T, **inputs).last_hidden_state[0]
        logits_TV = self.trunk.lm_head(h_TD)
        loss = total = reference.mean_nll(logits_TV.float(), labels, 1)
        result = dict(logits=logits_TV, loss=loss[None])
        if self.with_mtp:
            z_TD = self.mtp_layer(**self.mtp.inputs(self.embedding, documents, h_TD))[0]
            mtp_loss = reference.mean_nll((z_TD @ self.head.T).float(), labels, 2)
            total = total + self.config["mtp_loss_weight"] * mtp_loss
            result["mtp_loss"] = mtp_loss[None]
        total.backward()
        result |= {f"grad/{name}": tensor for name, tensor in self.gradients().items()}
        return {name: tensor.detach().cpu().contiguous() for name, tensor in result.items()}


def keep_correction_biases(module):
    """In fp32, as transformers' own loading leaves them: they only choose."""
    for part in module.modules():
        if hasattr(part, CORRECTION_BIAS):
            part.e_score_correction_bias = part.e_score_correction_bias.float()
