// The digest of frozen weights: every byte counts, and where a tensor is cut does not.
#include "tests/support/catch.h"

#include "parallel/bytes/weight_store.h"
#include "parallel/comm/launch.h"
#include "tests/support/stand_in_group.h"
#include "tests/support/tiny_model.h"
#include "trainer/state/frozen_digest.h"

using namespace moetune;

namespace {

uint64_t digest_of(const std::string& name, const at::Tensor& tensor, int64_t first_byte) {
  return static_cast<uint64_t>(tensor_digest(name, tensor, first_byte).item<int64_t>());
}

}  // namespace

TEST_CASE("any flipped bit of any byte changes the digest, and so does the name", "[frozen_digest]") {
  for (const int64_t bytes : {1, 7, 8, 9, 29}) {
    const at::Tensor tensor = at::arange(1, bytes + 1, at::kByte);
    const uint64_t digest = digest_of("a", tensor, 0);
    CHECK(digest_of("a", tensor.clone(), 0) == digest);
    CHECK(digest_of("b", tensor, 0) != digest);
    for (int64_t i = 0; i < bytes; ++i) {
      for (int bit = 0; bit < 8; ++bit) {
        at::Tensor changed = tensor.clone();
        changed[i].bitwise_xor_(1 << bit);
        CHECK(digest_of("a", changed, 0) != digest);
      }
    }
  }
  // Words that change places change the digest too.
  const at::Tensor words = at::arange(64, at::kByte);
  CHECK(digest_of("a", at::cat({words.slice(0, 8, 16), words.slice(0, 0, 8), words.slice(0, 16)}), 0) !=
        digest_of("a", words, 0));
}

TEST_CASE("parts of a tensor add up to the whole, wherever it is cut", "[frozen_digest]") {
  const at::Tensor whole = random_normal({50}, 1, at::kFloat);
  const uint64_t digest = digest_of("a", whole, 0);
  for (const int64_t cut : {2, 4, 25, 49}) {
    INFO("cut after " << cut << " numbers of four bytes");
    CHECK(digest_of("a", whole.slice(0, 0, cut), 0) + digest_of("a", whole.slice(0, cut), cut * 4) == digest);
  }
}

namespace {

/// Digest of what one of `ranks` keeps of experts first .. first + count - 1, each two maps, the second cut, a piece
/// of the slab at a time.
uint64_t digest_of_part(BaseFormat format, const at::Tensor& stack_EOI, int64_t first, int64_t count,
                        const MatrixCut& cut, int rank, int ranks, int64_t piece_bytes = int64_t{1} << 20) {
  const int64_t outputs = stack_EOI.size(1), inputs = stack_EOI.size(2);
  StandInGroup place(rank, ranks);
  WeightStore store(at::kCPU);
  SlabPlacement placement;
  placement.expert_replicas = ranks > 1 ? &place : nullptr;
  placement.host_layers = {LayerId::block(cut.index)};
  FrozenSlabs slabs(store, placement);
  FrozenSlab& slab = slabs.add(SlabKind::kExperts, LayerId::block(0), count);
  FrozenWeight a({format, count, outputs, inputs, {MatrixCut::Dim::kNone, cut.index, cut.parts}}, at::kCPU, at::kFloat),
      b({format, count, outputs, inputs, cut}, at::kCPU, at::kFloat);
  slab.hold(a, "a");
  slab.hold(b, "b");
  slab.close();
  for (int64_t e = 0; e < count; ++e) {
    if (slab.wants(a, e)) slab.set(a, e, stack_EOI[first + e]);
    if (slab.wants(b, e)) slab.set(b, e, stack_EOI[first + e].flip(0) * 2);
  }
  uint64_t sum = 0;
  for (const HeldDigest& held : slab_digests(slab, first, piece_bytes)) {
    sum += held.counts ? static_cast<uint64_t>(held.digest.item<int64_t>()) : 0;
  }
  return sum;
}

}  // namespace

TEST_CASE("what ranks keep of a slab adds up to the same digest, however experts, matrices and bytes are dealt out",
          "[frozen_digest]") {
  constexpr int64_t E = 6, O = 128, I = 384;
  const at::Tensor stack = random_normal({E, O, I}, 1, at::kFloat);
  for (const BaseFormat format : {BaseFormat::kNf4, BaseFormat::kNf4Double, BaseFormat::kBf16, BaseFormat::kFp32}) {
    const uint64_t whole = digest_of_part(format, stack, 0, E, {}, 0, 1);
    CHECK(digest_of_part(format, stack.flip(0), 0, E, {}, 0, 1) != whole);
    for (const auto dim : {MatrixCut::Dim::kNone, MatrixCut::Dim::kOutputs, MatrixCut::Dim::kInputs}) {
      for (const int64_t parts : {1, 2}) {
        for (const int ranks : {1, 4, 7}) {  // seven: shards begin inside parts, and the last are short
          for (const int64_t groups : {1, 2}) {
            INFO(to_string(format) << ", cut " << static_cast<int>(dim) << " in " << parts << ", " << ranks
                                   << " shards, " << groups << " expert groups");
            uint64_t sum = 0;
            for (int64_t part = 0; part < parts; ++part) {
              for (int rank = 0; rank < ranks; ++rank) {
                for (int64_t group = 0; group < groups; ++group) {
                  sum += digest_of_part(format, stack, group * E / groups, E / groups, {dim, part, parts}, rank, ranks);
                }
              }
            }
            CHECK(sum == whole);
          }
        }
      }
    }
  }
}

