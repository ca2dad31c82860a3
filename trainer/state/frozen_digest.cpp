#include "trainer/state/frozen_digest.h"

#include <algorithm>
#include <iomanip>
#include <sstream>

#include "lora/adapters/counter_random.h"
#include "parallel/base/error.h"
#include "parallel/device/host_memory.h"

namespace moetune {
namespace {

/// The words that a packed part is digested in. A rank's share begins at a whole word of each: blocks and shards are
/// aligned.
at::ScalarType word_type(const PackedPart& part) {
  switch (c10::elementSize(part.dtype)) {
    case 1: return part.bytes() % 8 == 0 && std::string(part.name) == "codes" ? at::kLong : at::kByte;
    case 2: return at::kShort;
    case 4: return at::kInt;
    default: throw InternalError(str("a packed part ", part.name, " of ", part.bytes(), " bytes has no words"));
  }
}

/// Digests ranges of one packed part of a stack by their places in the whole, uncut part.
class PartDigest {
 public:
  PartDigest(const FrozenSlab& slab, const FrozenSlab::Held& held, const PackedPart& part, int64_t first_expert,
             DigestSum& sum)
      : slab_(slab),
        part_(part),
        type_(word_type(part)),
        word_bytes_(static_cast<int64_t>(c10::elementSize(type_))),
        first_expert_(first_expert),
        sum_(sum),
        key_(stream_key(0, str(held.name, "/", part.name))),
        begin_(held.offset + part.offset),
        words_(part.bytes() / word_bytes_),
        most_(DigestSum::words_at_a_time(slab.device())) {
    const FrozenShape& shape = held.weight->shape();
    if (!part.of_whole && (shape.cut.cuts_outputs() || shape.cut.cuts_inputs())) cut_ = shape.cut;
    whole_words_ = words_ * cut_.parts;
    row_words_ = cut_.dim == MatrixCut::Dim::kInputs ? words_ / shape.outputs : words_;
  }

  /// All that `bytes`, which lie at `first` of the slab, hold of the part.
  void add(int64_t first, const at::Tensor& bytes) {
    const int64_t end = first + bytes.numel(), stride = slab_.record_bytes();
    for (int64_t unit = std::max<int64_t>(0, (first - begin_ - part_.bytes()) / stride);
         unit < slab_.units() && unit * stride + begin_ < end;) {
      const int64_t place = unit * stride + begin_;
      // Units that are here whole go together, as many as may be at a time.
      int64_t whole =
          place >= first ? (end - place - part_.bytes() >= 0 ? (end - place - part_.bytes()) / stride + 1 : 0) : 0;
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
      word = word.floor_divide(row_words_)
                 .mul_(row_words_ * cut_.parts)
                 .add_(word.remainder(row_words_))
                 .add_(cut_.index * row_words_);
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

std::vector<HeldDigest> plain_digests(const Model& model, Mesh& mesh) {
  at::NoGradGuard no_grad;
  std::vector<HeldDigest> held;
  for (const PlainTensor& tensor : model.plain) {
    // Parts are runs of rows.
    const int64_t row_bytes = static_cast<int64_t>(tensor.held.nbytes()) / std::max<int64_t>(1, tensor.held.size(0));
    const bool whole = tensor.part.is_whole();
    held.push_back({tensor.name, str("rows from ", tensor.part.first), replicas_of(/*of_experts=*/false, !whole), true,
                    mesh.data().rank() == 0 && (!whole || mesh.here().tp == 0),
                    tensor_digest(tensor.name, tensor.held, tensor.part.first * row_bytes)});
  }
  return held;
}

std::vector<HeldDigest> slab_digests(const FrozenSlab& slab, int64_t first_expert) {
  at::NoGradGuard no_grad;
  const auto [first, bytes] = slab.kept();
  const bool experts = slab.kind() == SlabKind::kExperts;
  std::vector<HeldDigest> digests;
  for (const FrozenSlab::Held& held : slab.held()) {
    const FrozenShape& shape = held.weight->shape();
    for (const PackedPart& part : shape.parts()) {
      // What the tensor axis does not cut is the same at all its places, and counts at the first.
      const bool copied = part.of_whole || shape.cut.dim == MatrixCut::Dim::kNone;
      DigestSum sum(slab.device());
      PartDigest(slab, held, part, first_expert, sum).add(first, bytes);
      digests.push_back({str(held.name, "/", part.name),
                         str(bytes.numel(), " bytes from ", first, ", expert ", first_expert,
                             copied ? "" : str(", part ", shape.cut.index)),
                         replicas_of(experts, !copied && (!experts || shape.cut.parts > 1)),
                         bytes.numel() == slab.bytes(), slab.first_copy() && !(copied && shape.cut.index > 0),
                         sum.value()});
    }
  }
  return digests;
}

std::vector<HeldDigest> frozen_digests(Model& model, Mesh& mesh) {
  const ThriftyHeap heap;
  std::vector<HeldDigest> held = plain_digests(model, mesh);
  const int64_t first_expert = mesh.here().ep * (model.blueprint.router.experts / mesh.shape().ep);
  for (const FrozenSlab& slab : model.slabs->all()) {
    for (HeldDigest& one : slab_digests(slab, slab.kind() == SlabKind::kExperts ? first_expert : 0)) {
      held.push_back(std::move(one));
    }
  }
  return held;
}

std::string frozen_digest(const std::vector<HeldDigest>& held, Mesh& mesh) {
  if (held.empty()) return "";
  std::vector<int64_t> counts;
  for (const HeldDigest& one : held) counts.push_back(one.counts ? 1 : 0);
  const at::Tensor digests = stacked(held);
  at::Tensor total = (digests * at::tensor(counts, at::kLong).to(digests.device())).sum().reshape({1});
  mesh.world().all_reduce_sum(total);
  std::ostringstream hex;
  hex << std::hex << std::setw(16) << std::setfill('0') << static_cast<uint64_t>(total.item<int64_t>());
  return hex.str();
}

std::string frozen_digest(Model& model, Mesh& mesh) { return frozen_digest(frozen_digests(model, mesh), mesh); }

}  // namespace moetune
