#include "trainer/state/frozen_digest.h"

#include <algorithm>
#include <iomanip>
#include <sstream>

#include "lora/adapters/counter_random.h"
#include "parallel/base/ceil_div.h"
#include "parallel/base/error.h"
#include "parallel/device/host_memory.h"

namespace moetune {
namespace {

/// The words that a packed part is digested in, from the part of a whole matrix. A rank's share begins at a whole word
/// of each: blocks and shards are aligned.
at::ScalarType word_type(const PackedPart& whole) {
  switch (c10::elementSize(whole.dtype)) {
    case 1: return whole.bytes() % 8 == 0 && std::string(whole.name) == "codes" ? at::kLong : at::kByte;
    case 2: return at::kShort;
    case 4: return at::kInt;
    default: throw InternalError(str("a packed part ", whole.name, " of ", whole.bytes(), " bytes has no words"));
  }
}

/// Digests ranges of one packed part of a stack by their places in the whole, uncut part.
class PartDigest {
 public:
  /// `whole`: the part of a whole matrix.
  PartDigest(const FrozenSlab& slab, const FrozenSlab::Held& held, const PackedPart& part, const PackedPart& whole,
             int64_t first_expert)
      : slab_(slab),
        part_(part),
        type_(word_type(whole)),
        word_bytes_(static_cast<int64_t>(c10::elementSize(type_))),
        first_expert_(first_expert),
        sum_(slab.device()),
        key_(stream_key(0, str(held.name, "/", part.name))),
        begin_(held.offset + part.offset),
        words_(part.bytes() / word_bytes_),
        most_(DigestSum::words_at_a_time(slab.device())) {
    const FrozenShape& shape = held.weight->shape();
    whole_words_ = row_words_ = whole_row_words_ = whole.bytes() / word_bytes_;
    if (part.of_whole) return;
    const int64_t numbers = part.numbers * word_bytes_ / static_cast<int64_t>(c10::elementSize(part.dtype));
    if (shape.cut.cuts_outputs()) first_word_ = ceil_div(shape.cut.first_output(shape.outputs) * shape.inputs, numbers);
    if (shape.cut.cuts_inputs()) {
      row_words_ = shape.held_inputs() / numbers;
      whole_row_words_ = shape.inputs / numbers;
      first_word_ = shape.cut.first_input(shape.inputs) / numbers;
    }
  }

  /// Of all that was added, and will be: int64 scalar on the device.
  const at::Tensor& sum() const { return sum_.value(); }
  /// All that `bytes`, which lie at `first` of the slab and on its device, hold of the part.
  void add(int64_t first, const at::Tensor& bytes) {
    if (words_ == 0) return;
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
    if (row_words_ != whole_row_words_) {
      word = word.floor_divide(row_words_).mul_(whole_row_words_).add_(word.remainder(row_words_));
    }
    word.add_(first_word_);
    const int64_t expert = first_expert_ + unit;
    at::Tensor place = at::arange(expert, expert + words_UW.size(0), options).mul_(whole_words_).unsqueeze(1) + word;
    sum_.add(key_, words_UW, std::move(place));
  }