TEST_CASE("a slab taken in pieces has the same digest, wherever they end", "[frozen_digest]") {
  constexpr int64_t E = 3, O = 128, I = 192;
  const at::Tensor stack = random_normal({E, O, I}, 1, at::kFloat);
  for (const BaseFormat format : {BaseFormat::kNf4, BaseFormat::kNf4Double, BaseFormat::kBf16, BaseFormat::kFp32}) {
    for (const MatrixCut& cut : {MatrixCut{}, MatrixCut{MatrixCut::Dim::kInputs, 1, 3}}) {
      for (const int rank : {0, 1}) {
        const uint64_t at_once = digest_of_part(format, stack, 0, E, cut, rank, 2);
        for (const int64_t piece_bytes : {256, 1280, 65536}) {
          INFO(to_string(format) << ", rank " << rank << " of 2, pieces of " << piece_bytes << " bytes");
          CHECK(digest_of_part(format, stack, 0, E, cut, rank, 2, piece_bytes) == at_once);
        }
      }
    }
  }
}

TEST_CASE("uneven parts, empty ones, and those of which each rank packs the whole add up to the same digest",
          "[frozen_digest]") {
  constexpr int64_t E = 3, O = 192, I = 320;
  const at::Tensor stack = random_normal({E, O, I}, 1, at::kFloat);
  struct Case {
    MatrixCut::Dim dim;
    int64_t parts, granule, inputs;
  };
  const auto by_outputs = MatrixCut::Dim::kOutputs, by_inputs = MatrixCut::Dim::kInputs;
  for (const Case& one : {Case{by_outputs, 2, 64, I}, Case{by_outputs, 4, 64, I}, Case{by_inputs, 2, 64, I},
                          Case{by_inputs, 7, 64, I}, Case{by_inputs, 2, 64, 96}, Case{by_outputs, 3, 1, 20}}) {
    const at::Tensor used = stack.narrow(2, 0, one.inputs).contiguous();
    for (const BaseFormat format : {BaseFormat::kNf4, BaseFormat::kNf4Double, BaseFormat::kBf16, BaseFormat::kFp32}) {
      const uint64_t whole = digest_of_part(format, used, 0, E, {}, 0, 1);
      for (const int ranks : {1, 4}) {
        INFO(to_string(format) << ", " << one.inputs << " inputs cut " << static_cast<int>(one.dim) << " in "
                               << one.parts << ", " << ranks << " shards");
        uint64_t sum = 0;
        for (int64_t part = 0; part < one.parts; ++part) {
          for (int rank = 0; rank < ranks; ++rank) {
            sum += digest_of_part(format, used, 0, E, {one.dim, part, one.parts, one.granule}, rank, ranks);
          }
        }
        CHECK(sum == whole);
      }
    }
  }
}

TEST_CASE("the model's digest sees each frozen tensor and no trained one", "[frozen_digest]") {
  Launch launch;
  Mesh mesh(launch, {1, 1, 1, 1});
  for (const BaseFormat base : {BaseFormat::kNf4, BaseFormat::kNf4Double, BaseFormat::kBf16, BaseFormat::kFp32}) {
    TinyModel tiny(tiny_blueprint(2), {.base = base, .compute = at::kFloat});
    const std::string digest = frozen_digest(*tiny.model, mesh);
    CHECK(digest.size() == 16);
    tiny.model->parameters.all()[0].master().add_(1);
    tiny.model->parameters.all()[0].refresh_working();
    CHECK(frozen_digest(*tiny.model, mesh) == digest);
    std::vector<at::Tensor> tensors;
    for (FrozenSlab& slab : tiny.model->slabs->all()) {
      slab.use();
      for (const FrozenSlab::Held& held : slab.held()) {
        for (const at::Tensor& part : held.weight->packed()) tensors.push_back(part[part.size(0) - 1]);
      }
      slab.release();
    }
    for (const PlainTensor& tensor : tiny.model->plain) tensors.push_back(tensor.held);
    CHECK(tensors.size() > 20);
    for (const at::Tensor& tensor : tensors) {
      at::Tensor last = tensor.view(-1).view(at::kByte).slice(0, -1);
      last.bitwise_xor_(1);
      CHECK(frozen_digest(*tiny.model, mesh) != digest);
      last.bitwise_xor_(1);
    }
    CHECK(frozen_digest(*tiny.model, mesh) == digest);
  }
  TinyModel trained(tiny_blueprint(2), {.targets = {}, .trained = TrainedParts::all()});
  CHECK(trained.model->slabs->all().empty());
  CHECK(trained.model->plain.empty());
  // What is frozen beside it stays in slabs, and in the digest.
  TinyModel experts(tiny_blueprint(2), {.targets = {}, .trained = {ModelPart::kExperts, ModelPart::kRouter}});
  CHECK(experts.model->slabs->all().size() == 2);
  CHECK(experts.model->blocks[1].slab(SlabKind::kExperts) == nullptr);
  CHECK(experts.model->blocks[1].slab(SlabKind::kDense)->held().size() == 5 + 3);
  TinyModel attention(tiny_blueprint(2), {.targets = {}, .trained = {ModelPart::kAttention}});
  CHECK(attention.model->blocks[1].slab(SlabKind::kExperts)->held().size() == 3);
  CHECK(attention.model->blocks[1].slab(SlabKind::kDense)->held().size() == 3);
  CHECK(frozen_digest(*attention.model, mesh) != frozen_digest(*experts.model, mesh));
}
