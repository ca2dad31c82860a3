"""Where a family's expert weights lie: on disk, in transformers' modules, and one by one.

Everything in this folder computes with *maps*: {name: tensor} with one [O, I] matrix for every linear map, also where a
checkpoint or a module stacks those of all experts. A layout translates:

    layout.maps(layout.network(maps))  == maps        # transformers 5's parameters and buffers
    layout.from_disk(layout.disk(maps)) == maps       # the file that users download

Adapters are translated the same way: `adapter` and `pairs` between one A and B for every map and the tensors of a PEFT
file.
"""

import re
from dataclasses import dataclass

import torch

EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.(.+)")
STACK = re.compile(r"(.*\.experts)\.([a-z_]+)")
MXFP4_VALUES = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
MXFP4_BLOCK = 32


def stacks(tensors):
    """(everything outside the experts, {prefix: {leaf: [E, ...]}})."""
    rest, found = {}, {}
    for name, tensor in tensors.items():
        if match := EXPERT.fullmatch(name):
            prefix, expert, leaf = match.groups()
            found.setdefault(prefix, {}).setdefault(leaf, {})[int(expert)] = tensor
        else:
            rest[name] = tensor
    stack = lambda experts: torch.stack([experts[expert] for expert in range(len(experts))])
    return rest, {prefix: {leaf: stack(each) for leaf, each in leaves.items()} for prefix, leaves in found.items()}


def unstacked(prefix, leaves):
    """{prefix.e.leaf: [...]} of {leaf: [E, ...]}."""
    return {f"{prefix}.{e}.{leaf}": tensor[e] for leaf, tensor in leaves.items() for e in range(len(tensor))}


@dataclass(frozen=True)
class PerExpert:
    """One matrix for each expert and map on disk; transformers holds gate_up_proj [E, 2F, D] and down_proj [E, D, F]."""

    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"
    block: str = "mlp"  # what the checkpoint calls the module that transformers calls mlp, in expert layers

    def network(self, maps):
        rest, experts = stacks(maps)
        for prefix, leaves in experts.items():
            rest[prefix + ".gate_up_proj"] = torch.cat([leaves[self.gate + ".weight"], leaves[self.up + ".weight"]], 1)
            rest[prefix + ".down_proj"] = leaves[self.down + ".weight"]
        return {name.replace(f".{self.block}.", ".mlp."): tensor for name, tensor in rest.items()}

    def maps(self, network):
        maps = {}
        for name, tensor in network.items():
            if self.block != "mlp":
                name = name.replace(".mlp.", f".{self.block}.")
            match = STACK.fullmatch(name)
            if match and match[2] == "gate_up_proj":
                gate, up = tensor.chunk(2, 1)
                maps |= unstacked(match[1], {self.gate + ".weight": gate, self.up + ".weight": up})
            elif match:
                maps |= unstacked(match[1], {self.down + ".weight": tensor})
            else:
                maps[name] = tensor
        return maps

    def disk(self, maps):
        return maps

    def from_disk(self, tensors):
        return tensors

    def adapter(self, tensors):
        return tensors

    def pairs(self, pairs, rank):
        return pairs


@dataclass(frozen=True)
class InputMajor(PerExpert):
    """Llama-4: all experts in gate_up_proj [E, D, 2F] and down_proj [E, F, D], on disk as in transformers.

    The multimodal checkpoints put `wrapper` before the names of the text model and hold vision tensors besides. In an
    adapter it may be there or not.
    """

    wrapper: str = ""
    wrapped_adapter: bool = True

    def network(self, maps):
        rest, experts = stacks(maps)
        for prefix, leaves in experts.items():
            rest[prefix + ".gate_up_proj"] = torch.cat([leaves["gate_proj.weight"], leaves["up_proj.weight"]], 1).mT
            rest[prefix + ".down_proj"] = leaves["down_proj.weight"].mT
        return rest

    def maps(self, network):
        return super().maps({name: tensor.mT if STACK.fullmatch(name) else tensor for name, tensor in network.items()})

    def disk(self, maps):
        return {self.wrapper + name: tensor.contiguous() for name, tensor in self.network(maps).items()}

    def from_disk(self, tensors):
        text = {name: tensor for name, tensor in tensors.items() if name.startswith(self.wrapper)}
        return self.maps({name.removeprefix(self.wrapper): tensor for name, tensor in text.items()})

    def adapter(self, tensors):
        wrapper = self.wrapper if self.wrapped_adapter else ""
        return {
            key.replace("base_model.model.", f"base_model.model.{wrapper}"): tensor for key, tensor in tensors.items()
        }

    def pairs(self, pairs, rank):
        return {path.removeprefix(self.wrapper): pair for path, pair in pairs.items()}


