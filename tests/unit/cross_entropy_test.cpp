// Cross-entropy of rows of logits against torch's own, differentiated by autograd.
#include "moe/cross_entropy.h"

#include <torch/csrc/autograd/autograd.h>

#include "tests/support/catch.h"
#include "tests/support/numbers.h"

using namespace moetune;

TEST_CASE("the gradient of cross-entropy takes the place of the logits", "[cross_entropy]") {
  constexpr int64_t C = 6, V = 11;
  const at::Tensor logits = leaf(random_normal({C, V}, 1) * 4), target = long_tensor({0, 10, 3, 3, 7, 5}),
                   weight = random_normal({C}, 2).abs();
  CHECK(distance(log_sum_exp(logits.detach()), logits.exp().sum(1, true).log()) < 1e-14);
  // The fifth row's target is in another part of the vocabulary.
  const at::Tensor own = at::ones({C}, at::kDouble).index_fill_(0, long_tensor({4}), 0.0);
  const at::Tensor log_sum = logits.exp().sum(1).log();
  for (const bool weighted : {false, true}) {
    const at::Tensor each = log_sum - own * logits.gather(1, target.unsqueeze(1)).squeeze(1);
    const at::Tensor loss = 0.3 * (weighted ? each * weight : each).sum();
    const at::Tensor wanted = torch::autograd::grad({loss}, {logits}, {}, /*retain_graph=*/true)[0];
    const at::Tensor got = cross_entropy_gradient(logits.detach().clone(), log_sum.detach().unsqueeze(1),
                                                  {target.unsqueeze(1), own.to(at::kBool).unsqueeze(1)}, 0.3,
                                                  weighted ? weight.unsqueeze(1) : at::Tensor());
    CHECK(distance(got, wanted) < 1e-14);
  }
}

TEST_CASE("logits in bf16 are summed in fp32", "[cross_entropy]") {
  const at::Tensor logits = random_normal({4, 500}, 1, at::kBFloat16),
                   target = long_tensor({1, 2, 3, 499}).unsqueeze(1);
  const at::Tensor log_sum = log_sum_exp(logits), wide = logits.to(at::kDouble);
  CHECK(log_sum.scalar_type() == at::kFloat);
  CHECK(distance(log_sum, wide.exp().sum(1, true).log()) < 1e-6);
  const at::Tensor d = cross_entropy_gradient(logits.clone(), log_sum, {target, at::ones({4, 1}, at::kBool)}, 2.0, {});
  CHECK(d.scalar_type() == at::kBFloat16);
  CHECK(distance(d, 2 * (wide.softmax(1).scatter_add(1, target, -at::ones({4, 1}, at::kDouble)))) < 4e-3);
  CHECK(log_sum_exp(logits.narrow(0, 0, 0)).sizes() == at::IntArrayRef({0, 1}));
}
