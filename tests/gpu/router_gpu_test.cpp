// A router on a GPU: the wide product of its scores against fp64, and its choice against the CPU.
#include "moe/wide_product.h"

#include <torch/csrc/autograd/autograd.h>

#include <array>

#include "moe/router.h"
#include "tests/support/catch.h"
#include "tests/support/gpu_numbers.h"

using namespace moetune;

TEST_CASE("A wide product of bf16 rows on CUDA is as close as fp32", "[wide_product]") {
  uint64_t seed = 1;
  for (const std::vector<int64_t>& shape :
       {std::vector<int64_t>{300, 7168, 256}, {7, 72, 5}, {1, 33, 3}, {129, 2048, 60}, {0, 64, 8}}) {
    const int64_t T = shape[0], D = shape[1], E = shape[2];
    for (const auto dtype : {at::kBFloat16, at::kFloat}) {
      INFO(T << " x " << D << " x " << E << ", weight in " << at::toString(dtype));
      const at::Tensor x = random_normal({T, D}, ++seed, at::kBFloat16), d = random_normal({T, E}, ++seed, at::kFloat),
                       w = random_normal({E, D}, ++seed, at::kFloat).mul_(0.02).to(dtype);
      const at::Tensor gx = leaf(x.cuda()), gw = leaf(w.cuda());
      poison_freed_memory({T, E}, at::kFloat);
      const at::Tensor y = wide_linear(gx, gw);
      CHECK(y.scalar_type() == at::kFloat);
      poison_freed_memory({T, D}, at::kBFloat16);
      const auto got = torch::autograd::grad({y}, {gx, gw}, {d.cuda()});
      CHECK(got[0].scalar_type() == at::kBFloat16);
      CHECK(got[1].scalar_type() == dtype);
      const at::Tensor wide_x = x.to(at::kDouble), wide_w = w.to(at::kDouble), wide_d = d.to(at::kDouble);
      CHECK(distance_fp64(got[1], wide_d.t().matmul(wide_x)) <= (dtype == at::kFloat ? 3e-6 : 4e-3));
      if (T == 0) continue;
      // Sums of thousands of products, in three parts of fp32 weights, each in the order of the tensor cores.
      CHECK(distance_fp64(y, wide_x.matmul(wide_w.t())) < (dtype == at::kFloat ? 6e-6 : 3e-6));
      CHECK(distance_fp64(got[0], wide_d.matmul(wide_w)) < 3e-3);
    }
  }
}

TEST_CASE("A router on CUDA chooses what fp32 chooses", "[router]") {
  constexpr int64_t T = 512, D = 1024, E = 64, K = 4;
  RouterSpec spec;
  spec.experts = E;
  spec.top_k = K;
  spec.choice = RouterSpec::Choice::kGroupsByBestTwo;
  spec.num_groups = 8;
  spec.top_groups = 4;
  spec.correction_bias = true;
  spec.normalise_eps = 1e-20;
  spec.scale = 2.5;
  const at::Tensor x = random_normal({T, D}, 1, at::kBFloat16), correction = random_normal({E}, 3, at::kFloat) * 0.1;
  for (const auto dtype : {at::kBFloat16, at::kFloat}) {
    const at::Tensor w = (random_normal({E, D}, 2, at::kFloat) * 0.03).to(dtype);
    const Router gpu(spec, {w.cuda(), correction.cuda(), {}, nullptr}), cpu(spec, {w, correction, {}, nullptr});
    const at::Tensor score = gpu.scores(x.cuda()), expected = cpu.scores(x);
    CHECK(distance_fp64(score, expected.to(at::kDouble)) < 3e-6);
    const at::Tensor chosen = gpu.choose(score).cpu(), wanted = cpu.choose(expected);
    // A tie within rounding may fall either way.
    CHECK((chosen != wanted).any(1).sum().item<int64_t>() <= 2);
    CHECK(at::equal(gpu.choose(expected.cuda()).cpu(), wanted));
  }
}

TEST_CASE("Experts chosen on CUDA are those of the CPU, in their order, ties among them", "[router]") {
  using Choice = RouterSpec::Choice;
  uint64_t seed = 50;
  for (const auto& [experts, groups, top_groups, top_k] : std::vector<std::array<int64_t, 4>>{{8, 1, 1, 3},
                                                                                              {8, 4, 2, 3},
                                                                                              {60, 1, 1, 4},
                                                                                              {64, 8, 3, 6},
                                                                                              {128, 1, 1, 8},
                                                                                              {160, 8, 3, 6},
                                                                                              {256, 8, 4, 8},
                                                                                              {384, 1, 1, 8},
                                                                                              {512, 32, 7, 10},
                                                                                              {1000, 1, 1, 17}}) {
    for (const auto choice : {Choice::kGreedy, Choice::kGroupsByMax, Choice::kGroupsByBestTwo}) {
      for (const bool corrected : {false, true}) {
        INFO(experts << " experts, " << groups << " groups, choice " << static_cast<int>(choice) << ", " << corrected);
        RouterSpec spec;
        spec.experts = experts;
        spec.top_k = top_k;
        spec.choice = choice;
        spec.num_groups = groups;
        spec.top_groups = top_groups;
        spec.correction_bias = corrected;
        const at::Tensor correction =
            corrected ? random_normal({experts}, ++seed, at::kFloat).mul(4).round().div(4) : at::Tensor();
        const at::Tensor weight = at::zeros({experts, 4});
        const Router cpu(spec, {weight, correction, {}, nullptr}),
            gpu(spec, {weight.cuda(), corrected ? correction.cuda() : at::Tensor(), {}, nullptr});
        for (const int64_t rows : {0, 1, 203}) {
          // Quarters, of which many are equal, both zeros among them.
          const at::Tensor score = random_normal({rows, experts}, ++seed, at::kFloat).mul(4).round().div(4);
          poison_freed_memory({rows, top_k}, at::kDouble);
          const at::Tensor chosen = gpu.choose(score.cuda());
          CHECK(chosen.scalar_type() == at::kLong);
          CHECK(at::equal(chosen.cpu(), cpu.choose(score)));
        }
      }
    }
  }
}
