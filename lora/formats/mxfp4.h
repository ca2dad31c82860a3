// MXFP4 weights as gpt-oss ships them: read exactly, and held in another format from there on.
//
//   const at::Tensor weight_OI = mxfp4_dequantise(blocks, scales, at::kBFloat16, "model.safetensors: ..._blocks");
//
// Source: OCP Microscaling Formats v1.0, 5.3 and 6: 32 neighbours along the inputs share a scale 2^(u - 127); two
// elements a byte, the first in the low half, each e2m1: a sign and 0, 0.5, 1, 1.5, 2, 3, 4 or 6. Every product is a
// number of bf16, but for those below its smallest normal one.
#pragma once

#include <torch/types.h>

#include <string>

namespace moetune {

/// blocks: uint8 [..., I / 32, 16], scales: uint8 [..., I / 32] -> [..., I] in `dtype` on the device of the blocks.
/// UserError, `place` in front, where their shapes do not belong together or a scale is NaN (255).
at::Tensor mxfp4_dequantise(const at::Tensor& blocks, const at::Tensor& scales, at::ScalarType dtype,
                            const std::string& place);

}  // namespace moetune
