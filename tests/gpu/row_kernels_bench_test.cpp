// Time and bandwidth of what a block does beside large matrix products, at DeepSeek-V3's shapes, beside the plain
// operations. Hidden: gpu_tests "[.bench]" runs it.
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>

#include "lora/linear.h"
#include "moe/cross_entropy.h"
#include "moe/rms_norm.h"
#include "moe/router.h"
#include "moe/swiglu.h"
#include "moe/wide_product.h"
#include "parallel/base/error.h"
#include "tests/support/catch.h"
#include "tests/support/gpu_numbers.h"

using namespace moetune;

namespace {

const at::TensorOptions kBf16 = at::device(at::kCUDA).dtype(at::kBFloat16);

/// Median over the repetitions of the time of one call, after some to warm up.
double seconds_of(const std::function<void()>& call) {
  constexpr int kCalls = 5;
  std::vector<double> seconds;
  for (int i = 0; i < 11; ++i) {
    c10::cuda::device_synchronize();
    const auto start = std::chrono::steady_clock::now();
    for (int j = 0; j < kCalls; ++j) call();
    c10::cuda::device_synchronize();
    seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() / kCalls);
  }
  std::nth_element(seconds.begin(), seconds.begin() + 5, seconds.end());
  return seconds[5];
}

/// `bytes`: the fewest that the operation can move.
void report(const std::string& name, double bytes, const std::function<void()>& call,
            const std::function<void()>& plain = nullptr) {
  const double seconds = seconds_of(call);
  std::printf("%-52s %8.3f ms %6.2f TB/s", name.c_str(), seconds * 1e3, bytes / seconds / 1e12);
  if (plain) std::printf("   plain %8.3f ms", seconds_of(plain) * 1e3);
  std::printf("\n");
  std::fflush(stdout);
}

at::Tensor random(at::IntArrayRef shape) { return at::randn(shape, kBf16); }

/// The gradients alone of a graph made once.
std::function<void()> backward_of(const std::vector<at::Tensor>& outputs, const std::vector<at::Tensor>& inputs) {
  std::vector<at::Tensor> d;
  for (const at::Tensor& output : outputs) d.push_back(at::randn_like(output).detach());
  return [=] { torch::autograd::grad(outputs, inputs, d, /*retain_graph=*/true); };
}

at::Tensor plain_norm(const at::Tensor& x, const at::Tensor& weight) {
  const at::Tensor wide = x.to(at::kFloat);
  return (wide * wide.square().mean(-1, true).add(1e-6).rsqrt()).to(x.scalar_type()) * weight;
}

constexpr int64_t T = 16384, D = 7168;

}  // namespace

TEST_CASE("row kernels", "[.bench]") {
  const at::NoGradGuard no_grad;
  for (const auto& [rows, width, stride] : std::vector<std::array<int64_t, 3>>{
           {T, D, D}, {4096, D, D}, {T, 1536, 1536}, {T, 512, 576}, {T * 16, 128, 128}}) {
    const at::Tensor x = random({rows, stride}).narrow(1, 0, width), weight = random({width});
    const double bytes = 2.0 * static_cast<double>(rows * width);
    const std::string shape = str(" [", rows, ", ", width, "] of ", stride);
    report("norm" + shape, 2 * bytes, [&] { rms_norm(x, weight, 1e-6); }, [&] { plain_norm(x, weight); });
    const at::AutoGradMode grad(true);
    const at::Tensor leaf_x = x.detach().requires_grad_(), leaf_w = weight.detach().requires_grad_();
    const at::Tensor y = rms_norm(leaf_x, leaf_w, 1e-6);
    report("norm backward" + shape, 3 * bytes, backward_of({y}, {leaf_x}),
           backward_of({plain_norm(leaf_x, leaf_w)}, {leaf_x}));
    report("norm d weight" + shape, 2 * bytes, backward_of({y}, {leaf_w}));
  }
  for (const int64_t rows : {T, int64_t{4096}}) {
    const at::Tensor x = random({rows, D}), added = random({rows, D}), weight = random({D});
    const double bytes = 2.0 * static_cast<double>(rows * D);
    const std::string shape = str(" [", rows, ", ", D, "]");
    report(
        "add and norm" + shape, 4 * bytes, [&] { add_rms_norm(x, added, weight, 1e-6); },
        [&] { plain_norm(x + added, weight); });
    const at::AutoGradMode grad(true);
    const at::Tensor leaf_x = x.detach().requires_grad_();
    const NormedSum y = add_rms_norm(leaf_x, added, weight, 1e-6);
    report("add and norm backward" + shape, 4 * bytes, backward_of({y.sum, y.normed}, {leaf_x}));
  }
  for (const int64_t width : {2048, 18432}) {
    const at::Tensor gate = random({T, width}), up = random({T, width});
    const double bytes = 2.0 * static_cast<double>(T * width);
    const std::string shape = str(" [", T, ", ", width, "]");
    report("swiglu" + shape, 3 * bytes, [&] { swiglu(gate, up); }, [&] { at::silu(gate) * up; });
    const at::AutoGradMode grad(true);
    const at::Tensor g = gate.detach().requires_grad_(), u = up.detach().requires_grad_();
    report("swiglu backward" + shape, 5 * bytes, backward_of({swiglu(g, u)}, {g, u}),
           backward_of({at::silu(g) * u}, {g, u}));
  }
}

