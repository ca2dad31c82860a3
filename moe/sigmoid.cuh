// The sigmoid of a kernel's arithmetic, as exact as the numbers that its result goes into.
//
//   const Wide<Number> s = sigmoid(x, Number{});
#pragma once

#include "parallel/base/raw_numbers.h"

namespace moetune {

// For bf16 the fast exponential and quotient: they err by some 2^-21, far below what its rounding does. Where
// 1 + exp(-x) is beyond 2^126, infinity too, the fast quotient is 0.
__device__ inline float sigmoid(float x, Bf16Bits) { return __fdividef(1.0f, 1.0f + __expf(-x)); }
__device__ inline float sigmoid(float x, float) { return 1.0f / (1.0f + expf(-x)); }
__device__ inline double sigmoid(double x, double) { return 1.0 / (1.0 + exp(-x)); }

}  // namespace moetune
