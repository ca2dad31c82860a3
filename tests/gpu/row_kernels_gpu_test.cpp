// RMSNorm, its sum with a residual and SwiGLU on a GPU against the CPU in fp64: every dtype, widths that no vector
// divides, columns of wider matrices, addresses that are not aligned, no rows.
#include <torch/csrc/autograd/autograd.h>

#include "moe/rms_norm.h"
#include "moe/swiglu.h"
#include "tests/support/catch.h"
#include "tests/support/gpu_numbers.h"

using namespace moetune;

namespace {

/// Numbers on the GPU in `dtype`, in columns first .. of a matrix that is `wider` wider; a leaf.
at::Tensor columns(const at::Tensor& x, at::ScalarType dtype, int64_t first, int64_t wider) {
  at::Tensor held = at::full({x.size(0), x.size(1) + wider}, std::numeric_limits<double>::quiet_NaN(),
                             at::device(at::kCUDA).dtype(dtype));
  at::Tensor part = held.narrow(1, first, x.size(1));
  part.copy_(x.to(dtype));
  return part.detach().requires_grad_();
}

struct Shape {
  int64_t rows, width, first, wider;
};

// One number, a warp's row, whole rows of DeepSeek-V3, odd ones, and rows that no block holds at once.
const std::vector<Shape> kShapes = {{1, 1, 0, 0},     {5, 8, 0, 0},       {7, 13, 0, 0},     {33, 128, 0, 0},
                                    {130, 128, 1, 3}, {9, 512, 0, 64},    {9, 512, 64, 64},  {6, 1536, 0, 0},
                                    {3, 7168, 0, 0},  {3, 7168, 3, 8},    {2, 7169, 0, 0},   {2, 9001, 0, 7},
                                    {2, 40000, 0, 0}, {300, 2048, 8, 16}, {1030, 264, 0, 0}, {0, 7168, 0, 0}};

}  // namespace

TEST_CASE("RMSNorm on CUDA is that of the CPU", "[rms_norm]") {
  uint64_t seed = 100;
  for (const auto dtype : kKernelDtypes) {
    for (const Shape& s : kShapes) {
      INFO(at::toString(dtype) << " [" << s.rows << ", " << s.width << "] of " << s.width + s.wider << " from "
                               << s.first);
      const at::Tensor x = random_normal({s.rows, s.width}, ++seed) * 3, w = random_normal({s.width}, ++seed),
                       d = random_normal({s.rows, s.width}, ++seed);
      const at::Tensor gx = columns(x, dtype, s.first, s.wider), gw = leaf(w.to(dtype).cuda()),
                       gd = columns(d, dtype, s.first, s.wider).detach();
      const at::Tensor cx = leaf(as_seen(x, dtype)), cw = leaf(as_seen(w, dtype));
      poison_freed_memory({s.rows, s.width}, dtype);
      const at::Tensor y = rms_norm(gx, gw, 1e-6), expected = rms_norm(cx, cw, 1e-6);
      CHECK(y.scalar_type() == dtype);
      poison_freed_memory({s.rows, s.width}, dtype);
      const auto got = torch::autograd::grad({y}, {gx, gw}, {gd}),
                 wanted = torch::autograd::grad({expected}, {cx, cw}, {as_seen(d, dtype)});
      REQUIRE(got[0].sizes() == gx.sizes());
      CHECK(distance_fp64(got[1], wanted[1]) <= tolerance(dtype));
      if (s.rows == 0) continue;
      CHECK(distance_fp64(y, expected) < tolerance(dtype));
      // The gradient of a row of one number is the difference of two equal ones.
      if (s.width > 1) CHECK(distance_fp64(got[0], wanted[0]) < tolerance(dtype));
    }
  }
}

TEST_CASE("bf16 is normalised on CUDA in the CPU's order of rounding", "[rms_norm]") {
  const at::Tensor x = random_normal({64, 7168}, 1, at::kBFloat16).cuda() * 3,
                   weight = random_normal({7168}, 2, at::kBFloat16).cuda();
  const at::Tensor wide = x.to(at::kFloat);
  const at::Tensor normed = (wide * (wide.square().mean(-1, true) + 1e-6).rsqrt()).to(at::kBFloat16);
  // Statistics that differ in the last bit move what lies at a tie.
  CHECK((rms_norm(x, weight, 1e-6) != weight * normed).sum().item<int64_t>() < x.numel() / 1000);
}

TEST_CASE("heads are normalised where they lie", "[rms_norm]") {
  const at::Tensor x = random_normal({11, 3, 24}, 1), w = random_normal({16}, 2), d = random_normal({11, 3, 16}, 3);
  for (const auto dtype : kKernelDtypes) {
    const at::Tensor all = leaf(x.to(dtype).cuda()), cpu = leaf(as_seen(x, dtype));
    const at::Tensor y = rms_norm(all.narrow(2, 8, 16), w.to(dtype).cuda(), 1e-6),
                     expected = rms_norm(cpu.narrow(2, 8, 16), as_seen(w, dtype), 1e-6);
    CHECK(distance_fp64(y, expected) < tolerance(dtype));
    CHECK(distance_fp64(torch::autograd::grad({y}, {all}, {d.to(dtype).cuda()})[0],
                        torch::autograd::grad({expected}, {cpu}, {as_seen(d, dtype)})[0]) < tolerance(dtype));
  }
}

