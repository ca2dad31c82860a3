// What a sweep costs does not depend on tokens or slices: work on frozen weights and kept inputs follow their formulas.
#include "tests/support/catch.h"

#include "tests/support/tiny_model.h"
#include "trainer/sweep/sweep.h"

using namespace moetune;

namespace {

/// Numbers of the linear maps of the model, from its sizes.
int64_t linear_numbers(const Blueprint& model) {
  const AttentionSpec& a = model.attention();
  const int64_t D = model.width, H = a.heads, L = model.num_layers(), num_dense = model.num_dense_layers();
  const int64_t attention = *a.q_lora * D + H * (a.nope_dim + a.rotary_dim) * *a.q_lora +
                            (a.kv_lora + a.rotary_dim) * D + H * (a.nope_dim + a.value_dim) * a.kv_lora +
                            D * H * a.value_dim;
  const int64_t dense = 3 * D * model.layers[0].dense_width;
  const int64_t moe = 3 * D * (model.router.experts * model.experts.width + model.experts.shared_width);
  return L * attention + num_dense * dense + (L - num_dense) * moe;
}

}  // namespace

TEST_CASE("a step makes every frozen number dense twice and keeps one input a layer", "[economy]") {
  const std::vector<std::vector<int64_t>> batches{{5}, {5, 9, 2, 30}, {17, 17}};
  for (const int64_t layers : {8, 32}) {
    TinyModel tiny(tiny_blueprint(layers), {.base = BaseFormat::kNf4, .compute = at::kFloat});
    for (const auto& lengths : batches) {
      for (const int64_t slice_tokens : {1, 1000}) {
        INFO(layers << " layers, " << lengths.size() << " documents, slices of " << slice_tokens);
        Sweep sweep(*tiny.model, {});
        const StepBatch batch = tiny.batch(lengths, slice_tokens);
        const SweepResult result = sweep.train(batch, {17, 0, true});
        CHECK(sweep.dequantised().elements == 2 * linear_numbers(tiny.model->blueprint));
        CHECK(result.kept_input_bytes == layers * batch.global.tokens * tiny.model->blueprint.width * 4);
        sweep.evaluate(batch);
        CHECK(sweep.dequantised().elements == 3 * linear_numbers(tiny.model->blueprint));
      }
    }
  }
}

TEST_CASE("the MTP module costs one more layer and shares embedding and head", "[economy]") {
  TinyModel without(tiny_blueprint(4), {.base = BaseFormat::kNf4, .compute = at::kFloat});
  TinyModel tiny(tiny_blueprint(4), {.base = BaseFormat::kNf4, .compute = at::kFloat, .with_mtp = true});
  CHECK(tiny.model->mtp->parts().embedding.weight().is_same(tiny.model->embedding.weight()));
  CHECK(tiny.model->plain.size() == without.model->plain.size() + 8);  // six norms, the module's head norm, its router
  SweepOptions options;
  options.mtp_weight = 0.3;
  options.poison_released = true;
  Sweep sweep(*tiny.model, options);
  const StepBatch batch = tiny.batch({5, 9, 2, 1}, 8);
  CHECK(batch.mtp.num_rows == 4 + 8 + 1);
  const SweepResult result = sweep.train(batch, {17, 0, true});
  CHECK(result.mtp_loss_sum.item<double>() > 0);
  Blueprint one_more = tiny_blueprint(5);
  const int64_t width = one_more.width;
  CHECK(sweep.dequantised().elements == 2 * (linear_numbers(one_more) + 2 * width * width));
  CHECK(result.kept_input_bytes == (4 * 17 + 13) * width * 4);
  CHECK(result.load_LE.sum(1).eq(long_tensor({34, 34, 34, 26})).all().item<bool>());  // two experts a row
}

TEST_CASE("a rank without documents walks the same way and adds nothing", "[economy]") {
  TinyModel tiny(tiny_blueprint(3), {.base = BaseFormat::kNf4, .compute = at::kFloat, .with_mtp = true});
  RankBatch nothing;
  nothing.document_begins = {0};
  nothing.global.documents = 3;
  nothing.global.targets = 9;
  nothing.global.mtp_targets = 6;
  const StepBatch batch = make_step_batch(nothing, *tiny.model, 8, at::kCPU, at::kFloat);
  for (const KeptBlocks& kept : {KeptBlocks{}, KeptBlocks{4, 0, 0}, KeptBlocks{4, 4, 0}, KeptBlocks::whole(4)}) {
    SweepOptions options;
    options.mtp_weight = 0.3;
    options.balance = {BalanceKind::kSequence, 0.1};
    options.kept = kept;
    std::vector<LayerId> done;
    Sweep sweep(*tiny.model, options, {.done = [&](LayerId layer) { done.push_back(layer); }});
    const SweepResult result = sweep.train(batch, {17, 0, true});
    CHECK(done == std::vector<LayerId>{LayerId::mtp(3), LayerId::turn(3), LayerId::block(2), LayerId::block(1),
                                       LayerId::block(0)});
    CHECK(result.loss_sum.item<double>() == 0.0);
    CHECK(result.mtp_loss_sum.item<double>() == 0.0);
    CHECK(result.balance_loss.item<double>() == 0.0);
    CHECK(result.load_LE.sum().item<int64_t>() == 0);
    for (Parameter& parameter : tiny.model->parameters.all()) {
      CHECK(parameter.gradient().eq(0).all().item<bool>());
      parameter.clear_gradient();
    }
    CHECK(sweep.evaluate(batch).loss_sum.item<double>() == 0.0);
  }
}

