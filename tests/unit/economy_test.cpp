// What a sweep costs does not depend on tokens or slices: work on frozen weights and kept inputs follow their formulas.
#include "tests/support/catch.h"

#include "tests/support/tiny_model.h"
#include "trainer/sweep.h"

using namespace moetune;

namespace {

/// Numbers of the linear maps of the model, from its sizes.
int64_t linear_numbers(const ModelConfig& c) {
  const int64_t attention = *c.q_lora * c.width + c.heads * (c.nope_dim + c.rope_dim) * *c.q_lora + (c.kv_lora + c.rope_dim) * c.width +
                            c.heads * (c.nope_dim + c.value_dim) * c.kv_lora + c.width * c.heads * c.value_dim;
  const int64_t dense = 3 * c.width * c.dense_width, moe = (c.experts + c.shared_experts) * 3 * c.width * c.expert_width;
  return c.num_layers * attention + c.num_dense_layers * dense + (c.num_layers - c.num_dense_layers) * moe;
}

}  // namespace

TEST_CASE("a step makes every frozen number dense twice and keeps one input a layer", "[economy]") {
  const std::vector<std::vector<int64_t>> batches{{5}, {5, 9, 2, 30}, {17, 17}};
  for (const int64_t layers : {8, 32}) {
    TinyModel tiny(tiny_config(layers), {.base = BaseFormat::kNf4, .compute = at::kFloat});
    for (const auto& lengths : batches) {
      for (const int64_t slice_tokens : {1, 1000}) {
        INFO(layers << " layers, " << lengths.size() << " documents, slices of " << slice_tokens);
        Sweep sweep(*tiny.model, {});
        const StepBatch batch = tiny.batch(lengths, slice_tokens);
        sweep.train(batch, {17, 0, true}, [](int64_t) {});
        CHECK(sweep.dequantised().elements == 2 * linear_numbers(tiny.model->config));
        CHECK(sweep.kept_input_bytes() == layers * batch.global.tokens * tiny.model->config.width * 4);
        sweep.evaluate(batch);
        CHECK(sweep.dequantised().elements == 3 * linear_numbers(tiny.model->config));
      }
    }
  }
}

TEST_CASE("nothing reads a released weight", "[economy]") {
  TinyModel tiny(tiny_config(8), {.base = BaseFormat::kNf4, .compute = at::kFloat});
  const StepBatch batch = tiny.batch({5, 9, 2}, 8);
  std::vector<std::vector<at::Tensor>> gradients;
  std::vector<at::Tensor> losses;
  for (const bool poison : {false, true}) {
    SweepOptions options;
    options.poison_released = poison;
    options.keep_layers = 3;
    Sweep sweep(*tiny.model, options);
    losses.push_back(sweep.train(batch, {17, 0, true}, [](int64_t) {}).loss_sum);
    gradients.emplace_back();
    for (Parameter& parameter : tiny.model->parameters.all()) {
      gradients.back().push_back(parameter.gradient().clone());
      parameter.clear_gradient();
    }
  }
  CHECK(at::equal(losses[0], losses[1]));
  REQUIRE(!gradients[0].empty());
  for (size_t i = 0; i < gradients[0].size(); ++i) {
    INFO(tiny.model->parameters.all()[i].name());
    CHECK(at::equal(gradients[0][i], gradients[1][i]));
    CHECK(gradients[0][i].count_nonzero().item<int64_t>() > 0);
  }
}

TEST_CASE("up stops below the lowest thing that trains", "[economy]") {
  TinyModel tiny(tiny_config(4), {.base = BaseFormat::kNf4, .compute = at::kFloat, .targets = {"experts.gate_proj"}});
  Sweep sweep(*tiny.model, {});
  std::vector<int64_t> done;
  sweep.train(tiny.batch({5, 9}, 8), {17, 0, true}, [&](int64_t layer) { done.push_back(layer); });
  CHECK(done == std::vector<int64_t>{5, 3, 2, 1});  // the turn, then layers; layer 0 is dense
}
