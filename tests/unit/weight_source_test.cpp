// Weights from files and from the seed.
#include "tests/support/catch.h"

#include "moe/weight_source.h"
#include "parallel/base/error.h"
#include "parallel/bytes/tensor_io.h"
#include "tests/support/message_of.h"
#include "tests/support/numbers.h"
#include "tests/support/temporary_folder.h"

using namespace moetune;

TEST_CASE("tensors are read as stored, FP8 blocks as bf16", "[weight_source]") {
  const TemporaryFolder folder;
  const at::Tensor fp8 = random_normal({130, 4}, 1, at::kFloat).to(at::kFloat8_e4m3fn),
                   scale = at::tensor({2.0, 0.5}).to(at::kFloat).view({2, 1});
  write_tensors(folder / "model.safetensors",
                {{"a", random_normal({3, 4}, 2, at::kBFloat16)},
                 {"w", fp8},
                 {"w_scale_inv", scale},
                 {"v", fp8},
                 {"ids", long_tensor({1})}},
                {});
  auto source = open_pretrained(folder.path());
  CHECK(source->has("a"));
  CHECK(!source->has("b"));
  CHECK(at::equal(source->read("a", {3, 4}), random_normal({3, 4}, 2, at::kBFloat16)));
  CHECK(source->bytes_read() == 24);
  const at::Tensor expected = fp8.to(at::kFloat) * at::cat({at::full({128, 1}, 2.0), at::full({2, 1}, 0.5)});
  CHECK(at::equal(source->read("w", {130, 4}), expected.to(at::kBFloat16)));
  CHECK(contains(message_of<UserError>([&] { source->read("a", {4, 3}); }),
                 "a has shape [3, 4]; config.json asks for [4, 3]"));
  CHECK(contains(message_of<UserError>([&] { source->read("v", {130, 4}); }), "v is FP8 but there is no v_scale_inv"));
  CHECK(contains(message_of<UserError>([&] { source->read("ids", {1}); }), "ids is of dtype Long"));
  CHECK(contains(message_of<UserError>([&] { source->read("b", {1}); }), "b"));
}

TEST_CASE("random weights have the config's deviation and depend on seed and name alone", "[weight_source]") {
  ModelConfig config;
  config.initializer_range = 0.05;
  auto source = make_random_weights(config, 17, at::kCPU);
  const at::Tensor w = source->read("model.layers.0.mlp.gate.weight", {300, 200}).to(at::kDouble);
  CHECK(w.std().item<double>() == Approx(0.05).epsilon(0.02));
  CHECK(std::abs(w.mean().item<double>()) < 5 * 0.05 / std::sqrt(60000.0));
  CHECK(w.abs().max().item<double>() <= 0.05 * std::sqrt(3.0) * 1.01);
  CHECK(at::equal(
      make_random_weights(config, 17, at::kCPU)->read("model.layers.0.mlp.gate.weight", {300, 200}).to(at::kDouble),
      w));
  CHECK(!at::equal(
      make_random_weights(config, 18, at::kCPU)->read("model.layers.0.mlp.gate.weight", {300, 200}).to(at::kDouble),
      w));
  CHECK(!at::equal(source->read("lm_head.weight", {300, 200}).to(at::kDouble), w));
  CHECK(at::equal(source->read("model.norm.weight", {5}), at::ones({5})));
  CHECK(at::equal(source->read("model.layers.3.mlp.gate.e_score_correction_bias", {5}), at::zeros({5})));
  CHECK(source->has("model.embed_tokens.weight"));
  CHECK(source->has("lm_head.weight"));
  CHECK(!source->has("model.layers.61.embed_tokens.weight"));
  CHECK(!source->has("model.layers.61.shared_head.head.weight"));
  CHECK(source->has("model.layers.61.eh_proj.weight"));
}
