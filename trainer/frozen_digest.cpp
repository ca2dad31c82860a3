#include "trainer/frozen_digest.h"

#include <algorithm>
#include <iomanip>
#include <sstream>

#include "lora/counter_random.h"
#include "parallel/base/error.h"

namespace moetune {
namespace {

/// Temporaries are some five times as many numbers of 8 bytes: few MiB of a host's memory, and enough work for each launch on a GPU.
int64_t words_at_a_time(at::Device device) { return int64_t{1} << (device.is_cuda() ? 22 : 18); }

/// An odd multiplier for each place, so that a changed word always changes the sum. `place` is used up.
at::Tensor multipliers(uint64_t key, at::Tensor place) {
  place.mul_(static_cast<int64_t>(0x9e3779b97f4a7c15ull)).add_(static_cast<int64_t>(key));
  return place.bitwise_xor(place.bitwise_right_shift(29)).mul_(static_cast<int64_t>(0xbf58476d1ce4e5b9ull)).bitwise_or_(1);
}

/// Sums of products, added up on the device: the host waits once.
class DigestSum {
 public:
  explicit DigestSum(at::Device device) : sum_(at::zeros({}, at::TensorOptions(at::kLong).device(device))) {}
  /// words: any integer type; place: int64 of the same shape.
  void add(uint64_t key, const at::Tensor& words, at::Tensor place) { sum_.add_((words.to(at::kLong) * multipliers(key, std::move(place))).sum()); }
  uint64_t value() const { return static_cast<uint64_t>(sum_.item<int64_t>()); }

 private:
  at::Tensor sum_;
};

/// The words that a packed part is digested in. A rank's share begins at a whole word of each: blocks and shards are aligned.
at::ScalarType word_type(const PackedPart& part) {
  switch (c10::elementSize(part.dtype)) {
    case 1: return part.bytes() % 8 == 0 && std::string(part.name) == "codes" ? at::kLong : at::kByte;
    case 2: return at::kShort;
    default: return at::kInt;
  }
}

/// Digests ranges of one packed part of a stack by their places in the whole, uncut part.
class PartDigest {
 public:
  PartDigest(const FrozenSlab& slab, const FrozenSlab::Held& held, const PackedPart& part, int64_t first_expert, DigestSum& sum)
      : slab_(slab), part_(part), type_(word_type(part)), word_bytes_(static_cast<int64_t>(c10::elementSize(type_))), first_expert_(first_expert), sum_(sum),
        key_(stream_key(0, str(held.name, "/", part.name))), begin_(held.offset + part.offset), words_(part.bytes() / word_bytes_), most_(words_at_a_time(slab.device())) {
    const FrozenShape& shape = held.weight->shape();
    if (!part.of_whole && (shape.cut.cuts_outputs() || shape.cut.cuts_inputs())) cut_ = shape.cut;
    whole_words_ = words_ * cut_.parts;
    row_words_ = cut_.dim == MatrixCut::Dim::kInputs ? words_ / shape.outputs : words_;
  }

  /// All that `bytes`, which lie at `first` of the slab, hold of the part.
  void add(int64_t first, const at::Tensor& bytes) {
    const int64_t end = first + bytes.numel(), stride = slab_.record_bytes();
    for (int64_t unit = std::max<int64_t>(0, (first - begin_ - part_.bytes()) / stride); unit < slab_.units() && unit * stride + begin_ < end;) {
      const int64_t place = unit * stride + begin_;
      // Units that are here whole go together, as many as may be at a time.
      int64_t whole = place >= first ? (end - place - part_.bytes() >= 0 ? (end - place - part_.bytes()) / stride + 1 : 0) : 0;
      whole = std::min({whole, slab_.units() - unit, std::max<int64_t>(1, most_ / words_)});
      if (whole > 0 && words_ <= most_) {
        const at::Tensor run = bytes.narrow(0, place - first, (whole - 1) * stride + part_.bytes()).view(type_);
        add_words(unit, 0, run.as_strided({whole, words_}, {stride / word_bytes_, 1}, run.storage_offset()));
        unit += whole;
        continue;
      }
      const int64_t from = std::max(place, first), to = std::min(place + part_.bytes(), end);
      for (int64_t at = from; at < to; at += most_ * word_bytes_) {
        const int64_t count = std::min(most_ * word_bytes_, to - at);
        add_words(unit, (at - place) / word_bytes_, bytes.narrow(0, at - first, count).view(type_).unsqueeze(0));
      }
      ++unit;
    }
  }