TEST_CASE("A sum and its norm on CUDA are those of the CPU", "[rms_norm]") {
  uint64_t seed = 1000;
  for (const auto dtype : kKernelDtypes) {
    for (const Shape& s : kShapes) {
      INFO(at::toString(dtype) << " [" << s.rows << ", " << s.width << "] of " << s.width + s.wider << " from "
                               << s.first);
      const auto numbers = [&] { return random_normal({s.rows, s.width}, ++seed); };
      const at::Tensor x = numbers() * 2, added = numbers(), d_sum = numbers(), d_y = numbers(),
                       w = random_normal({s.width}, ++seed);
      const std::vector<at::Tensor> gpu{columns(x, dtype, s.first, s.wider), leaf(added.to(dtype).cuda()),
                                        leaf(w.to(dtype).cuda())};
      // The sum is rounded before it is normalised.
      const at::Tensor seen = as_seen(as_seen(x, dtype) + as_seen(added, dtype), dtype);
      const std::vector<at::Tensor> cpu{leaf(seen), leaf(at::zeros_like(seen)), leaf(as_seen(w, dtype))};
      poison_freed_memory({s.rows, s.width}, dtype);
      const NormedSum got = add_rms_norm(gpu[0], gpu[1], gpu[2], 1e-6),
                      expected = add_rms_norm(cpu[0], cpu[1], cpu[2], 1e-6);
      CHECK(at::equal(got.sum.detach().cpu().to(at::kDouble), seen));
      if (s.rows > 0) CHECK(distance_fp64(got.normed, expected.normed) < tolerance(dtype));
      poison_freed_memory({s.rows, s.width}, dtype);
      const auto gradients = torch::autograd::grad(
                     {got.sum, got.normed}, gpu,
                     {columns(d_sum, dtype, s.first, s.wider).detach(), columns(d_y, dtype, s.first, s.wider).detach()},
                     /*retain_graph=*/true),
                 wanted = torch::autograd::grad({expected.sum, expected.normed}, cpu,
                                                {as_seen(d_sum, dtype), as_seen(d_y, dtype)}, /*retain_graph=*/true);
      const auto of_norm = torch::autograd::grad({got.normed}, {gpu[0]}, {d_y.to(dtype).cuda()}),
                 wanted_of_norm = torch::autograd::grad({expected.normed}, {cpu[0]}, {as_seen(d_y, dtype)});
      REQUIRE(gradients[0].sizes() == gpu[0].sizes());
      CHECK(at::equal(gradients[0], gradients[1]));
      CHECK(distance_fp64(gradients[2], wanted[2]) <= tolerance(dtype));
      if (s.rows == 0) continue;
      CHECK(distance_fp64(gradients[0], wanted[0]) < tolerance(dtype));
      if (s.width > 1) CHECK(distance_fp64(of_norm[0], wanted_of_norm[0]) < tolerance(dtype));
    }
  }
}

TEST_CASE("A weight's gradient on CUDA is the same on every run", "[rms_norm]") {
  const at::Tensor x = random_normal({20000, 520}, 1, at::kBFloat16).cuda(),
                   weight = leaf(random_normal({520}, 2, at::kBFloat16).cuda()),
                   d = random_normal({20000, 520}, 3, at::kBFloat16).cuda();
  const auto gradient = [&] { return torch::autograd::grad({rms_norm(x, weight, 1e-6)}, {weight}, {d})[0]; };
  const at::Tensor first = gradient(), wide = x.cpu().to(at::kDouble);
  for (int i = 0; i < 5; ++i) CHECK(at::equal(gradient(), first));
  const at::Tensor normed = wide / (wide.square().mean(-1, true) + 1e-6).sqrt();
  CHECK(distance_fp64(first, (normed * d.cpu().to(at::kDouble)).sum(0)) < tolerance(at::kBFloat16));
}

TEST_CASE("SwiGLU on CUDA is that of the CPU", "[swiglu]") {
  uint64_t seed = 2000;
  for (const auto dtype : kKernelDtypes) {
    for (const Shape& s : kShapes) {
      INFO(at::toString(dtype) << " [" << s.rows << ", " << s.width << "] of " << s.width + s.wider);
      const auto numbers = [&] { return random_normal({s.rows, s.width}, ++seed); };
      const at::Tensor gate = numbers() * 4, up = numbers(), d = numbers();
      const std::vector<at::Tensor> gpu{columns(gate, dtype, s.first, s.wider), leaf(up.to(dtype).cuda())},
          cpu{leaf(as_seen(gate, dtype)), leaf(as_seen(up, dtype))};
      poison_freed_memory({s.rows, s.width}, dtype);
      const at::Tensor h = swiglu(gpu[0], gpu[1]), expected = cpu[0] / (1 + (-cpu[0]).exp()) * cpu[1];
      poison_freed_memory({s.rows, s.width}, dtype);
      const auto got = torch::autograd::grad({h}, gpu, {d.to(dtype).cuda()}),
                 wanted = torch::autograd::grad({expected}, cpu, {as_seen(d, dtype)});
      REQUIRE(h.sizes() == expected.sizes());
      if (s.rows == 0) continue;
      CHECK(distance_fp64(h, expected) < tolerance(dtype));
      for (size_t i = 0; i < 2; ++i) CHECK(distance_fp64(got[i], wanted[i]) < tolerance(dtype));
    }
    // Far out exp overflows one way or the other; 3 numbers from an odd address.
    const at::Tensor far = at::tensor({-90.0, -1000.0, 90.0, 1000.0}).to(dtype).cuda();
    const at::Tensor h = swiglu(far.narrow(0, 1, 3), at::ones({3}, far.options()));
    CHECK(distance_fp64(h, as_seen(at::tensor({0.0, 90.0, 1000.0}, at::kDouble), dtype)) < tolerance(dtype));
  }
}
