// NF4: frozen weights in 4 bits, and back. A tensor is quantised once, when it is loaded, and dequantised whenever
// used.
//
//   const Nf4Tensor q = nf4_quantise(weight_OI, /*double_quantise=*/true);
//   nf4_dequantise_into(q, out_OI);                           // bf16, fp32 or fp64
//   nf4_dequantise_units_into(view, O * I, first, num, out);  // a range of experts of a stack, wherever it lies
//
// Works where the weight lies, CPU or CUDA (there on the current stream), with bit-equal results. Layout and numbers
// are those of bitsandbytes 0.50 on a CPU: codes, absmax and dequantised values are equal bit for bit. Where its CUDA
// kernels differ from its CPU path: a short last block multiplies by 1/absmax instead of dividing, a zero block has
// code 0 (-0.0) instead of 7 (0.0), and double quantisation takes the nearest value of the map, its CPU path the one
// nearest on a grid of 2^16 points. At a threshold both take the lower code. Two differences remain, both on CPUs with
// AVX-512: bitsandbytes flushes subnormal bf16 results (< 1.2e-38) to zero, here they stay; and it dequantises matrices
// whose columns are a multiple of 16 but not of 64 with the absmax of other blocks, here with their own.
#pragma once

#include <torch/types.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "lora/formats/nf4_blocks.h"

namespace moetune {

/// The absmax of blocks, quantised in their turn to 8 bits (QLoRA section 3, "double quantisation"):
///   absmax[b] = map[codes[b]] * nested_absmax[b / 256] + offset.
struct DoubleQuantisedAbsmax {
  at::Tensor codes;          ///< uint8 [num_blocks]
  at::Tensor nested_absmax;  ///< fp32 [ceil(num_blocks / 256)]
  at::Tensor offset;         ///< fp32 [1], the mean absmax
};

/// Quantises absmax (fp32 [num_blocks]) of a whole tensor: offset and groups depend on all of it, so a rank that holds
/// a part quantises the whole and keeps its own. The offset does not depend on thread count or device; up to 32767
/// blocks it equals that of bitsandbytes bit for bit, beyond to rounding (there bitsandbytes' own depends on the thread
/// count). Waits for the device.
DoubleQuantisedAbsmax double_quantise_absmax(const at::Tensor& absmax);

struct Nf4Tensor {
  std::vector<int64_t> shape;  ///< of the weight
  /// uint8 [ceil(numel / 2)]: element 2j in the high nibble of byte j, 2j+1 in the low
  at::Tensor codes;
  at::Tensor absmax;  ///< fp32 [ceil(numel / 64)]; undefined where double-quantised
  std::optional<DoubleQuantisedAbsmax> double_absmax;

  int64_t numel() const;
  /// Bytes of all its tensors.
  int64_t num_bytes() const;
};

/// Quantises weight (bf16, fp16, fp32 or fp64, contiguous, any shape, zero-sized too). fp64 is rounded to fp32 first.
/// UserError where a weight is NaN or infinite. Waits for the device.
Nf4Tensor nf4_quantise(const at::Tensor& weight, bool double_quantise);

/// out = the weight: codebook value times absmax in fp32, rounded to nearest even to out's dtype (bf16, fp32, fp64).
/// out has numel elements, contiguous, on the device of the codes; it may be a slice of a larger buffer. On CUDA out
/// and codes must be 16-byte aligned. Does not wait for the device.
void nf4_dequantise_into(const Nf4Tensor& q, at::Tensor out);

/// The same for units first_unit .. first_unit + num_units - 1 of a stack, each of elements_per_unit numbers (a
/// multiple of 64 where there are several). The view's memory is on out's device. `out`: contiguous, unit by unit, or
/// [num_units, O, I] whose units and rows lie apart, on CUDA by multiples of 16 bytes.
void nf4_dequantise_units_into(const Nf4View& view, int64_t elements_per_unit, int64_t first_unit, int64_t num_units,
                               at::Tensor out);

}  // namespace moetune
