#include "trainer/state/digest.h"

#include <algorithm>

#include "lora/adapters/counter_random.h"

namespace moetune {
namespace {

/// An odd multiplier for each place, so that a changed word always changes the sum. `place` is used up.
at::Tensor multipliers(uint64_t key, at::Tensor place) {
  place.mul_(static_cast<int64_t>(0x9e3779b97f4a7c15ull)).add_(static_cast<int64_t>(key));
  return place.bitwise_xor(place.bitwise_right_shift(29))
      .mul_(static_cast<int64_t>(0xbf58476d1ce4e5b9ull))
      .bitwise_or_(1);
}

}  // namespace

DigestSum::DigestSum(at::Device device) : sum_(at::zeros({}, at::TensorOptions(at::kLong).device(device))) {}

void DigestSum::add(uint64_t key, const at::Tensor& words, at::Tensor place) {
  sum_.add_((words.to(at::kLong) * multipliers(key, std::move(place))).sum());
}

at::Tensor tensor_digest(const std::string& name, const at::Tensor& tensor, int64_t first_byte) {
  const uint64_t key = stream_key(0, name);
  at::Tensor bytes = tensor.detach().contiguous().view({-1}).view(at::kByte);
  // Parts may be cut within a word: each counts its own bytes of it and zeros for the others', and the products add up.
  // Only stacks of odd numbers of statistics are cut so, small beside the codes: a copy does no harm.
  if (first_byte % 8 != 0 || bytes.storage_offset() % 8 != 0) {
    bytes = at::cat({at::zeros({first_byte % 8}, bytes.options()), bytes});
  }
  const int64_t whole_words = bytes.numel() / 8;
  DigestSum sum(tensor.device());
  auto add_words = [&](const at::Tensor& words, int64_t first_word) {
    sum.add(key, words, at::arange(first_word, first_word + words.numel(), words.options()));
  };
  at::Tensor words = bytes.narrow(0, 0, whole_words * 8).view(at::kLong);
  const int64_t most = DigestSum::words_at_a_time(words.device());
  for (int64_t first = 0; first < whole_words; first += most) {
    add_words(words.narrow(0, first, std::min(most, whole_words - first)), first_byte / 8 + first);
  }
  if (bytes.numel() % 8 != 0) {
    at::Tensor tail = at::zeros({8}, bytes.options());
    tail.narrow(0, 0, bytes.numel() % 8).copy_(bytes.narrow(0, whole_words * 8, bytes.numel() % 8));
    add_words(tail.view(at::kLong), first_byte / 8 + whole_words);
  }
  return sum.value();
}

at::Tensor stacked(const std::vector<HeldDigest>& held) {
  std::vector<at::Tensor> digests;
  for (const HeldDigest& one : held) digests.push_back(one.digest);
  return at::stack(digests);
}

}  // namespace moetune
