// A frozen linear map against torch's own matmul and autograd, and what its graph holds.
#include "tests/support/catch.h"

#include <torch/csrc/autograd/autograd.h>

#include "lora/linear.h"
#include "parallel/base/error.h"
#include "tests/support/message_of.h"
#include "tests/support/numbers.h"

using namespace moetune;

namespace {

constexpr int64_t T = 7, I = 16, O = 12;

struct Frozen {
  Frozen()
      : scratch(at::kCPU, at::kDouble),
        values(random_normal({O, I}, 1, at::kFloat).to(at::kDouble)),
        weight(std::make_unique<FrozenWeight>(FrozenShape{BaseFormat::kFp32, 1, O, I}, at::kCPU, at::kDouble)) {
    weight->set(0, values);
    scratch.reserve(4 * O * I);
    scratch.poison_released(true);
  }
  void use() { weight->use(scratch, counters); }
  void release() {
    weight->release();
    scratch.reset();
  }
  Scratch scratch;
  DequantCounters counters;
  at::Tensor values;
  std::unique_ptr<FrozenWeight> weight;
};

}  // namespace

TEST_CASE("the graph of a frozen product holds no dense weight", "[linear]") {
  Frozen w;
  const at::Tensor x = leaf(random_normal({T, I}, 2)), d_y = random_normal({T, O}, 3);
  w.use();
  const at::Tensor dense = w.weight->dense();
  const auto owners = dense.storage().use_count();
  const at::Tensor y = frozen_matmul(x, *w.weight);
  CHECK(dense.storage().use_count() == owners);
  CHECK(distance(y, x.matmul(w.values.t())) < 1e-14);
  w.release();
  CHECK(dense.isnan().all().item<bool>());
  auto backward = [&] { return torch::autograd::grad({y}, {x}, {d_y}, /*retain_graph=*/true)[0]; };
  CHECK(contains(message_of<InternalError>(backward), "not in use"));

  // The weight lies elsewhere in the next use; the same graph finds it.
  w.scratch.take({64});
  w.use();
  CHECK(w.weight->dense().data_ptr() != dense.data_ptr());
  CHECK(distance(backward(), d_y.matmul(w.values)) < 1e-14);
}

TEST_CASE("a linear map with an adapter equals the plain expression", "[linear]") {
  for (const double dropout : {0.0, 0.3}) {
    Frozen w;
    const at::Tensor values = w.values;
    ParameterSet parameters(at::kCPU, at::kDouble);
    ParameterInfo info;
    info.name = "map";
    auto adapter = std::make_unique<Adapter>(AdapterSpec{3, 0.5, dropout}, info, 0, O, I, 1, parameters);
    const Adapter& a = *adapter;
    a.b().master().copy_(random_normal({O, 3}, 4));
    a.b().refresh_working();
    w.use();
    const Linear linear(std::move(w.weight), std::move(adapter));
    const StepRandom random{9, 4, true};
    const at::Tensor x = leaf(random_normal({T, I}, 2)), d_y = random_normal({T, O}, 3),
                     token = at::arange(T, at::kLong);

    const at::Tensor y = linear.forward(x, token, random);
    const at::Tensor mask = a.drop(at::ones({T, I}, at::kDouble), token, random);
    const at::Tensor expected =
        x.matmul(values.t()) + 0.5 * (x * mask).matmul(a.a().working.t()).matmul(a.b().working.t());
    CHECK(distance(y, expected) < 1e-14);
    const std::vector<at::Tensor> inputs{x, a.a().working, a.b().working};
    const auto got = torch::autograd::grad({y}, inputs, {d_y}),
               wanted = torch::autograd::grad({expected}, inputs, {d_y});
    for (size_t i = 0; i < inputs.size(); ++i) CHECK(distance(got[i], wanted[i]) < 1e-13);

    // The graph alone, of other numbers than were there before.
    const at::Tensor graph = linear.forward(x, token, random, Wanted::kGraph);
    CHECK(graph.sizes() == y.sizes());
    CHECK(graph.isnan().all().item<bool>());
    const auto of_graph = torch::autograd::grad({graph}, inputs, {d_y});
    for (size_t i = 0; i < inputs.size(); ++i) CHECK(at::equal(of_graph[i], got[i]));
  }
}

TEST_CASE("a frozen map without an adapter has its gradient without its numbers too", "[linear]") {
  Frozen w;
  const at::Tensor values = w.values, bias = leaf(random_normal({O}, 5));
  w.use();
  const Linear linear(std::move(w.weight), nullptr, bias);
  const at::Tensor x = leaf(random_normal({T, I}, 2)), d_y = random_normal({T, O}, 3);
  const at::Tensor y = linear.forward(x, at::Tensor(), StepRandom{}, Wanted::kGraph);
  CHECK(y.isnan().all().item<bool>());
  const auto got = torch::autograd::grad({y}, {x, bias}, {d_y});
  CHECK(distance(got[0], d_y.matmul(values)) < 1e-14);
  CHECK(distance(got[1], d_y.sum(0)) < 1e-14);
}

