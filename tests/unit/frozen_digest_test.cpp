// The digest of frozen weights: every byte counts, and where a tensor is cut does not.
#include "tests/support/catch.h"

#include "parallel/launch.h"
#include "tests/support/tiny_model.h"
#include "trainer/frozen_digest.h"

using namespace moetune;

TEST_CASE("any flipped bit of any byte changes the digest, and so does the name", "[frozen_digest]") {
  for (const int64_t bytes : {1, 7, 8, 9, 29}) {
    const at::Tensor tensor = at::arange(1, bytes + 1, at::kByte);
    const uint64_t digest = tensor_digest("a", tensor, 0);
    CHECK(tensor_digest("a", tensor.clone(), 0) == digest);
    CHECK(tensor_digest("b", tensor, 0) != digest);
    for (int64_t i = 0; i < bytes; ++i) {
      for (int bit = 0; bit < 8; ++bit) {
        at::Tensor changed = tensor.clone();
        changed[i].bitwise_xor_(1 << bit);
        CHECK(tensor_digest("a", changed, 0) != digest);
      }
    }
  }
  // Words that change places change the digest too.
  const at::Tensor words = at::arange(64, at::kByte);
  CHECK(tensor_digest("a", at::cat({words.slice(0, 8, 16), words.slice(0, 0, 8), words.slice(0, 16)}), 0) != tensor_digest("a", words, 0));
}

TEST_CASE("parts of a tensor add up to the whole, wherever it is cut", "[frozen_digest]") {
  const at::Tensor whole = random_normal({50}, 1, at::kFloat);
  const uint64_t digest = tensor_digest("a", whole, 0);
  for (const int64_t cut : {2, 4, 25, 49}) {
    INFO("cut after " << cut << " numbers of four bytes");
    CHECK(tensor_digest("a", whole.slice(0, 0, cut), 0) + tensor_digest("a", whole.slice(0, cut), cut * 4) == digest);
  }
}

TEST_CASE("the model's digest sees each frozen tensor and no trained one", "[frozen_digest]") {
  Launch launch;
  Mesh mesh(launch, {1, 1, 1, 1});
  for (const BaseFormat base : {BaseFormat::kNf4, BaseFormat::kNf4Double, BaseFormat::kBf16, BaseFormat::kFp32}) {
    TinyModel tiny(tiny_config(2), {.base = base, .compute = at::kFloat});
    const std::string digest = frozen_digest(*tiny.model, mesh);
    CHECK(digest.size() == 16);
    tiny.model->parameters.all()[0].master().add_(1);
    tiny.model->parameters.all()[0].refresh_working();
    CHECK(frozen_digest(*tiny.model, mesh) == digest);
    std::vector<at::Tensor> tensors;
    for (const auto& [name, weight] : tiny.model->frozen) {
      for (const at::Tensor& packed : weight->packed()) tensors.push_back(packed);
    }
    for (const auto& [name, tensor] : tiny.model->plain) tensors.push_back(tensor);
    for (const at::Tensor& tensor : tensors) {
      at::Tensor last = tensor.view(-1).view(at::kByte).slice(0, -1);
      last.bitwise_xor_(1);
      CHECK(frozen_digest(*tiny.model, mesh) != digest);
      last.bitwise_xor_(1);
    }
    CHECK(frozen_digest(*tiny.model, mesh) == digest);
  }
  TinyModel trained(tiny_config(2), {.train_weights = true});
  CHECK(trained.model->frozen.empty());
}
