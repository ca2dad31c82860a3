// The kernels of rotary features against the CPU in fp64.
#include <torch/csrc/autograd/autograd.h>

#include "moe/attention/latent_keys.h"
#include "moe/attention/rotated_heads.h"
#include "parallel/base/error.h"
#include "tests/support/catch.h"
#include "tests/support/gpu_numbers.h"
#include "tests/support/rotation.h"

using namespace moetune;

namespace {

at::TensorOptions on_gpu(at::ScalarType dtype) { return at::device(at::kCUDA).dtype(dtype); }

}  // namespace

TEST_CASE("a GPU turns the features of heads as the CPU does", "[rotary]") {
  struct Shape {
    int64_t rows, heads, width, first, half;
  };
  uint64_t seed = 0;
  for (const Shape& s : std::vector<Shape>{{77, 128, 192, 128, 32},
                                           {301, 3, 128, 0, 64},
                                           {5, 5, 128, 0, 32},
                                           {1, 1, 17, 3, 5},
                                           {33, 2, 256, 0, 128},
                                           {9, 7, 200, 8, 80},
                                           {64, 16, 64, 0, 32}}) {
    for (const RotarySpec::Layout layout : kLayouts) {
      for (const at::ScalarType dtype : kKernelDtypes) {
        INFO(s.rows << " rows, " << s.heads << " heads of " << s.width << ", " << s.half << " pairs from " << s.first
                    << ", layout " << static_cast<int>(layout) << ", " << at::toString(dtype));
        const at::Tensor x = as_seen(random_normal({s.rows, s.heads * s.width}, ++seed), dtype),
                         d = as_seen(random_normal({s.rows, s.heads * s.width}, ++seed), dtype);
        RopeAngles angles = some_angles(s.rows, s.half, layout, ++seed);
        angles = {as_seen(angles.cos_TA, dtype), as_seen(angles.sin_TA, dtype), layout};
        const at::Tensor exact_x = leaf(x.view({s.rows, s.heads, s.width}));
        const at::Tensor expected = rotation_written_out(exact_x, s.first, angles);
        const at::Tensor exact_d = torch::autograd::grad({expected}, {exact_x}, {d.view_as(expected)})[0];

        const at::Tensor gpu_x = leaf(x.to(on_gpu(dtype)));
        const at::Tensor y = rotated_heads(gpu_x * 1.0, s.heads, s.first, angles_as(angles, on_gpu(dtype)));
        CHECK(distance_fp64(y, expected.detach().flatten(1)) < tolerance(dtype));
        poison_freed_memory(x.sizes(), dtype);
        const at::Tensor d_x = torch::autograd::grad({y}, {gpu_x}, {d.to(on_gpu(dtype))})[0];
        CHECK(distance_fp64(d_x, exact_d.flatten(1)) < tolerance(dtype));
      }
    }
  }
}

TEST_CASE("a GPU makes latent keys as the CPU does", "[rotary]") {
  struct Shape {
    int64_t rows, heads, nope, value, half;
  };
  uint64_t seed = 100;
  for (const Shape& s : std::vector<Shape>{{77, 128, 128, 128, 32},
                                           {3, 5, 5, 3, 7},
                                           {1, 1, 64, 128, 32},
                                           {130, 16, 192, 96, 64},
                                           {9, 33, 8, 16, 128}}) {
    for (const RotarySpec::Layout layout : kLayouts) {
      for (const at::ScalarType dtype : kKernelDtypes) {
        INFO(s.rows << " rows, " << s.heads << " heads of " << s.nope << " and " << s.value << ", " << s.half
                    << " pairs, layout " << static_cast<int>(layout) << ", " << at::toString(dtype));
        const int64_t rotary = 2 * s.half;
        const auto numbers = [&](at::IntArrayRef sizes) { return as_seen(random_normal(sizes, ++seed), dtype); };
        const at::Tensor kv = leaf(numbers({s.rows, s.heads * (s.nope + s.value)})),
                         both = leaf(numbers({s.rows, 24 + rotary})), d_k = numbers({s.rows, s.heads, s.nope + rotary}),
                         wide_d_v = numbers({s.rows, s.heads, s.value + 64});
        RopeAngles angles = some_angles(s.rows, s.half, layout, ++seed);
        angles = {as_seen(angles.cos_TA, dtype), as_seen(angles.sin_TA, dtype), layout};
        const LatentKeys expected = latent_keys(kv, both.narrow(1, 24, rotary), s.heads, s.nope, angles);
        const auto exact =
            torch::autograd::grad({expected.k_UHA, expected.v_UHA}, {kv, both}, {d_k, wide_d_v.narrow(2, 64, s.value)});

        const at::Tensor gpu_kv = leaf(kv.to(on_gpu(dtype))), gpu_both = leaf(both.to(on_gpu(dtype)));
        poison_freed_memory(d_k.sizes(), dtype);
        const LatentKeys found =
            latent_keys(gpu_kv, gpu_both.narrow(1, 24, rotary), s.heads, s.nope, angles_as(angles, on_gpu(dtype)));
        CHECK(distance_fp64(found.k_UHA, expected.k_UHA.detach()) < tolerance(dtype));
        CHECK(distance_fp64(found.v_UHA, expected.v_UHA.detach()) == 0.0);
        for (const bool strided : {true, false}) {
          at::Tensor d_v = wide_d_v.to(on_gpu(dtype)).narrow(2, 64, s.value);
          if (!strided) d_v = d_v.contiguous();
          poison_freed_memory({s.rows, s.heads, s.nope + s.value}, dtype);
          const auto got = torch::autograd::grad({found.k_UHA, found.v_UHA}, {gpu_kv, gpu_both},
                                                 {d_k.to(on_gpu(dtype)), d_v}, /*retain_graph=*/true);
          CHECK(distance_fp64(got[0], exact[0]) == 0.0);
          CHECK(distance_fp64(got[1], exact[1]) < tolerance(dtype));
        }
      }
    }
  }
}
