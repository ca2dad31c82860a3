#include "trainer/frozen_digest.h"

#include <iomanip>
#include <sstream>

#include "lora/counter_random.h"
#include "parallel/base/error.h"

namespace moetune {
namespace {

constexpr int64_t kWordsAtATime = int64_t{1} << 20;  // temporaries of a few times 8 MiB

// An odd multiplier for each place: a changed word always changes the sum.
at::Tensor multipliers(uint64_t key, int64_t first_word, int64_t count, at::Device device) {
  at::Tensor place = at::arange(first_word, first_word + count, at::TensorOptions(at::kLong).device(device));
  place.mul_(static_cast<int64_t>(0x9e3779b97f4a7c15ull)).add_(static_cast<int64_t>(key));
  return place.bitwise_xor(place.bitwise_right_shift(29)).mul_(static_cast<int64_t>(0xbf58476d1ce4e5b9ull)).bitwise_or_(1);
}

}  // namespace

uint64_t tensor_digest(const std::string& name, const at::Tensor& tensor, int64_t first_byte) {
  const uint64_t key = stream_key(0, name);
  at::Tensor bytes = tensor.contiguous().view({-1}).view(at::kByte);
  // Parts may be cut within a word: each counts its own bytes of it and zeros for the others', and the products add up. Only stacks of
  // odd numbers of statistics are cut so, small beside the codes: a copy does no harm.
  if (first_byte % 8 != 0 || bytes.storage_offset() % 8 != 0) bytes = at::cat({at::zeros({first_byte % 8}, bytes.options()), bytes});
  const int64_t whole_words = bytes.numel() / 8;
  uint64_t digest = 0;
  auto add_words = [&](const at::Tensor& words, int64_t first_word) {
    at::Tensor product = words * multipliers(key, first_word, words.numel(), words.device());
    digest += static_cast<uint64_t>(product.sum().item<int64_t>());
  };
  at::Tensor words = bytes.narrow(0, 0, whole_words * 8).view(at::kLong);
  for (int64_t first = 0; first < whole_words; first += kWordsAtATime) {
    add_words(words.narrow(0, first, std::min(kWordsAtATime, whole_words - first)), first_byte / 8 + first);
  }
  if (bytes.numel() % 8 != 0) {
    at::Tensor tail = at::zeros({8}, bytes.options());
    tail.narrow(0, 0, bytes.numel() % 8).copy_(bytes.narrow(0, whole_words * 8, bytes.numel() % 8));
    add_words(tail.view(at::kLong), first_byte / 8 + whole_words);
  }
  return digest;
}

std::string frozen_digest(Model& model, Mesh& mesh) {
  at::NoGradGuard no_grad;
  if (model.frozen.empty() && model.plain.empty()) return "";
  const MeshCoordinates here = mesh.here();
  uint64_t digest = 0;
  const bool counts_replicated = mesh.data().rank() == 0;
  for (const auto& [name, weight] : model.frozen) {
    const bool stack = name.find('*') != std::string::npos;
    if (stack ? here.dp != 0 : !counts_replicated) continue;
    int64_t part = 0;
    for (const at::Tensor& packed : weight->packed()) {
      // Experts before this rank's hold as many bytes each.
      const int64_t bytes_before = stack ? here.ep * static_cast<int64_t>(packed.nbytes()) : 0;
      digest += tensor_digest(str(name, "/", part++), packed, bytes_before);
    }
  }
  for (const auto& [name, tensor] : model.plain) {
    if (counts_replicated) digest += tensor_digest(name, tensor, 0);
  }
  at::Tensor total = at::tensor({static_cast<int64_t>(digest)}, at::kLong).to(mesh.world().device());
  mesh.world().all_reduce_sum(total);
  std::ostringstream hex;
  hex << std::hex << std::setw(16) << std::setfill('0') << static_cast<uint64_t>(total.item<int64_t>());
  return hex.str();
}

}  // namespace moetune
