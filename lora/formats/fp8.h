// FP8 weights in blocks of 128 x 128, as DeepSeek-V3 ships them: read, scaled, and held in another format from there
// on; and written for programs that load such.
//
//   const at::Tensor scale_inv = fp8_scales(stored_scales, "model.safetensors: w_scale_inv");
//   const at::Tensor weight_OI = fp8_blocks_dequantise(weight, scale_inv, at::kBFloat16);
//   const at::Tensor rows = fp8_blocks_dequantise(rows_of_weight, scale_inv, at::kBFloat16, /*first_row=*/3000);
//
// Source: DeepSeek-V3, README_WEIGHTS.md: w[o][i] = fp8[o][i] * scale_inv[o / 128][i / 128]; despite its name the scale
// multiplies. The last block of a row or column may be short.
#pragma once

#include <torch/types.h>

#include <cstdint>
#include <string>

namespace moetune {

/// Scales as they lie in a file, as fp32: floats of 16 to 64 bits are numbers, F8_E8M0 and U8 its bits, 2^(u - 127)
/// with 255 for NaN (OCP Microscaling Formats v1.0, 5.4.1). UserError, `place` in front, for every other dtype, and
/// for scales that are NaN or infinite.
at::Tensor fp8_scales(const at::Tensor& stored, const std::string& place);

/// weight: float8_e4m3fn [O', I], rows [first_row, first_row + O') of a tensor whose scales, all of them, are
/// scale_inv: fp32 [ceil(O / 128), ceil(I / 128)]. Returns [O', I] on weight's device, product in fp32, then rounded to
/// `dtype` (bf16, fp16, fp32, fp64). UserError where scales do not cover the rows, a weight is NaN (codes 0x7f and
/// 0xff), or a scale is not finite.
at::Tensor fp8_blocks_dequantise(const at::Tensor& weight, const at::Tensor& scale_inv, at::ScalarType dtype,
                                 int64_t first_row = 0);

struct Fp8Blocks {
  at::Tensor weight;     ///< float8_e4m3fn [O, I]
  at::Tensor scale_inv;  ///< fp32 [ceil(O / 128), ceil(I / 128)]
};
/// weight: [O, I], finite. Each block's scale is its largest magnitude / 448, e4m3's largest number, so that none is
/// cut off; 1 for a block of zeros. `powers_of_two`: the next one up, as F8_E8M0 and its bits can hold it.
Fp8Blocks fp8_blocks_quantise(const at::Tensor& weight, bool powers_of_two);

}  // namespace moetune