@dataclass(frozen=True)
class Joint(PerExpert):
    """gpt-oss: gate and up are one map whose outputs alternate; [E, I, O] in transformers and on disk, with biases, or
    on disk as MXFP4 [E, O, I / 32, 16] with scales [E, O, I / 32]."""

    mxfp4: bool = False

    def network(self, maps):
        rest, experts = stacks(maps)
        for prefix, leaves in experts.items():
            for leaf, tensor in leaves.items():
                stem, kind = leaf.split(".")
                rest[f"{prefix}.{stem}" + ("_bias" if kind == "bias" else "")] = tensor if kind == "bias" else tensor.mT
        return rest

    def maps(self, network):
        maps = {}
        for name, tensor in network.items():
            if match := STACK.fullmatch(name):
                bias = name.endswith("_bias")
                leaf = match[2].removesuffix("_bias") + (".bias" if bias else ".weight")
                maps |= unstacked(match[1], {leaf: tensor if bias else tensor.mT})
            else:
                maps[name] = tensor
        return maps

    def disk(self, maps):
        tensors = {}
        for name, tensor in self.network(maps).items():
            if self.mxfp4 and STACK.fullmatch(name) and not name.endswith("_bias"):
                tensors[name + "_blocks"], tensors[name + "_scales"] = to_mxfp4(tensor.mT)
            else:
                tensors[name] = tensor.contiguous()
        return tensors

    def from_disk(self, tensors):
        network = {name: tensor for name, tensor in tensors.items() if not name.endswith(("_blocks", "_scales"))}
        for name in [name.removesuffix("_blocks") for name in tensors if name.endswith("_blocks")]:
            network[name] = from_mxfp4(tensors[name + "_blocks"], tensors[name + "_scales"]).mT
        return self.maps(network)

    def adapter(self, tensors):
        """PEFT's tensors of `target_parameters`: A [E r, I], expert slow; B [O, r E], expert fast. The parameter that
        is wrapped first (gate_up_proj) has `base_layer` in its name."""
        rest, experts = stacks(tensors)
        for prefix, leaves in experts.items():
            for stem, place in (("gate_up_proj", ".base_layer"), ("down_proj", "")):
                if f"{stem}.lora_A.weight" in leaves:
                    rest[f"{prefix}{place}.lora_A.weight"] = leaves[f"{stem}.lora_A.weight"].flatten(0, 1)
                    B_OrE = leaves[f"{stem}.lora_B.weight"].permute(1, 2, 0)
                    rest[f"{prefix}{place}.lora_B.weight"] = B_OrE.flatten(1).contiguous()
        return rest

    def pairs(self, pairs, rank):
        single = {}
        for path, (A, B) in pairs.items():
            if path.endswith((".experts", ".experts.base_layer")):
                stem = "gate_up_proj" if path.endswith("base_layer") else "down_proj"
                prefix = path.removesuffix(".base_layer")
                A_ErI, B_OrE = A.unflatten(0, (-1, rank)), B.unflatten(1, (rank, -1))
                single |= {f"{prefix}.{e}.{stem}": (A_ErI[e], B_OrE[..., e].contiguous()) for e in range(len(A_ErI))}
            else:
                single[path] = (A, B)
        return single


def to_mxfp4(weight):
    """(blocks U8 [..., I / 32, 16], scales U8 [..., I / 32]): 32 inputs share 2^(scale - 127); the low nibble comes
    first."""
    blocks = weight.float().unflatten(-1, (-1, MXFP4_BLOCK))
    exponent = (blocks.abs().amax(-1, keepdim=True) / 6).log2().ceil()
    scaled = blocks / 2.0**exponent
    code = (scaled.abs()[..., None] - MXFP4_VALUES).abs().argmin(-1) + 8 * (scaled < 0)
    return (code[..., ::2] + 16 * code[..., 1::2]).to(torch.uint8), (exponent[..., 0] + 127).to(torch.uint8)


def from_mxfp4(blocks, scales):
    """The fp32 values of `to_mxfp4`'s results, [..., I]."""
    codes = torch.stack([blocks & 15, blocks >> 4], -1).flatten(-2).long()
    values = torch.cat([MXFP4_VALUES, -MXFP4_VALUES])[codes]
    return (values * 2.0 ** (scales.float() - 127)[..., None]).flatten(-2)
