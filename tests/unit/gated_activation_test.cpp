// Gated activations and their gradients against the formula of one number, differentiated by torch's autograd, in fp64.
#include "moe/gated_activation.h"

#include <torch/csrc/autograd/autograd.h>

#include "tests/support/catch.h"
#include "tests/support/numbers.h"

using namespace moetune;

namespace {

constexpr int64_t X = 7, F = 5;
constexpr double kLimit = 0.6, kAlpha = 1.702;  // so that many numbers are clamped

at::Tensor slow(const ActivationForm& form, const at::Tensor& gate_up, const at::Tensor& w) {
  std::vector<at::Tensor> h;
  for (int64_t x = 0; x < X; ++x) {
    for (int64_t f = 0; f < F; ++f) {
      at::Tensor g = gate_up[x][form.alternating ? 2 * f : f], u = gate_up[x][form.alternating ? 2 * f + 1 : F + f];
      at::Tensor a;
      if (form.activation == ExpertSpec::Activation::kSwiglu) {
        a = g / (1 + (-g).exp()) * u;
      } else {
        if (g.item<double>() > kLimit) g = at::full({}, kLimit, at::kDouble);
        if (u.item<double>() > kLimit) u = at::full({}, kLimit, at::kDouble);
        if (u.item<double>() < -kLimit) u = at::full({}, -kLimit, at::kDouble);
        a = (u + 1) * g / (1 + (-kAlpha * g).exp());
      }
      h.push_back(w.defined() ? w[x] * a : a);
    }
  }
  return at::stack(h).view({X, F});
}

}  // namespace

TEST_CASE("a gated activation and its gradients equal the formula of a number", "[gated_activation]") {
  using Activation = ExpertSpec::Activation;
  for (const auto activation : {Activation::kSwiglu, Activation::kClampedSwiglu}) {
    for (const bool alternating : {false, true}) {
      for (const bool weighted : {false, true}) {
        INFO("activation " << static_cast<int>(activation) << ", alternating " << alternating << ", weighted "
                           << weighted);
        const ActivationForm form{activation, kLimit, kAlpha, alternating};
        const at::Tensor gate_up = leaf(random_normal({X, 2 * F}, 1)), d_h = random_normal({X, F}, 3),
                         w = weighted ? leaf(random_normal({X}, 2)) : at::Tensor();
        const at::Tensor expected = slow(form, gate_up, w), of = gate_up.detach(),
                         weight = weighted ? w.detach() : at::Tensor();
        std::vector<at::Tensor> inputs{gate_up};
        if (weighted) inputs.push_back(w);
        const auto wanted = torch::autograd::grad({expected}, inputs, {d_h});

        CHECK(distance(gated_activation(form, of, weight), expected) < 1e-14);
        const at::Tensor wide = gated_activation(form, of, weight, F + 3);
        CHECK(wide.stride(0) == F + 3);
        CHECK(distance(wide.narrow(1, 0, F), expected) < 1e-14);
        for (const bool hidden : {false, true}) {
          const at::Tensor before = of.clone();
          const ActivationGradients kept =
              gated_activation_backward(form, before, weight, d_h.clone(), {.keep_gate_up = true, .hidden = hidden});
          CHECK(at::equal(before, of));
          const ActivationGradients wider =
              gated_activation_backward(form, before, weight, d_h.clone(),
                                        {.hidden = hidden, .d_gate_up_columns = 2 * F + 3, .hidden_columns = F + 3});
          CHECK(at::equal(before, of));
          CHECK(wider.d_gate_up_X2F.stride(0) == 2 * F + 3);
          const ActivationGradients again =
              gated_activation_backward(form, before, weight, d_h.clone(), {.hidden = hidden});
          for (const ActivationGradients* got : {&kept, &wider, &again}) {
            CHECK(distance(got->d_gate_up_X2F.narrow(1, 0, 2 * F), wanted[0]) < 1e-13);
            CHECK(got->d_weight_X.defined() == weighted);
            if (weighted) CHECK(distance(got->d_weight_X, wanted[1]) < 1e-13);
            CHECK(got->hidden_XF.defined() == hidden);
            if (hidden) CHECK(distance(got->hidden_XF.narrow(1, 0, F), expected) < 1e-14);
          }
        }
        const at::Tensor none = at::empty({0, 2 * F}, at::kDouble),
                         no_weight = weighted ? weight.narrow(0, 0, 0) : weight;
        CHECK(gated_activation(form, none, no_weight).sizes() == at::IntArrayRef({0, F}));
        CHECK(gated_activation_backward(form, none, no_weight, at::empty({0, F}, at::kDouble), {})
                  .d_gate_up_X2F.sizes() == at::IntArrayRef({0, 2 * F}));
      }
    }
  }
}
