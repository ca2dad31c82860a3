// The SwiGLU MLP, with a gate on its output and without, against the formula differentiated by torch's autograd.
#include "tests/support/catch.h"

#include <torch/csrc/autograd/autograd.h>

#include "moe/swiglu_mlp.h"
#include "tests/support/numbers.h"

using namespace moetune;

TEST_CASE("a gated MLP is the MLP times sigmoid(x . g)", "[swiglu_mlp]") {
  constexpr int64_t D = 5, F = 3;
  ParameterSet parameters{at::kCPU, at::kDouble};
  const auto map = [&](int64_t outputs, int64_t inputs, uint64_t seed) {
    return std::make_unique<Linear>(parameters.add({}, random_normal({outputs, inputs}, seed)));
  };
  for (const int64_t T : {6, 0}) {
    for (const bool gated : {false, true}) {
      const at::Tensor g = leaf(random_normal({1, D}, 4)), x = leaf(random_normal({T, D}, 5)),
                       d = random_normal({T, D}, 6);
      auto gate = map(F, D, 1), up = map(F, D, 2), down = map(D, F, 3);
      const at::Tensor gate_FD = gate->trained()->working, up_FD = up->trained()->working,
                       down_DF = down->trained()->working;
      const SwigluMlp mlp(std::move(gate), std::move(up), std::move(down), {}, gated ? g : at::Tensor());
      Slice slice;
      slice.num_rows = slice.num_all_rows = T;
      slice.token_U = at::arange(T, at::kLong);
      const at::Tensor y = mlp.forward(x, slice, {});
      const at::Tensor a = x.matmul(gate_FD.t());
      at::Tensor expected = (a / (1 + (-a).exp()) * x.matmul(up_FD.t())).matmul(down_DF.t());
      if (gated) expected = expected / (1 + (-(x * g).sum(1, true)).exp());
      CHECK(y.sizes() == at::IntArrayRef({T, D}));
      CHECK(distance(y, expected) < 1e-14);
      std::vector<at::Tensor> inputs{x, gate_FD, up_FD, down_DF};
      if (gated) inputs.push_back(g);
      const auto got = torch::autograd::grad({y}, inputs, {d}), wanted = torch::autograd::grad({expected}, inputs, {d});
      for (size_t i = 0; i < got.size(); ++i) CHECK(distance(got[i], wanted[i]) < 1e-13);
    }
  }
}