TEST_CASE("nothing reads a released weight", "[economy]") {
  TinyModel tiny(tiny_blueprint(8), {.base = BaseFormat::kNf4, .compute = at::kFloat});
  const StepBatch batch = tiny.batch({5, 9, 2}, 8);
  std::vector<std::vector<at::Tensor>> gradients;
  std::vector<at::Tensor> losses;
  for (const bool poison : {false, true}) {
    SweepOptions options;
    options.poison_released = poison;
    options.kept = {.attention = 5, .experts = 4, .all = 3};
    Sweep sweep(*tiny.model, options);
    losses.push_back(sweep.train(batch, {17, 0, true}).loss_sum);
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

TEST_CASE("what blocks keep changes no bit of a step", "[economy]") {
  for (const double dropout : {0.0, 0.2}) {
    TinyModel tiny(tiny_blueprint(4), {.dropout = dropout, .with_mtp = true});
    const StepBatch batch = tiny.batch({5, 9, 2, 11}, 16);  // in two slices
    std::vector<at::Tensor> expected;
    for (const KeptBlocks& kept : {KeptBlocks{}, {5, 0, 0}, {5, 5, 0}, {4, 3, 1}, KeptBlocks::whole(5)}) {
      SweepOptions sweeps;
      sweeps.stash_inputs = kept.steps() > 0;
      sweeps.mtp_weight = 0.3;
      sweeps.balance = {BalanceKind::kSequence, 0.1};
      sweeps.poison_released = true;
      sweeps.kept = kept;
      Sweep sweep(*tiny.model, sweeps);
      const SweepResult result = sweep.train(batch, {17, 0, true});
      std::vector<at::Tensor> found{result.loss_sum, result.mtp_loss_sum, result.balance_loss};
      for (Parameter& parameter : tiny.model->parameters.all()) {
        found.push_back(parameter.gradient().clone());
        parameter.clear_gradient();
      }
      if (expected.empty()) expected = found;
      REQUIRE(found.size() == expected.size());
      for (size_t i = 0; i < found.size(); ++i) {
        INFO(to_string(kept) << ", " << i);
        CHECK(at::equal(found[i], expected[i]));
        CHECK(found[i].count_nonzero().item<int64_t>() > 0);
      }
    }
  }
}

TEST_CASE("up stops below the lowest thing that trains", "[economy]") {
  TinyModel tiny(tiny_blueprint(4),
                 {.base = BaseFormat::kNf4, .compute = at::kFloat, .targets = {"experts.gate_proj"}});
  std::vector<LayerId> done;
  Sweep sweep(*tiny.model, {}, {.done = [&](LayerId layer) { done.push_back(layer); }});
  sweep.train(tiny.batch({5, 9}, 8), {17, 0, true});
  // Layer 0 is dense.
  CHECK(done == std::vector<LayerId>{LayerId::turn(4), LayerId::block(3), LayerId::block(2), LayerId::block(1)});
}

TEST_CASE("a step that fails leaves the sweep fit for the next", "[sweep]") {
  TinyModel tiny(tiny_blueprint(3), {}), fresh(tiny_blueprint(3), {});
  const LayerId fails = LayerId::block(2);
  int failures = 0;
  Sweep sweep(*tiny.model, {}, {.before = [&](LayerId layer) {
    if (layer == fails && failures++ == 0) TORCH_CHECK_WITH(OutOfMemoryError, false, "full");
  }});
  Sweep untroubled(*fresh.model, {});
  const StepBatch batch = tiny.batch({5, 9}, 8);
  CHECK_THROWS_AS(sweep.train(batch, {17, 0, true}), c10::OutOfMemoryError);
  CHECK(at::equal(sweep.train(batch, {17, 0, true}).loss_sum, untroubled.train(batch, {17, 0, true}).loss_sum));
}

TEST_CASE("a pass that only routes counts what a step counts, the MTP module's block last", "[sweep]") {
  const TinyModel tiny(tiny_blueprint(3), {.with_mtp = true});
  SweepOptions options;
  options.mtp_weight = 0.3;
  Sweep sweep(*tiny.model, options);
  const StepBatch batch = tiny.batch({5, 9, 2}, 8);
  const at::Tensor counted = sweep.route(batch).load_LE, of_step = sweep.train(batch, {17, 0, true}).load_LE;
  CHECK(at::equal(counted, of_step));
  CHECK(counted.size(0) == 3);
  CHECK(at::equal(counted.sum(1), at::tensor({2 * 16, 2 * 16, 2 * 13}, at::kLong)));
  const SweepResult held_out = sweep.evaluate(batch);
  CHECK(held_out.loss_n.size(0) == 13);
  CHECK(held_out.loss_n.sum().item<double>() == Approx(held_out.loss_sum.item<double>()));
}
