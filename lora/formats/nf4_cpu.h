// The CPU loops of NF4 on raw pointers, one thread each; the caller splits the blocks over threads.
//
//   int64_t bad = nf4_quantise_cpu(weight, num_elements, codes, absmax);  // whole blocks, the last may be short
//   // out[i] = element first_block * 64 + i of the unit
//   nf4_dequantise_cpu(view, unit, first_block, num_elements, out);
//
// Compiled for AVX-512, AVX2 and the baseline; the CPU at hand picks when the program loads. Results do not depend on
// it.
#pragma once

#include "lora/formats/nf4_blocks.h"

namespace moetune {

/// Codes num_elements weights (fp32 or bf16) from the start of a block on: ceil(num_elements / 2) bytes of codes,
/// ceil(num_elements / 64) absmax. Returns how many weights are NaN or infinite; where there are any, the codes mean
/// nothing.
int64_t nf4_quantise_cpu(const float* weight, int64_t num_elements, uint8_t* codes, float* absmax);
int64_t nf4_quantise_cpu(const Bf16Bits* weight, int64_t num_elements, uint8_t* codes, float* absmax);

/// Writes elements [first_block * 64, first_block * 64 + num_elements) of one unit to out. Product in fp32, then
/// rounded to nearest even.
void nf4_dequantise_cpu(const Nf4View& view, int64_t unit, int64_t first_block, int64_t num_elements, float* out);
void nf4_dequantise_cpu(const Nf4View& view, int64_t unit, int64_t first_block, int64_t num_elements, Bf16Bits* out);
void nf4_dequantise_cpu(const Nf4View& view, int64_t unit, int64_t first_block, int64_t num_elements, double* out);

}  // namespace moetune
