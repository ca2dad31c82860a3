// AdamW against its formula in plain doubles.
#include "tests/support/catch.h"

#include <cmath>

#include <ATen/Parallel.h>

#include "parallel/base/error.h"
#include "parallel/comm/launch.h"
#include "tests/support/message_of.h"
#include "tests/support/numbers.h"
#include "trainer/update/optimizer.h"

using namespace moetune;

TEST_CASE("AdamW follows its formula, LoRA+ ratio, decay and clipping included", "[optimizer]") {
  ParameterSet parameters(at::kCPU, at::kDouble);
  ParameterInfo a_info, b_info;
  a_info.role = Role::kAdapterA;
  b_info.role = Role::kAdapterB;
  // B first: it stands last in its shard all the same.
  parameters.add(b_info, random_normal({5}, 2));
  parameters.add(a_info, random_normal({5}, 1));
  Launch launch;
  Mesh mesh(launch, {1, 1, 1, 1});
  Partition partition(parameters, mesh);
  const bool overlap = GENERATE(true, false);
  const SlabTier tier = GENERATE(SlabTier::kHost, SlabTier::kDevice);
  OptimizerOptions options{4.0, {0.8, 0.95}, 1e-3, 0.1, overlap, tier, tier};

  std::vector<std::vector<double>> p, m(2, std::vector<double>(5, 0.0)), v = m;
  for (const int i : {1, 0}) {
    at::Tensor& master = parameters.all()[i].master();
    p.emplace_back(master.data_ptr<double>(), master.data_ptr<double>() + 5);
  }
  Optimizer optimizer(partition, options);
  for (int step = 1; step <= 4; ++step) {
    const double lr = 0.02 * step, factor = step == 2 ? 0.5 : 1.0;
    at::Tensor gradients = at::empty({10}, at::kDouble);
    for (size_t i = 0; i < 2; ++i) {
      // A zero gradient moves moments and weights all the same.
      const at::Tensor gradient = step == 3 ? at::zeros({5}, at::kDouble) : random_normal({5}, 10 * step + i);
      gradients.narrow(0, 5 * i, 5).copy_(gradient);
      const double own_lr = i == 1 ? lr * 4.0 : lr;
      for (int64_t j = 0; j < 5; ++j) {
        const double g = factor * gradient[j].item<double>();
        m[i][j] = 0.8 * m[i][j] + 0.2 * g;
        v[i][j] = 0.95 * v[i][j] + 0.05 * g * g;
        const double m_hat = m[i][j] / (1 - std::pow(0.8, step)), v_hat = v[i][j] / (1 - std::pow(0.95, step));
        p[i][j] = p[i][j] * (1 - own_lr * 0.1) - own_lr * m_hat / (std::sqrt(v_hat) + 1e-3);
      }
    }
    optimizer.step(lr, factor, {gradients});
    CHECK(optimizer.steps_taken() == step);
    if (overlap) optimizer.before_layer(LayerId::block(0));
    const Optimizer::Shard& shard = optimizer.shards()[0];
    for (int64_t i = 0; i < 2; ++i) {
      INFO("step " << step << ", parameter " << i);
      CHECK(distance(shard.master.narrow(0, 5 * i, 5), at::tensor(p[i], at::kDouble)) < 1e-12);
      CHECK(distance(shard.first_moment.narrow(0, 5 * i, 5), at::tensor(m[i], at::kDouble)) < 1e-12);
      CHECK(distance(shard.second_moment.narrow(0, 5 * i, 5), at::tensor(v[i], at::kDouble)) < 1e-12);
      CHECK(at::equal(parameters.all()[1 - i].working, shard.master.narrow(0, 5 * i, 5)));
    }
  }
  CHECK(optimizer.take_exposed_s() > 0.0);
  CHECK(optimizer.take_exposed_s() == 0.0);
  CHECK(Optimizer::state_bytes(10, at::kBFloat16) == 120);
  CHECK(Optimizer::state_bytes(10, at::kDouble) == 240);
  CHECK(Optimizer::working_bytes(10, at::kBFloat16) == 20);
  CHECK(Optimizer::working_bytes(10, at::kFloat) == 0);
}

TEST_CASE("the number of threads does not show in AdamW's results", "[optimizer]") {
  // Lengths that no vector and no cache line divides, beyond what one thread takes.
  const int threads = at::get_num_threads();
  std::vector<std::vector<at::Tensor>> results;
  for (const int count : {1, 3, 4}) {
    at::set_num_threads(count);
    std::vector<at::Tensor> p{random_normal({100'003}, 1, at::kFloat)}, g{random_normal({100'003}, 2, at::kFloat)},
        m{random_normal({100'003}, 3, at::kFloat)}, v{random_normal({100'003}, 4, at::kFloat).square()};
    at::_fused_adamw_(p, g, m, v, {}, {at::full({}, 3.0, at::kFloat)}, 1e-3, 0.9, 0.999, 0.01, 1e-8, false, false);
    results.push_back({p[0], m[0], v[0]});
  }
  at::set_num_threads(threads);
  for (size_t i = 1; i < results.size(); ++i) {
    for (size_t j = 0; j < 3; ++j) CHECK(at::equal(results[i][j], results[0][j]));
  }
}

TEST_CASE("layers that are not waited for stop the next step", "[optimizer]") {
  ParameterSet parameters(at::kCPU, at::kFloat);
  parameters.add({}, at::zeros({3}));
  Launch launch;
  Mesh mesh(launch, {1, 1, 1, 1});
  Partition partition(parameters, mesh);
  Optimizer optimizer(partition, {});
  optimizer.step(0.1, 1.0, {at::ones({3})});
  CHECK(contains(message_of<InternalError>([&] { optimizer.step(0.1, 1.0, {at::ones({3})}); }),
                 "step 2: the working copies of layer 0 still wait"));
}