  const FrozenSlab& slab_;
  PackedPart part_;
  at::ScalarType type_;
  int64_t word_bytes_, first_expert_;
  DigestSum sum_;
  uint64_t key_;
  int64_t begin_, words_;  // of a unit: first byte in its record, words held
  int64_t most_;           // words at a time
  // Of the whole part; of a row as it is held and as it is in the whole, where they differ; before the first held.
  int64_t whole_words_ = 0, row_words_ = 0, whole_row_words_ = 0, first_word_ = 0;
};

}  // namespace

std::vector<HeldDigest> plain_digests(const Model& model, Mesh& mesh) {
  at::NoGradGuard no_grad;
  std::vector<HeldDigest> held;
  for (const PlainTensor& tensor : model.plain) {
    // Parts are runs of rows.
    const int64_t row_bytes = static_cast<int64_t>(tensor.held.nbytes()) / std::max<int64_t>(1, tensor.held.size(0));
    const bool whole = tensor.part.is_whole();
    const bool first_copy = tensor.of_expert ? mesh.here().dp == 0 : mesh.data().rank() == 0;
    held.push_back({tensor.name, whole ? "whole" : str("part ", mesh.here().tp), replicas_of(tensor.of_expert, !whole),
                    true, first_copy && !tensor.repeats_first_stage && (!whole || mesh.here().tp == 0),
                    tensor_digest(tensor.name, tensor.held, tensor.part.first * row_bytes)});
  }
  return held;
}

std::vector<HeldDigest> slab_digests(const FrozenSlab& slab, int64_t first_expert, int64_t piece_bytes) {
  at::NoGradGuard no_grad;
  const auto [first, bytes] = slab.kept();
  const bool experts = slab.kind() == SlabKind::kExperts;
  const bool shared = slab.is_shared();
  std::vector<HeldDigest> digests;
  std::vector<PartDigest> of_parts;
  for (const FrozenSlab::Held& held : slab.held()) {
    // Records differ in length between the places of the tensor axis where a cut is uneven, and so does what of an
    // uncut matrix lies in the same range.
    const std::string range = shared ? str(bytes.numel(), " bytes from ", first, " of records of ", slab.record_bytes(),
                                           ", in them at ", held.offset)
                                     : "whole";
    const FrozenShape& shape = held.weight->shape();
    const std::vector<PackedPart> parts = shape.parts(), whole_parts = shape.whole().parts();
    for (size_t i = 0; i < parts.size(); ++i) {
      const PackedPart& part = parts[i];
      // What the tensor axis does not cut is the same at all its places, and counts at the first.
      const bool copied = part.of_whole || shape.cut.dim == MatrixCut::Dim::kNone;
      const bool repeated = shape.cut.copies > 1;
      of_parts.emplace_back(slab, held, part, whole_parts[i], first_expert);
      digests.push_back(
          {str(held.name, "/", part.name),
           str(range, ", expert ", first_expert, copied ? "" : str(", part ", shape.cut.index)),
           // Several places of the axis may hold one part: copies are then anywhere.
           repeated ? Replicas::kEverywhere : replicas_of(experts, !copied && (!experts || shape.cut.parts > 1)),
           !shared && !repeated, slab.first_copy() && shape.cut.copy == 0 && !(copied && shape.cut.index > 0),
           of_parts.back().sum()});
    }
  }
  for (int64_t at = 0; at < bytes.numel(); at += piece_bytes) {
    const at::Tensor piece =
        bytes.narrow(0, at, std::min(piece_bytes, bytes.numel() - at)).to(slab.device(), /*non_blocking=*/true);
    for (PartDigest& part : of_parts) part.add(first + at, piece);
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
  // A stage may hold nothing that is frozen where others do: all ranks take part, whatever they hold.
  at::Tensor total = at::zeros({2}, at::TensorOptions(at::kLong).device(mesh.world().device()));
  if (!held.empty()) {
    std::vector<int64_t> counts;
    for (const HeldDigest& one : held) counts.push_back(one.counts ? 1 : 0);
    const at::Tensor digests = stacked(held);
    total[0].copy_((digests * at::tensor(counts, at::kLong).to(digests.device())).sum());
    total[1].fill_(static_cast<int64_t>(held.size()));
  }
  mesh.world().all_reduce_sum(total);
  total = total.cpu();
  if (total[1].item<int64_t>() == 0) return "";
  std::ostringstream hex;
  hex << std::hex << std::setw(16) << std::setfill('0') << static_cast<uint64_t>(total[0].item<int64_t>());
  return hex.str();
}

std::string frozen_digest(Model& model, Mesh& mesh) { return frozen_digest(frozen_digests(model, mesh), mesh); }

}  // namespace moetune
