#include "moe/expert_choice_kernels.h"

#include <cuda_runtime.h>

#include <cmath>

namespace moetune {
namespace {

constexpr int kWarps = 4;
constexpr unsigned kAll = 0xffffffffu;
using Key = unsigned long long;

/// Keys order as the numbers do, equal ones from the lower place; NaN is the greatest, as it is to torch's sort. No key
/// is 0, which stands for nothing.
__device__ Key key_of(float x, int place) {
  const unsigned bits = __float_as_uint(x + 0.0f);  // -0 is 0
  const unsigned ordered = isnan(x) ? kAll : (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
  return static_cast<Key>(ordered) << 32 | (kAll - static_cast<unsigned>(place));
}
__device__ int place_of(Key key) { return static_cast<int>(kAll - static_cast<unsigned>(key)); }

__device__ Key warp_max(Key key) {
#pragma unroll
  for (int lane = 16; lane > 0; lane /= 2) {
    const Key other = __shfl_xor_sync(kAll, key, lane);
    key = other > key ? other : key;
  }
  return key;
}

/// Lane l of a warp has experts l, l + 32, ...; kPer of them.
template <int kPer>
__global__ void __launch_bounds__(kWarps * 32) choose_kernel(const __grid_constant__ ExpertChoiceArguments p) {
  extern __shared__ float choices[];
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t token = static_cast<int64_t>(blockIdx.x) * kWarps + warp;
  if (token >= p.tokens) return;  // warps do not meet
  float* choice = choices + warp * p.experts;
  Key key[kPer];
#pragma unroll
  for (int u = 0; u < kPer; ++u) {
    const int expert = lane + 32 * u;
    key[u] = 0;
    if (expert >= p.experts) continue;
    const float c = p.score[token * p.experts + expert] + (p.correction != nullptr ? p.correction[expert] : 0.0f);
    choice[expert] = c;
    key[u] = key_of(c, expert);
  }
  if (p.groups > 1) {
    __syncwarp();
    const int of_group = p.experts / p.groups;
    Key group = 0;
    if (lane < p.groups) {
      float best = -INFINITY, second = -INFINITY;
      for (int i = 0; i < of_group; ++i) {
        const float c = choice[lane * of_group + i];
        second = c > best ? best : c > second ? c : second;
        best = c > best ? c : best;
      }
      group = key_of(p.by_best_two ? best + second : best, lane);
    }
    unsigned open = 0;
    for (int k = 0; k < p.top_groups; ++k) {
      const int place = place_of(warp_max(group));
      open |= 1u << place;
      if (lane == place) group = 0;
    }
#pragma unroll
    for (int u = 0; u < kPer; ++u) {
      const int expert = lane + 32 * u;
      if (expert < p.experts && (open >> (expert / of_group) & 1u) == 0) key[u] = key_of(-INFINITY, expert);
    }
  }
  for (int k = 0; k < p.top_k; ++k) {
    Key best = 0;
#pragma unroll
    for (int u = 0; u < kPer; ++u) best = key[u] > best ? key[u] : best;
    best = warp_max(best);
#pragma unroll
    for (int u = 0; u < kPer; ++u) key[u] = key[u] == best ? 0 : key[u];
    if (lane == 0) p.expert[token * p.top_k + k] = place_of(best);
  }
}

}  // namespace

void choose_experts_cuda(const ExpertChoiceArguments& p, cudaStream_t stream) {
  if (p.tokens == 0) return;
  const auto grid = static_cast<unsigned>((p.tokens + kWarps - 1) / kWarps);
  const size_t shared = sizeof(float) * static_cast<size_t>(kWarps * p.experts);
  if (p.experts <= 64) choose_kernel<2><<<grid, kWarps * 32, shared, stream>>>(p);
  else if (p.experts <= 128) choose_kernel<4><<<grid, kWarps * 32, shared, stream>>>(p);
  else if (p.experts <= 256) choose_kernel<8><<<grid, kWarps * 32, shared, stream>>>(p);
  else choose_kernel<32><<<grid, kWarps * 32, shared, stream>>>(p);
}

}  // namespace moetune
