// Weights from files and from the seed.
#include "tests/support/catch.h"

#include "moe/families/family.h"
#include "moe/weight_source.h"

#include <cmath>
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
  CHECK(contains(message_of<UserError>([&] { source->read("ids", {1}); }), "ids is of dtype I64"));
  CHECK(contains(message_of<UserError>([&] { source->read("b", {1}); }), "b"));
}

TEST_CASE("random weights have the config's deviation and depend on seed and name alone", "[weight_source]") {
  Blueprint config;
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

TEST_CASE("a weight that is no number is refused with its file and name", "[weight_source]") {
  const TemporaryFolder folder;
  for (const auto type : {at::kBFloat16, at::kHalf, at::kFloat, at::kDouble}) {
    for (const double bad : {std::nan(""), HUGE_VAL, -HUGE_VAL}) {
      at::Tensor bias = at::zeros({4}, type);
      bias[3].fill_(bad);
      write_tensors(folder / "model.safetensors", {{"bias", bias}}, {});
      auto source = open_pretrained(folder.path());
      CHECK(contains(message_of<UserError>([&] { source->read("bias", {4}); }),
                     (folder / "model.safetensors") + ": bias holds values that are NaN or infinite"));
    }
  }
}

TEST_CASE("FP8 weights: codes, scales and products are numbers; scales are scales", "[weight_source]") {
  const TemporaryFolder folder;
  const at::Tensor ones = at::ones({2, 2}).to(at::kFloat8_e4m3fn);
  const auto said = [&](const at::Tensor& weight, const at::Tensor& scale) {
    write_tensors(folder / "model.safetensors", {{"w", weight}, {"w_scale_inv", scale}}, {});
    return message_of<UserError>([&] { open_pretrained(folder.path())->read("w", {2, 2}); });
  };
  at::Tensor nan_code = ones.clone();
  nan_code.view(at::kByte)[0][1] = 0xff;
  CHECK(contains(said(nan_code, at::ones({1, 1})), ": w holds values that are NaN"));
  CHECK(contains(said(ones, at::full({1, 1}, std::nan(""))), ": w_scale_inv holds values that are NaN"));
  CHECK(contains(said((ones.to(at::kFloat) * 448).to(at::kFloat8_e4m3fn), at::full({1, 1}, 1e38)),
                 ": w times w_scale_inv holds values that are NaN or infinite"));
  CHECK(contains(said(ones, at::full({1, 1}, 117, at::kInt)), "w_scale_inv is of dtype Int, which is no scale"));
  CHECK(contains(said(ones.to(at::kBFloat16), at::ones({1, 1})), "w is of dtype BF16, but there is w_scale_inv too"));
  CHECK(contains(said(at::ones({2, 2}).to(at::kFloat8_e5m2), at::ones({1, 1})), "w is of dtype F8_E5M2; want"));
  CHECK(contains(said(ones.flatten(), at::ones({1, 1})), "has shape [4]"));
  write_tensors(folder / "model.safetensors", {{"n", ones.flatten()}, {"n_scale_inv", at::ones({1, 1})}}, {});
  CHECK(contains(message_of<UserError>([&] { open_pretrained(folder.path())->read("n", {4}); }),
                 "n is FP8 with 1 dimensions"));
  // 117 are the bits of 2^-10.
  CHECK(said(ones, at::full({1, 1}, 117, at::kByte)) == "(nothing was thrown)");
  CHECK(at::equal(open_pretrained(folder.path())->read("w", {2, 2}), at::full({2, 2}, 1.0 / 1024, at::kBFloat16)));
}

TEST_CASE("a head beside tied embeddings is the embedding, or is refused", "[weight_source]") {
  const TemporaryFolder folder;
  Blueprint config;
  config.vocab = 3;
  config.width = 2;
  config.tied_embeddings = true;
  const at::Tensor embedding = random_normal({3, 2}, 1, at::kBFloat16);
  const auto said = [&](const std::vector<std::pair<std::string, at::Tensor>>& tensors) {
    write_tensors(folder / "model.safetensors", tensors, {});
    return message_of<UserError>([&] { require_tied_head(*open_pretrained(folder.path()), config); });
  };
  const std::pair<std::string, at::Tensor> first{"model.embed_tokens.weight", embedding};
  at::Tensor other = embedding.clone();
  other[2][1].add_(1);
  CHECK(said({first}) == "(nothing was thrown)");
  CHECK(said({first, {"lm_head.weight", embedding}}) == "(nothing was thrown)");
  CHECK(contains(said({first, {"lm_head.weight", other}}), "tie_word_embeddings: true"));
  config.tied_embeddings = false;
  CHECK(said({first, {"lm_head.weight", other}}) == "(nothing was thrown)");
  config.tied_embeddings = true;
  CHECK(!make_random_weights(config, 1, at::kCPU)->has("lm_head.weight"));
}
