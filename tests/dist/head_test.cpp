// Embedding and head cut by vocabulary against the whole ones, forward and backward.
#include "moe/head.h"

#include <torch/csrc/autograd/autograd.h>

#include "moe/embedding.h"
#include "parallel/comm/communicator.h"
#include "tests/support/catch.h"
#include "tests/support/dist.h"
#include "tests/support/numbers.h"

using namespace moetune;

namespace {

constexpr int64_t U = 11, D = 8, V = 22;  // over four ranks the last part is shorter
constexpr double kEps = 1e-5;

at::Tensor on_device(const at::Tensor& tensor) { return tensor.to(test_launch().device()); }

struct Parts {
  std::unique_ptr<Communicator> group = test_launch().make_group(0, test_launch().rank(), "axis");
  TensorAxis axis{*group};
  VocabularyPart part = VocabularyPart::of(V, axis);
  ParameterSet parameters{test_launch().device(), at::kDouble};
  Parameter& weight(uint64_t seed) {
    return parameters.add({}, random_normal({V, D}, seed).narrow(0, part.first, part.count));
  }
  at::Tensor own(const at::Tensor& whole_VD) const { return whole_VD.narrow(0, part.first, part.count); }
};

}  // namespace

TEST_CASE("a head in parts of the vocabulary has the loss and the gradients of the whole", "[head]") {
  Parts p;
  const at::Tensor x = on_device(random_normal({U, D}, 1)).requires_grad_(),
                   norm_whole = on_device(random_normal({D}, 2)).requires_grad_();
  const at::Tensor weight_whole = on_device(random_normal({V, D}, 3)).requires_grad_();
  const at::Tensor row = on_device(long_tensor({1, 2, 4, 5, 6, 9, 10})),
                   target = on_device(long_tensor({3, 0, 21, 3, 14, 7, 11}));
  const double scale = 0.25;
  const at::Tensor logits = (x / (x.square().mean(-1, true) + kEps).sqrt() * norm_whole).matmul(weight_whole.t());
  const at::Tensor expected = at::cross_entropy_loss(logits.index_select(0, row), target, {}, at::Reduction::Sum);
  const auto wanted = torch::autograd::grad({expected * scale}, {x, norm_whole, weight_whole}, {},
                                            /*retain_graph=*/true);
  const at::Tensor weight_n = on_device(at::tensor({1.0F, 0.5F, 0.0F, 2.0F, 0.25F, 1.0F, 3.0F}));
  const at::Tensor each = at::cross_entropy_loss(logits.index_select(0, row), target, {}, at::Reduction::None);
  const at::Tensor weighted = (each * weight_n.to(at::kDouble)).sum();
  const auto wanted_weighted = torch::autograd::grad({weighted * scale}, {x}, {}, /*retain_graph=*/true);
  for (const int64_t chunk : {3, 100}) {
    ParameterSet parameters(test_launch().device(), at::kDouble);
    Parameter& norm = parameters.add({}, random_normal({D}, 2));
    Parameter& weight = parameters.add({}, random_normal({V, D}, 3).narrow(0, p.part.first, p.part.count));
    Head head({norm.working, weight.working, &norm, &weight}, V, kEps, chunk, p.axis);
    const HeadResult result = head.loss(x.detach(), row, target, scale, true);
    CHECK(result.loss_sum.item<double>() == Approx(expected.item<double>()).epsilon(1e-13));
    CHECK(distance(weight.gradient(), p.own(wanted[2])) < 1e-13);
    // What the parts add to the rows' and the norm's gradient is the whole of it.
    for (const auto& [part, whole] : {std::pair{result.d_x_UD, wanted[0]}, std::pair{norm.gradient(), wanted[1]}}) {
      at::Tensor sum = part.clone();
      p.group->all_reduce_sum(sum);
      CHECK(distance(sum, whole) < 1e-13);
    }
    CHECK(distance(head.logits(x.detach()), logits) < 1e-13);
    const HeadResult by_weight = head.loss(x.detach(), row, target, scale, true, weight_n);
    CHECK(by_weight.loss_sum.item<double>() == Approx(weighted.item<double>()).epsilon(1e-13));
    at::Tensor sum = by_weight.d_x_UD.clone();
    p.group->all_reduce_sum(sum);
    CHECK(distance(sum, wanted_weighted[0]) < 1e-13);
  }
}

TEST_CASE("logits far apart between the parts neither overflow nor vanish", "[head]") {
  Parts p;
  // Logits of 1000 times the rank's number: only the last rank's part counts.
  at::Tensor weight = at::full({p.part.count, 1}, 1000.0 * p.axis.index(), test_options(at::kDouble));
  Head head({at::ones({1}, test_options(at::kDouble)), weight}, V, 0.0, 4, p.axis);
  const VocabularyPart last{(p.axis.size() - 1) * p.axis.rows_of(V), V - (p.axis.size() - 1) * p.axis.rows_of(V)};
  const HeadResult result = head.loss(at::ones({1, 1}, test_options(at::kDouble)), on_device(long_tensor({0})),
                                      on_device(long_tensor({V - 1})), 1.0, false);
  CHECK(result.loss_sum.item<double>() == Approx(std::log(static_cast<double>(last.count))).epsilon(1e-12));
}

TEST_CASE("an embedding in parts of the vocabulary", "[embedding]") {
  Parts p;
  Parameter& weight = p.weight(7);
  Embedding embedding(weight.working, &weight, p.part, p.axis);
  const at::Tensor whole = on_device(random_normal({V, D}, 7));
  // Three rows a rank: tokens of every part, one twice, and padding at the end where there are several ranks.
  std::vector<int64_t> tokens;
  for (int64_t row = 0; row < 3 * p.axis.size(); ++row) tokens.push_back((row * 5) % V);
  tokens[1] = tokens[0];
  const bool padded = p.axis.size() > 1;
  if (padded) tokens.back() = -1;
  const at::Tensor token_U = on_device(long_tensor(tokens));
  at::Tensor expected = whole.index_select(0, token_U.clamp_min(0));
  if (padded) expected[-1].zero_();
  auto own_rows = [&](const at::Tensor& all) { return all.narrow(0, 3 * p.axis.index(), 3); };
  CHECK(at::equal(embedding.embed(token_U), own_rows(expected)));

  const at::Tensor d_all = on_device(random_normal({3 * p.axis.size(), D}, 9));
  embedding.add_gradient(token_U, own_rows(d_all));
  at::Tensor wanted = at::zeros({V, D}, test_options(at::kDouble));
  const int64_t rows = token_U.size(0) - (padded ? 1 : 0);
  wanted.index_add_(0, token_U.narrow(0, 0, rows), d_all.narrow(0, 0, rows));
  CHECK(distance(weight.gradient(), p.own(wanted)) < 1e-14);
}