TEST_CASE("a linear map that trains is a plain linear map", "[linear]") {
  ParameterSet parameters(at::kCPU, at::kDouble);
  Parameter& weight = parameters.add({}, random_normal({O, I}, 1));
  const at::Tensor x = leaf(random_normal({T, I}, 2));
  const at::Tensor y = Linear(weight).forward(x, at::Tensor(), StepRandom{});
  CHECK(distance(y, x.matmul(weight.master().t())) < 1e-14);
  const at::Tensor d_y = random_normal({T, O}, 3);
  CHECK(distance(torch::autograd::grad({y}, {weight.working}, {d_y})[0], d_y.t().matmul(x)) < 1e-13);
}

TEST_CASE("a bias is added once, and trains where it is a leaf", "[linear]") {
  const at::Tensor x = leaf(random_normal({T, I}, 2)), d_y = random_normal({T, O}, 3);
  const at::Tensor bias = leaf(random_normal({O}, 5));
  const auto check = [&](const Linear& linear, const at::Tensor& expected) {
    const at::Tensor y = linear.forward(x, at::arange(T, at::kLong), StepRandom{});
    CHECK(at::equal(linear.bias(), bias));
    CHECK(distance(y, expected) < 1e-14);
    const auto got = torch::autograd::grad({y}, {x, bias}, {d_y}),
               wanted = torch::autograd::grad({expected}, {x, bias}, {d_y});
    for (size_t i = 0; i < 2; ++i) CHECK(distance(got[i], wanted[i]) < 1e-13);
  };
  Frozen plain, adapted;
  plain.use();
  check(Linear(std::move(plain.weight), nullptr, bias), x.matmul(plain.values.t()) + bias);

  ParameterSet parameters(at::kCPU, at::kDouble);
  auto adapter = std::make_unique<Adapter>(AdapterSpec{3, 0.5, 0.0}, ParameterInfo{}, 0, O, I, 1, parameters);
  const Adapter& a = *adapter;
  a.b().master().copy_(random_normal({O, 3}, 4));
  a.b().refresh_working();
  adapted.use();
  check(Linear(std::move(adapted.weight), std::move(adapter), bias),
        x.matmul(adapted.values.t()) + bias + 0.5 * x.matmul(a.a().working.t()).matmul(a.b().working.t()));

  Parameter& weight = parameters.add({}, random_normal({O, I}, 1));
  check(Linear(weight, bias), x.matmul(weight.working.t()) + bias);

  // Frozen, it leaves the gradient of x alone.
  Frozen again;
  again.use();
  const Linear frozen(std::move(again.weight), nullptr, bias.detach());
  const at::Tensor y = frozen.forward(x, at::arange(T, at::kLong), StepRandom{});
  CHECK(distance(torch::autograd::grad({y}, {x}, {d_y})[0], d_y.matmul(again.values)) < 1e-14);
}

TEST_CASE("an adapted map with a part of the outputs trains that part of B", "[linear]") {
  constexpr int64_t kHeld = O + 5, kFirst = 3, R = 3;
  for (const int64_t rows : {T, int64_t{0}}) {
    Frozen w;
    ParameterSet parameters(at::kCPU, at::kDouble);
    auto adapter = std::make_unique<Adapter>(AdapterSpec{R, 0.5, 0.0}, ParameterInfo{}, 0, kHeld, I, 1, parameters);
    const Adapter& a = *adapter;
    a.b().master().copy_(random_normal({kHeld, R}, 4));
    a.b().refresh_working();
    w.use();
    const at::Tensor bias = leaf(random_normal({kHeld}, 5));
    const Linear linear(std::move(w.weight), std::move(adapter), bias, {kFirst, O});
    const at::Tensor x = leaf(random_normal({rows, I}, 2)), d_y = random_normal({rows, O}, 3);
    const at::Tensor y = linear.forward(x, at::Tensor(), StepRandom{});
    const at::Tensor low = x.matmul(a.a().working.t());
    const at::Tensor expected =
        x.matmul(w.values.t()) + bias.narrow(0, kFirst, O) + 0.5 * low.matmul(a.b().working.narrow(0, kFirst, O).t());
    CHECK(y.sizes() == expected.sizes());
    if (rows > 0) CHECK(distance(y, expected) < 1e-14);
    const std::vector<at::Tensor> inputs{x, a.a().working, a.b().working, bias};
    const auto wanted = torch::autograd::grad({expected}, inputs, {d_y});
    const auto close = [&](const at::Tensor& got, size_t i) {
      return got.sizes() == wanted[i].sizes() && (got - wanted[i]).norm().item<double>() < 1e-12;
    };
    const auto got = torch::autograd::grad({y}, inputs, {d_y}, /*retain_graph=*/true);
    for (size_t i = 0; i < inputs.size(); ++i) {
      CHECK(close(got[i], i));
      // Alone: nothing that it needs was left out.
      CHECK(close(torch::autograd::grad({y}, {inputs[i]}, {d_y}, /*retain_graph=*/true)[0], i));
    }
  }
}