 private:
  /// words_UW: of units from `unit` on, of each from word `first` on.
  void add_words(int64_t unit, int64_t first, const at::Tensor& words_UW) {
    const auto options = at::TensorOptions(at::kLong).device(slab_.device());
    at::Tensor word = at::arange(first, first + words_UW.size(1), options);
    if (cut_.dim == MatrixCut::Dim::kOutputs) word.add_(cut_.index * words_);
    if (cut_.dim == MatrixCut::Dim::kInputs) {
      word = word.floor_divide(row_words_).mul_(row_words_ * cut_.parts).add_(word.remainder(row_words_)).add_(cut_.index * row_words_);
    }
    const int64_t expert = first_expert_ + unit;
    at::Tensor place = at::arange(expert, expert + words_UW.size(0), options).mul_(whole_words_).unsqueeze(1) + word;
    sum_.add(key_, words_UW.to(slab_.device()), std::move(place));
  }

  const FrozenSlab& slab_;
  const PackedPart& part_;
  at::ScalarType type_;
  int64_t word_bytes_, first_expert_;
  DigestSum& sum_;
  uint64_t key_;
  int64_t begin_, words_;  // of a unit: first byte in its record, words held
  int64_t most_;           // words at a time
  MatrixCut cut_;
  int64_t whole_words_ = 0, row_words_ = 0;
};

}  // namespace

uint64_t tensor_digest(const std::string& name, const at::Tensor& tensor, int64_t first_byte) {
  const uint64_t key = stream_key(0, name);
  at::Tensor bytes = tensor.contiguous().view({-1}).view(at::kByte);
  // Parts may be cut within a word: each counts its own bytes of it and zeros for the others', and the products add up. Only stacks of
  // odd numbers of statistics are cut so, small beside the codes: a copy does no harm.
  if (first_byte % 8 != 0 || bytes.storage_offset() % 8 != 0) bytes = at::cat({at::zeros({first_byte % 8}, bytes.options()), bytes});
  const int64_t whole_words = bytes.numel() / 8;
  DigestSum sum(tensor.device());
  auto add_words = [&](const at::Tensor& words, int64_t first_word) {
    sum.add(key, words, at::arange(first_word, first_word + words.numel(), words.options()));
  };
  at::Tensor words = bytes.narrow(0, 0, whole_words * 8).view(at::kLong);
  const int64_t most = words_at_a_time(words.device());
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

uint64_t slab_digest(const FrozenSlab& slab, int64_t first_expert) {
  DigestSum sum(slab.device());
  const auto [first, bytes] = slab.kept();
  for (const FrozenSlab::Held& held : slab.held()) {
    const FrozenShape& shape = held.weight->shape();
    for (const PackedPart& part : shape.parts()) {
      const bool copied = part.of_whole || shape.cut.dim == MatrixCut::Dim::kNone;
      if (copied && shape.cut.index > 0) continue;  // the first rank of the cut counts it
      PartDigest(slab, held, part, first_expert, sum).add(first, bytes);
    }
  }
  return sum.value();
}

std::string frozen_digest(Model& model, Mesh& mesh) {
  at::NoGradGuard no_grad;
  if (model.slabs->all().empty() && model.plain.empty()) return "";
  uint64_t digest = 0;
  const int64_t first_expert = mesh.here().ep * (model.config.experts / mesh.shape().ep);
  for (const FrozenSlab& slab : model.slabs->all()) {
    if (slab.first_copy()) digest += slab_digest(slab, slab.kind() == SlabKind::kExperts ? first_expert : 0);
  }
  if (mesh.data().rank() == 0) {
    for (const PlainTensor& tensor : model.plain) {
      // Parts are runs of rows; of what every rank of the tensor axis holds the first's counts.
      if (tensor.part.is_whole() && mesh.here().tp > 0) continue;
      const int64_t row_bytes = static_cast<int64_t>(tensor.held.nbytes()) / std::max<int64_t>(1, tensor.held.size(0));
      digest += tensor_digest(tensor.name, tensor.held, tensor.part.first * row_bytes);
    }
  }
  at::Tensor total = at::tensor({static_cast<int64_t>(digest)}, at::kLong).to(mesh.world().device());
  mesh.world().all_reduce_sum(total);
  std::ostringstream hex;
  hex << std::hex << std::setw(16) << std::setfill('0') << static_cast<uint64_t>(total.item<int64_t>());
  return hex.str();
}

}  // namespace moetune
