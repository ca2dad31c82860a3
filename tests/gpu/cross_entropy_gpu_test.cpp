// Cross-entropy on a GPU against the CPU in fp64, and the head that is made of it.
#include "moe/cross_entropy.h"

#include "moe/head.h"
#include "tests/support/catch.h"
#include "tests/support/gpu_numbers.h"

using namespace moetune;

TEST_CASE("Cross-entropy and its gradient on CUDA are those of the CPU", "[cross_entropy]") {
  uint64_t seed = 1;
  for (const auto dtype : kKernelDtypes) {
    for (const std::vector<int64_t>& shape :
         {std::vector<int64_t>{5, 129280}, {7, 1000}, {3, 1001}, {1, 1}, {2, 513}, {0, 1000}}) {
      const int64_t C = shape[0], V = shape[1];
      INFO(at::toString(dtype) << " [" << C << ", " << V << "]");
      const at::Tensor logits = random_normal({C, V}, ++seed) * 5 - 40,
                       weight = random_normal({C}, ++seed).abs().unsqueeze(1);
      at::Tensor target = (at::arange(C, at::kLong) * 7919 + V - 1).remainder(V).unsqueeze(1);
      at::Tensor own = at::ones({C, 1}, at::kBool);
      if (C > 2) own[1].fill_(false);
      const at::Tensor gpu = logits.to(dtype).cuda(), cpu = as_seen(logits, dtype);
      const at::Tensor log_sum = log_sum_exp(gpu), expected = cpu.logsumexp(-1, true);
      CHECK(log_sum.sizes() == at::IntArrayRef({C, 1}));
      const double sum_tolerance = dtype == at::kDouble ? 1e-13 : 1e-6;
      if (C > 0) CHECK(distance_fp64(log_sum, expected) < sum_tolerance);
      for (const bool weighted : {false, true}) {
        const at::Tensor w = weighted ? weight : at::ones_like(weight);
        const at::Tensor wanted =
            (cpu.softmax(-1) - at::zeros_like(cpu).scatter(1, target, own.to(at::kDouble))) * w * 0.01;
        const at::Tensor d = cross_entropy_gradient(gpu.clone(), log_sum, {target.cuda(), own.cuda()}, 0.01,
                                                    weighted ? weight.to(log_sum.scalar_type()).cuda() : at::Tensor());
        CHECK(d.scalar_type() == dtype);
        REQUIRE(d.sizes() == wanted.sizes());
        if (C > 0 && V > 1) CHECK(distance_fp64(d, wanted) < 2 * tolerance(dtype));
      }
    }
  }
}

TEST_CASE("The head on CUDA is that of the CPU", "[head]") {
  constexpr int64_t T = 50, D = 64, V = 1000;
  const at::Tensor x = random_normal({T, D}, 1), norm = random_normal({D}, 2), weight = random_normal({V, D}, 3) * 0.2;
  const at::Tensor row = at::arange(1, T, 2, at::kLong), target = (row * 37).remainder(V),
                   weights = random_normal({row.size(0)}, 4, at::kFloat).abs();
  for (const auto dtype : kKernelDtypes) {
    INFO(at::toString(dtype));
    Head cpu({as_seen(norm, dtype), as_seen(weight, dtype)}, V, 1e-6, 8),
        gpu({norm.to(dtype).cuda(), weight.to(dtype).cuda()}, V, 1e-6, 8);
    const HeadResult wanted = cpu.loss(as_seen(x, dtype), row, target, 0.1, true, weights),
                     got = gpu.loss(x.to(dtype).cuda(), row.cuda(), target.cuda(), 0.1, true, weights.cuda());
    CHECK(distance_fp64(got.loss_sum, wanted.loss_sum) < tolerance(dtype));
    CHECK(distance_fp64(got.d_x_UD, wanted.d_x_UD) < 4 * tolerance(dtype));
    CHECK(distance_fp64(gpu.loss(x.to(dtype).cuda(), row.cuda(), target.cuda(), 0.1, false).loss_n,
                        cpu.loss(as_seen(x, dtype), row, target, 0.1, false).loss_n) < tolerance(dtype));
  }
}
