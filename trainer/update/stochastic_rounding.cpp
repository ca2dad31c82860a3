#include "trainer/update/stochastic_rounding.h"

#include <ATen/Parallel.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>

#include "parallel/base/error.h"
#include "parallel/base/splitmix64.h"
#include "trainer/update/stochastic_rounding_bits.h"
#include "trainer/update/stochastic_rounding_kernels.h"

namespace moetune {
namespace {

constexpr int64_t kGrain = int64_t{1} << 16;

/// Numbers whose places agree but for their lowest 32 bits, which begin with `first`.
void round_run(const float* from, uint16_t* to, int64_t count, uint32_t key, uint32_t first) {
  for (int64_t i = 0; i < count; ++i) {
    to[i] = rounded_by_chance(from[i], mixed((first + static_cast<uint32_t>(i)) ^ key));
  }
}

/// visit(first, count, key of the run, its first place's lowest 32 bits) for the runs of numbers begin .. end - 1.
template <typename Visit>
void for_each_run(int64_t begin, int64_t end, uint64_t key, int64_t first, const Visit& visit) {
  while (begin < end) {
    const auto place = static_cast<uint64_t>(first + begin);
    const uint64_t high = place >> 32;
    const auto count = std::min(end - begin, static_cast<int64_t>(((high + 1) << 32) - place));
    visit(begin, count, static_cast<uint32_t>(splitmix64_at(key, high)), static_cast<uint32_t>(place));
    begin += count;
  }
}

}  // namespace

void round_stochastically(const at::Tensor& numbers, const at::Tensor& target, uint64_t key, int64_t first) {
  MT_CHECK(numbers.scalar_type() == at::kFloat && target.scalar_type() == at::kBFloat16 &&
               numbers.numel() == target.numel() && numbers.is_contiguous() && target.is_contiguous() &&
               numbers.device() == target.device(),
           "rounding ", numbers.numel(), " numbers of ", c10::toString(numbers.scalar_type()), " to ", target.numel(),
           " of ", c10::toString(target.scalar_type()));
  const float* from = numbers.const_data_ptr<float>();
  auto* to = reinterpret_cast<uint16_t*>(target.mutable_data_ptr<at::BFloat16>());
  if (numbers.is_cuda()) {
    const auto stream = c10::cuda::getCurrentCUDAStream(numbers.device().index());
    for_each_run(0, numbers.numel(), key, first, [&](int64_t begin, int64_t count, uint32_t run_key, uint32_t place) {
      round_run_cuda(from + begin, to + begin, count, run_key, place, stream);
    });
    C10_CUDA_CHECK(cudaGetLastError());
    return;
  }
  at::parallel_for(0, numbers.numel(), kGrain, [&](int64_t some, int64_t end) {
    for_each_run(some, end, key, first, [&](int64_t begin, int64_t count, uint32_t run_key, uint32_t place) {
      round_run(from + begin, to + begin, count, run_key, place);
    });
  });
}

}  // namespace moetune
