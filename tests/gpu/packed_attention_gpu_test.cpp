// Attention's kernels on a GPU against the CPU's in fp64: every mask, grouped heads, sinks, every dtype.
#include "moe/attention/packed_attention.h"

#include <c10/cuda/CUDACachingAllocator.h>
#include <torch/csrc/autograd/autograd.h>

#include <numeric>

#include "tests/support/catch.h"
#include "tests/support/numbers.h"

using namespace moetune;

namespace {

struct Shape {
  std::vector<int64_t> lengths;
  int64_t heads, kv_heads, width, value_width;
  bool sinks;
};

Slice slice_of(const std::vector<int64_t>& lengths, at::Device device) {
  std::vector<int64_t> positions;
  for (const int64_t length : lengths) {
    for (int64_t t = 0; t < length; ++t) positions.push_back(t);
  }
  return make_slices(lengths, positions, std::vector<int64_t>(positions.size(), 0), 1000000, device).at(0);
}

/// Output and the gradients of q, k, v and sinks, on the CPU.
std::vector<at::Tensor> run(const Shape& shape, const MaskSpec& mask, at::Device device, at::ScalarType dtype) {
  const int64_t rows = std::accumulate(shape.lengths.begin(), shape.lengths.end(), int64_t{0});
  uint64_t seed = 0;
  // Rounded to bf16 first: all dtypes compute with the same numbers.
  const auto numbers = [&](at::IntArrayRef sizes) {
    return random_normal(sizes, ++seed).to(at::kBFloat16).to(device, dtype);
  };
  std::vector<at::Tensor> inputs{leaf(numbers({rows, shape.heads, shape.width})),
                                 leaf(numbers({rows, shape.kv_heads, shape.width})),
                                 leaf(numbers({rows, shape.kv_heads, shape.value_width}))};
  if (shape.sinks) inputs.push_back(leaf(numbers({shape.heads})));
  AttentionSpec spec;
  spec.mask = mask;
  spec.softmax_scale = 0.3;
  const at::Tensor y = packed_attention(inputs[0], inputs[1], inputs[2], slice_of(shape.lengths, device), spec,
                                        shape.sinks ? inputs[3] : at::Tensor());
  std::vector<at::Tensor> found = torch::autograd::grad({y}, inputs, {numbers(y.sizes())});
  found.insert(found.begin(), y.detach());
  for (at::Tensor& x : found) x = x.cpu();
  return found;
}

const std::vector<MaskSpec> kMasks{{MaskSpec::Kind::kCausal, 0},
                                   {MaskSpec::Kind::kWindow, 1},
                                   {MaskSpec::Kind::kWindow, 24},
                                   {MaskSpec::Kind::kChunk, 24}};

}  // namespace

TEST_CASE("a GPU attends as the CPU does", "[packed_attention]") {
  const std::vector<Shape> shapes{{{5, 3, 170, 1, 30, 5}, 4, 2, 64, 64, true},
                                  {{5, 3, 170, 1, 30, 5}, 4, 2, 64, 64, false},
                                  {{200}, 4, 1, 128, 128, true},
                                  {{40, 40}, 4, 4, 20, 12, true},
                                  {{40, 40}, 4, 4, 20, 12, false},
                                  {{40, 7}, 4, 2, 20, 20, false},
                                  {{1, 1, 1}, 4, 2, 64, 64, true},
                                  {{90, 7}, 2, 2, 192, 128, true}};
  for (size_t i = 0; i < shapes.size(); ++i) {
    for (const MaskSpec& mask : kMasks) {
      const std::vector<at::Tensor> wanted = run(shapes[i], mask, at::kCPU, at::kDouble);
      for (const auto& [dtype, bound] :
           {std::pair{at::kDouble, 1e-12}, std::pair{at::kFloat, 1e-5}, std::pair{at::kBFloat16, 1e-2}}) {
        const std::vector<at::Tensor> got = run(shapes[i], mask, at::kCUDA, dtype);
        for (size_t k = 0; k < wanted.size(); ++k) {
          INFO("shape " << i << ", mask " << static_cast<int>(mask.kind) << " of " << mask.size << ", "
                        << at::toString(dtype) << ", tensor " << k);
          const double error = (got[k].to(at::kDouble) - wanted[k]).norm().item<double>();
          // Gradients of scores are differences that may vanish: their rounding is that of what they come from.
          CHECK(error < bound * (wanted[0].norm() + wanted[k].norm()).item<double>());
        }
      }
    }
  }
}

TEST_CASE("a window or a chunk in a long document takes no memory that grows with its square", "[packed_attention]") {
  using c10::cuda::CUDACachingAllocator::getDeviceStats;
  const auto peak = [&](int64_t length, const MaskSpec& mask, at::ScalarType dtype) {
    c10::cuda::CUDACachingAllocator::resetPeakStats(0);
    const int64_t before = getDeviceStats(0).allocated_bytes[0].current;
    run({{length}, 4, 2, 64, 64, true}, mask, at::kCUDA, dtype);
    return getDeviceStats(0).allocated_bytes[0].peak - before;
  };
  for (const at::ScalarType dtype : {at::kBFloat16, at::kFloat}) {
    for (const MaskSpec& mask : {MaskSpec{MaskSpec::Kind::kWindow, 128}, MaskSpec{MaskSpec::Kind::kChunk, 1024}}) {
      INFO(at::toString(dtype) << ", mask " << static_cast<int>(mask.kind));
      CHECK(peak(32768, mask, dtype) < 2.2 * static_cast<double>(peak(16384, mask, dtype)));
    }
  }
}
