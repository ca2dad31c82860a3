// Gated activations on a GPU against the CPU's plain operations in fp64.
#include "moe/gated_activation.h"

#include "tests/support/catch.h"
#include "tests/support/numbers.h"

using namespace moetune;

namespace {

// Beside rounding to the dtype, a sum over a row may cancel.
double bound(at::ScalarType dtype) { return dtype == at::kBFloat16 ? 4e-3 : dtype == at::kFloat ? 1e-5 : 1e-13; }

at::Tensor wide(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.to(at::kCPU, at::kDouble, /*non_blocking=*/false, /*copy=*/true) : tensor;
}

/// Memory that the allocator hands out next, of as many bytes, is NaN.
void poison(const at::Tensor& like, int64_t columns) {
  for (int i = 0; i < 3; ++i) {
    at::full({like.size(0), columns}, std::numeric_limits<double>::quiet_NaN(), like.options());
  }
}

}  // namespace

TEST_CASE("a GPU activates as the CPU does, forward and backward", "[gated_activation]") {
  using Activation = ExpertSpec::Activation;
  at::manual_seed(12);
  for (const auto dtype : {at::kBFloat16, at::kFloat, at::kDouble}) {
    for (const auto activation : {Activation::kSwiglu, Activation::kClampedSwiglu}) {
      for (const bool alternating : {false, true}) {
        for (const bool weighted : {false, true}) {
          for (const auto& [X, F] :
               std::vector<std::pair<int64_t, int64_t>>{{0, 64}, {1, 8}, {3, 5}, {70, 2048}, {33, 2880}, {9, 250}}) {
            INFO(c10::toString(dtype) << ", activation " << static_cast<int>(activation) << ", alternating "
                                      << alternating << ", weighted " << weighted << ", " << X << " x " << F);
            const auto on_gpu = at::device(at::kCUDA).dtype(dtype);
            const ActivationForm form{activation, 1.1, 1.702, alternating};
            const at::Tensor gate_up = at::randn({X, 2 * F}, on_gpu) * 1.5, d_h = at::randn({X, F}, on_gpu),
                             weight = weighted ? at::randn({X}, on_gpu) : at::Tensor();
            const at::Tensor h = gated_activation(form, wide(gate_up), wide(weight));
            ActivationGradients expected =
                gated_activation_backward(form, wide(gate_up), wide(weight), wide(d_h), {.hidden = true});
            const auto close = [&](at::Tensor got, const at::Tensor& wanted) {
              if (got.dim() == 2) got = got.narrow(1, 0, wanted.size(1));
              return X == 0 ? got.sizes() == wanted.sizes() : distance(wide(got), wanted) < bound(dtype);
            };
            for (const int64_t gap : {0, 8, 3}) {
              poison(d_h, F + gap);
              CHECK(close(gated_activation(form, gate_up, weight, F + gap), h));
              for (const bool keep : {false, true}) {
                for (const bool hidden : {false, true}) {
                  const at::Tensor before = gate_up.clone(), d = d_h.clone();
                  poison(gate_up, 2 * F + gap);
                  const ActivationGradients got = gated_activation_backward(form, before, weight, d,
                                                                            {.keep_gate_up = keep,
                                                                             .hidden = hidden,
                                                                             .d_gate_up_columns = 2 * F + gap,
                                                                             .hidden_columns = F + gap});
                  CHECK(close(got.d_gate_up_X2F, expected.d_gate_up_X2F));
                  if (weighted) CHECK(close(got.d_weight_X, expected.d_weight_X));
                  if (hidden) CHECK(close(got.hidden_XF, expected.hidden_XF));
                  if (keep) CHECK(at::equal(before, gate_up));
                }
              }
            }
          }
        }
      }
    }
  }
}

TEST_CASE("what is not finite stays so through an activation on a GPU", "[gated_activation]") {
  using Activation = ExpertSpec::Activation;
  for (const auto activation : {Activation::kSwiglu, Activation::kClampedSwiglu}) {
    for (const int64_t at_column : {3, 64 + 3}) {
      at::Tensor gate_up = at::ones({2, 128}, at::device(at::kCUDA).dtype(at::kBFloat16));
      gate_up[1][at_column] = std::numeric_limits<double>::quiet_NaN();
      const ActivationForm form{activation, 7.0, 1.702, false};
      const at::Tensor h = gated_activation(form, gate_up, {});
      CHECK(h[1][3].isnan().item<bool>());
      CHECK(h.isnan().sum().item<int64_t>() == 1);
      const at::Tensor weight = at::ones({2}, gate_up.options());
      const ActivationGradients d = gated_activation_backward(form, gate_up, weight, at::ones_like(h), {});
      CHECK(d.d_weight_X[1].isnan().item<bool>());
      CHECK(!d.d_weight_X[0].isnan().item<bool>());
    }
  }
  // Far out the sigmoid is 0 or 1, not a NaN.
  const at::Tensor far = at::tensor({-3e4, 3e4, 2.0, 3.0}, at::device(at::kCUDA).dtype(at::kDouble)).view({1, 4});
  for (const auto dtype : {at::kBFloat16, at::kFloat, at::kDouble}) {
    const at::Tensor h = gated_activation({}, far.to(dtype), {}).to(at::kCPU, at::kDouble);
    CHECK(h[0][0].item<double>() == 0.0);
    CHECK(h[0][1].item<double>() == Approx(9e4).epsilon(0.01));
  }
}