TEST_CASE("router", "[.bench]") {
  constexpr int64_t E = 256, K = 8;
  RouterSpec spec;
  spec.experts = E;
  spec.top_k = K;
  spec.choice = RouterSpec::Choice::kGroupsByBestTwo;
  spec.num_groups = 8;
  spec.top_groups = 4;
  spec.correction_bias = true;
  const at::Tensor x = random({T, D}).requires_grad_();
  for (const auto dtype : {at::kBFloat16, at::kFloat}) {
    const at::Tensor w = (random({E, D}) * 0.02).to(dtype);
    const std::string name = std::string(" weight ") + at::toString(dtype);
    const double bytes = 2.0 * static_cast<double>(T * D) + 4.0 * static_cast<double>(T * E);
    const auto plain = [&] { return at::linear(x.to(at::kFloat), w.to(at::kFloat)); };
    report("logits" + name, bytes, [&] { wide_linear(x, w); }, plain);
    report("logits backward" + name, bytes, backward_of({wide_linear(x, w)}, {x}), backward_of({plain()}, {x}));
  }
  const at::NoGradGuard no_grad;
  const Router router(spec, {random({E, D}) * 0.02, at::randn({E}, kBf16.dtype(at::kFloat)) * 0.1, {}, nullptr});
  const at::Tensor score = router.scores(x), expert = router.choose(score);
  report("choose", 4.0 * static_cast<double>(T * E), [&] { router.choose(score); });
  report("weights", 4.0 * static_cast<double>(T * E), [&] { router.weights(score, expert); });
}

TEST_CASE("adapted maps", "[.bench]") {
  constexpr int64_t R = 16;
  for (const auto& [inputs, outputs] :
       std::vector<std::array<int64_t, 2>>{{D, 1536}, {1536, 24576}, {16384, D}, {D, 18432}}) {
    ParameterSet parameters(at::kCUDA, at::kBFloat16);
    ParameterInfo info;
    info.name = "map";
    auto adapter = std::make_unique<Adapter>(AdapterSpec{R, 2.0, 0.0}, info, 0, outputs, inputs, 1, parameters);
    adapter->b().working.detach().normal_();
    const at::Tensor a = adapter->a().working, b = adapter->b().working, x = random({T, inputs}).requires_grad_();
    Scratch scratch(at::kCUDA, at::kBFloat16);
    DequantCounters counters;
    auto frozen =
        std::make_unique<FrozenWeight>(FrozenShape{BaseFormat::kBf16, 1, outputs, inputs}, at::kCUDA, at::kBFloat16);
    frozen->set(0, random({outputs, inputs}) * 0.02);
    frozen->use(scratch, counters);
    const at::Tensor w = frozen->dense();
    const Linear linear(std::move(frozen), std::move(adapter));
    const auto forward = [&] { return linear.forward(x, {}, {}); };
    const auto plain = [&] { return at::add(at::linear(x, w), at::linear(at::linear(x, a), b), 2.0); };
    const double bytes = 2.0 * static_cast<double>(T * (inputs + outputs) + inputs * outputs);
    const std::string shape = str(" ", inputs, " to ", outputs);
    report("product alone" + shape, bytes, [&] { at::linear(x.detach(), w); });
    report("adapted map" + shape, bytes, forward, plain);
    report("adapted map backward" + shape, bytes, backward_of({forward()}, {x, a, b}),
           backward_of({plain()}, {x, a, b}));
  }
}

TEST_CASE("cross-entropy", "[.bench]") {
  constexpr int64_t C = 4096, V = 129280;
  const at::NoGradGuard no_grad;
  const at::Tensor logits = random({C, V}), target = at::zeros({C, 1}, kBf16.dtype(at::kLong)),
                   own = at::ones({C, 1}, kBf16.dtype(at::kBool));
  const double bytes = 2.0 * static_cast<double>(C * V);
  const at::Tensor log_sum = log_sum_exp(logits);
  report(
      "log sum exp [4096, 129280]", bytes, [&] { log_sum_exp(logits); },
      [&] { logits.to(at::kFloat).logsumexp(-1, true); });
  // Over its own results again and again: the values do not matter for the time.
  report(
      "gradient [4096, 129280]", 2 * bytes, [&] { cross_entropy_gradient(logits, log_sum, {target, own}, 1e-4, {}); },
      [&] { logits.to(at::kFloat).sub_(log_sum).exp_().mul_(1e-4).to(at::kBFloat16); });
}
