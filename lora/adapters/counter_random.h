// Random numbers as a function of what they are for, never of rank, slice or call order: element i of the stream (seed,
// name) is the same on every mesh, device and resume.
//
//   uint64_t key = stream_key(seed, "model.layers.3.self_attn.q_a_proj.lora_A.weight");
//   at::Tensor a = counter_uniform(key, /*first=*/0, rows * cols, device);   // [0, 1)
//
// Element i is the number with index i of SplitMix64 started at the key (parallel/base/splitmix64.h): equidistributed,
// stateless, and the same integer operations on CPU and GPU, so both give the same bits.
#pragma once

#include <torch/types.h>

#include <cstdint>
#include <string_view>

namespace moetune {

/// Key of the stream `name` under `seed`. Distinct names give unrelated streams.
uint64_t stream_key(uint64_t seed, std::string_view name);
/// Key of a numbered sub-stream, e.g. of a step.
uint64_t stream_key(uint64_t key, int64_t number);

/// Uniform numbers in [0, 1) with 24 random bits, of elements first .. first + count - 1: fp32 [count] on `device`.
at::Tensor counter_uniform(uint64_t key, int64_t first, int64_t count, at::Device device);
/// The same for arbitrary elements: fp32 in the shape of `element` (int64).
at::Tensor counter_uniform_at(uint64_t key, const at::Tensor& element);

}  // namespace moetune
