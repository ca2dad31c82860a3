// Number types of loops and kernels on raw memory, for units that see no torch header.
//
//   template <typename Number>   // Bf16Bits, float or double
//   void sum_rows_cuda(const Number* x, int64_t rows, Wide<Number>* sum, cudaStream_t stream);
#pragma once

#include <cstdint>

namespace moetune {

/// The bits of a bf16 number.
struct Bf16Bits {
  uint16_t bits;
};

template <typename Number>
struct WideOf {
  using Type = float;
};
template <>
struct WideOf<double> {
  using Type = double;
};
/// What arithmetic on `Number` is done in: fp32, or fp64 for fp64.
template <typename Number>
using Wide = typename WideOf<Number>::Type;

}  // namespace moetune
