// The CUDA kernels of rotary features (rotated_heads.h, latent_keys.h) on raw device pointers and a stream; Number is
// Bf16Bits, float or double.
//
//   rotate_heads_cuda(heads, x, cos, sin, x, /*back=*/false, stream);   // in place
//   // then check cudaGetLastError(): the functions only launch
//
// All are bound by device memory. A rotation turns pair i of `half` by the angle whose cosine and sine stand at
// [row, i]; pairs lie as the layout says before it and as halves behind it (rope.h). Back is its transpose.
#pragma once

#include <cstdint>

#include "parallel/base/raw_numbers.h"

typedef struct CUstream_st* cudaStream_t;

namespace moetune {

inline constexpr int64_t kMostRotaryPairs = 128;

/// [rows, heads, width], one row after the other, fewer than 2^31 heads of all rows; features first .. first + 2 half -
/// 1 of each head are rotated.
struct RotaryHeads {
  int64_t rows = 0, heads = 0, width = 0;
  int64_t first = 0;
  int64_t half = 0;    ///< at most kMostRotaryPairs
  bool pairs = false;  ///< layout before the rotation: neighbours, else halves
};

/// to = x rotated, or rotated back; the features beside are copied, or left where they are with to = x.
template <typename Number>
void rotate_heads_cuda(const RotaryHeads& heads, const Number* x, const Number* cos, const Number* sin, Number* to,
                       bool back, cudaStream_t stream);

/// Keys and values of latent attention: kv [rows, heads, nope + value], and one rotary key [rows, 2 half] for all
/// heads, whose rows begin key_stride apart.
struct LatentHeads {
  int64_t rows = 0, heads = 0, nope = 0, value = 0;
  int64_t half = 0;  ///< at most kMostRotaryPairs
  bool pairs = false;
  int64_t key_stride = 0;
};

/// k [rows, heads, nope + 2 half]: each head's nope features of kv, and behind them the rotated key.
template <typename Number>
void latent_keys_cuda(const LatentHeads& heads, const Number* kv, const Number* key, const Number* cos,
                      const Number* sin, Number* k, cudaStream_t stream);

/// The transpose, and that of taking the values: d_kv [rows, heads, nope + value] from d_k and d_v, whose rows and
/// heads begin v_row_stride and v_head_stride apart; d_key [rows, 2 half]: the sum over the heads of d_k's rotary
/// features, rotated back.
template <typename Number>
void latent_keys_backward_cuda(const LatentHeads& heads, const Number* d_k, const Number* d_v, int64_t v_row_stride,
                               int64_t v_head_stride, const Number* cos, const Number* sin, Number* d_kv, Number* d_key,
                               cudaStream_t stream);

}  // namespace moetune
