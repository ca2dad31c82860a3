"""The base weights as the trainer holds them: fp32, bf16, NF4 or NF4 with double quantisation.

    held = held_weights.held(models.read(folder), "nf4")

Only projections change (attention, dense MLP, shared and routed experts, also those of the MTP module); embedding,
head, norms and router stay as they are on disk, and eh_proj is held in bf16 under both NF4 bases, the format that
DeepSeek ships it in. NF4 is bitsandbytes' own CPU code, fed with the tensor in the dtype of the checkpoint (bf16 for
FP8 blocks). Its codes are decoded to fp32, not back to that dtype: the trainer decodes to the dtype in which it
computes, and a proof computes in fp32.
"""

import torch

import adapter_files

BLOCK = 64


def held(tensors, base):
    """A copy of `tensors` (name -> tensor) in which the projections are fp32 tensors with the values that `base`
    keeps."""
    bf16 = lambda weight: weight.bfloat16().float()
    linear = {
        "fp32": torch.Tensor.float,
        "bf16": bf16,
        "nf4": nf4,
        "nf4_double": lambda weight: nf4(weight, double=True),
    }[base]
    joint = torch.Tensor.float if base == "fp32" else bf16
    return {
        name: linear(tensor)
        if adapter_files.is_projection(name)
        else joint(tensor)
        if name.endswith("eh_proj.weight")
        else tensor
        for name, tensor in tensors.items()
    }


def nf4(weight, double=False):
    """`weight` through 4 bits and back, in fp32: blocks of 64 along the flattened row-major tensor.

    It goes in as rows of one block, the same flattened tensor: bitsandbytes 0.50.2 decodes matrices whose rows are not
    a multiple of 64 with the scales of other blocks on CPUs with AVX-512.
    """
    from bitsandbytes import functional as bitsandbytes  # here, so that other bases need no bitsandbytes

    rows = weight.reshape(-1, BLOCK)
    codes, state = bitsandbytes.quantize_4bit(
        rows.contiguous(), blocksize=BLOCK, compress_statistics=double, quant_type="nf4"
    )
    state.dtype = torch.float32
    return bitsandbytes.dequantize_4bit(codes, state).reshape(weight.shape)
