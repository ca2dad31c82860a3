// FP8 weights in blocks of 128 x 128, as DeepSeek-V3 ships them: read, scaled, and held in another format from there
// on.
//
//   const at::Tensor weight_OI = fp8_blocks_dequantise(weight, scale_inv, at::kBFloat16);
//   const at::Tensor rows = fp8_blocks_dequantise(rows_of_weight, scale_inv, at::kBFloat16, /*first_row=*/3000);
//
// Source: DeepSeek-V3, README_WEIGHTS.md: w[o][i] = fp8[o][i] * scale_inv[o / 128][i / 128]; despite its name the scale
// multiplies. The last block of a row or column may be short.
#pragma once

#include <torch/types.h>

#include <cstdint>

namespace moetune {

/// weight: float8_e4m3fn [O', I], rows [first_row, first_row + O') of a tensor whose scales, all of them, are
/// scale_inv: fp32 [ceil(O / 128), ceil(I / 128)]. Returns [O', I] on weight's device, product in fp32, then rounded to
/// `dtype` (bf16, fp16, fp32, fp64). UserError where scales do not cover the rows, a weight is NaN (codes 0x7f and
/// 0xff), or a scale is not finite.
at::Tensor fp8_blocks_dequantise(const at::Tensor& weight, const at::Tensor& scale_inv, at::ScalarType dtype,
                                 int64_t first_row = 0);

}  // namespace moetune
