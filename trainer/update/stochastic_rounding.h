// fp32 numbers to bf16, up or down by chance: with a probability that is the part of the way to the upper neighbour, so
// that on average nothing is lost of updates smaller than half a step of bf16.
//
//   round_stochastically(master, working, stream_key(seed, "layer 3"), /*first=*/shard_begin);
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace moetune {

/// `rounded` (bf16) from `numbers` (fp32), both one-dimensional of one length, on one device. Number i draws 16 bits
/// that are a function of (key, first + i) alone. What bf16 holds exactly stays; infinities and NaN do too.
void round_stochastically(const at::Tensor& numbers, const at::Tensor& rounded, uint64_t key, int64_t first);

}  // namespace moetune
