// AdamW against its formula in plain doubles.
#include "tests/support/catch.h"

#include <cmath>

#include "tests/support/numbers.h"
#include "trainer/optimizer.h"

using namespace moetune;

TEST_CASE("AdamW follows its formula, LoRA+ ratio, decay and clipping included", "[optimizer]") {
  ParameterSet parameters(at::kCPU, at::kDouble);
  ParameterInfo a_info, b_info;
  a_info.role = Role::kAdapterA;
  b_info.role = Role::kAdapterB;
  parameters.add(a_info, random_normal({5}, 1));
  parameters.add(b_info, random_normal({5}, 2));
  OptimizerOptions options{4.0, {0.8, 0.95}, 1e-3, 0.1};
  Optimizer optimizer(parameters, options);

  std::vector<std::vector<double>> p, m(2, std::vector<double>(5, 0.0)), v = m;
  for (Parameter& parameter : parameters.all()) p.emplace_back(parameter.master().data_ptr<double>(), parameter.master().data_ptr<double>() + 5);
  for (int step = 1; step <= 4; ++step) {
    const double lr = 0.02 * step, factor = step == 2 ? 0.5 : 1.0;
    for (size_t i = 0; i < 2; ++i) {
      // In step 3 nothing is added: a zero gradient moves moments and weights all the same.
      const at::Tensor gradient = step == 3 ? at::zeros({5}, at::kDouble) : random_normal({5}, 10 * step + i);
      if (step != 3) parameters.all()[i].add_gradient(gradient);
      const double own_lr = i == 1 ? lr * 4.0 : lr;
      for (int64_t j = 0; j < 5; ++j) {
        const double g = factor * gradient[j].item<double>();
        m[i][j] = 0.8 * m[i][j] + 0.2 * g;
        v[i][j] = 0.95 * v[i][j] + 0.05 * g * g;
        const double m_hat = m[i][j] / (1 - std::pow(0.8, step)), v_hat = v[i][j] / (1 - std::pow(0.95, step));
        p[i][j] = p[i][j] * (1 - own_lr * 0.1) - own_lr * m_hat / (std::sqrt(v_hat) + 1e-3);
      }
    }
    optimizer.step(lr, factor);
    CHECK(optimizer.steps_taken() == step);
    for (size_t i = 0; i < 2; ++i) {
      INFO("step " << step << ", parameter " << i);
      CHECK(distance(parameters.all()[i].master(), at::tensor(p[i], at::kDouble)) < 1e-12);
      CHECK(distance(optimizer.moments()[i].first, at::tensor(m[i], at::kDouble)) < 1e-12);
      CHECK(distance(optimizer.moments()[i].second, at::tensor(v[i], at::kDouble)) < 1e-12);
      CHECK(at::equal(parameters.all()[i].working, parameters.all()[i].master()));
      CHECK(parameters.all()[i].gradient().count_nonzero().item<int64_t>() == 0);
    }
  }
  CHECK(Optimizer::host_bytes(10, at::kBFloat16) == 120);
  CHECK(Optimizer::host_bytes(10, at::kDouble) == 240);
}
