// The NF4 code on raw memory, as the CPU loops (nf4_cpu) and the CUDA kernels (nf4_kernels) share it.
//
// A tensor, flattened row-major, is cut into blocks of 64 elements. A block holds absmax = max |x| and 4 bits an
// element: the index of the codebook value nearest to x / absmax. Two elements share a byte, the earlier one in the
// high nibble. Source: QLoRA (arXiv 2305.14314), section 3; numbers and layout are those of bitsandbytes.
#pragma once

#include <cstdint>

#include "parallel/base/raw_numbers.h"

namespace moetune {

inline constexpr int64_t kNf4Block = 64;              ///< elements that share one absmax
inline constexpr int64_t kNf4NestedBlock = 256;       ///< absmax values that share one nested absmax
inline constexpr float kNf4SmallestDivisor = 1e-38f;  ///< stands in for the absmax of a zero block when dividing

/// The 16 values of the code and the 15 midpoints between them: x / absmax has code #{t in thresholds : x / absmax >
/// t}.
struct Nf4Code {
  float values[16];
  float thresholds[15];
};

constexpr Nf4Code nf4_code() {
  Nf4Code code{{-1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f, -0.28444138169288635f,
                -0.18477343022823334f, -0.09105003625154495f, 0.0f, 0.07958029955625534f, 0.16093020141124725f,
                0.24611230194568634f, 0.33791524171829224f, 0.44070982933044434f, 0.5626170039176941f,
                0.7229568362236023f, 1.0f},
               {}};
  for (int i = 0; i < 15; ++i) code.thresholds[i] = (code.values[i] + code.values[i + 1]) / 2;
  return code;
}

/// The 256 values of double quantisation, ascending: the signed dynamic map of arXiv 1511.04561. For each of 7
/// exponents, 10^-6 to 1, the midpoints of 1, 2, 4 ... 64 equal steps of [0.1, 1] times the power of ten, with both
/// signs; 0; and 1.
struct Nf4DynamicMap {
  float values[256];
};

constexpr Nf4DynamicMap nf4_dynamic_map() {
  Nf4DynamicMap map{};
  int filled = 0;  // magnitudes so far; they ascend
  constexpr float kPowers[] = {1e-6f, 1e-5f, 1e-4f, 1e-3f, 1e-2f, 1e-1f, 1.0f};
  for (int exponent = 0; exponent < 7; ++exponent) {
    const int steps = 1 << exponent;
    const float width = (1.0f - 0.1f) / static_cast<float>(steps);
    // Rounded once, from the nearer end: what torch.linspace does where the CPU has a fused multiply-add. (Without one
    // it rounds twice, and bitsandbytes' map differs in the last bit of 42 values.) The double holds the sum exactly.
    const auto boundary = [&](int i) {
      return static_cast<float>(i < (steps + 1) / 2 ? double{0.1f} + double{width} * i
                                                    : 1.0 - double{width} * (steps - i));
    };
    for (int i = 0; i < steps; ++i) {
      const float magnitude = kPowers[exponent] * ((boundary(i) + boundary(i + 1)) / 2.0f);
      map.values[128 + filled] = magnitude;
      map.values[126 - filled] = -magnitude;
      ++filled;
    }
  }
  map.values[127] = 0.0f;
  map.values[255] = 1.0f;
  return map;
}

/// Where a stack of equal packed tensors ("units") lies in memory: pointers to the parts of unit 0, and the distance
/// from a part of one unit to the same part of the next. Absmax is stored as fp32 (`absmax` set), or double-quantised
/// (`absmax` null), where
///   absmax[b] = map[absmax_codes[b]] * nested_absmax[w(b) / 256] + offset,
///   w(b) = first_block + b / blocks_per_row * whole_blocks_per_row + b % blocks_per_row,
/// product and sum rounded separately in fp32. w(b) is the number of the block in the whole tensor, of which a unit may
/// be a rectangular part: rows from first_block on, or some columns of every row. nested_absmax and offset are those of
/// the whole.
struct Nf4View {
  const uint8_t* codes = nullptr;         ///< [blocks * 32]
  const float* absmax = nullptr;          ///< [blocks]
  const uint8_t* absmax_codes = nullptr;  ///< [blocks]
  const float* nested_absmax = nullptr;   ///< [ceil(blocks of the whole / 256)]
  const float* offset = nullptr;          ///< [1]
  int64_t unit_stride = 0;                ///< bytes
  int64_t first_block = 0;
  int64_t blocks_per_row = 1;
  int64_t whole_blocks_per_row = 1;
};

/// Where dense numbers of a stack go: in a unit rows of `row` numbers, `row_stride` numbers from one to the next; units
/// `unit_stride` numbers from one to the next.
struct Nf4Rows {
  int64_t row = 0;
  int64_t row_stride = 0;
  int64_t unit_stride = 0;
  bool contiguous() const { return row_stride == row; }  ///< within a unit
};

}  // namespace moetune
