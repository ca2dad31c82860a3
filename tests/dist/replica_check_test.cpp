// Replicas that differ are found, and told by tensor, group and ranks: whatever it is that several ranks hold, on every
// mesh.
#include "trainer/state/replica_check.h"

#include <map>

#include "parallel/base/error.h"
#include "parallel/bytes/weight_store.h"
#include "tests/support/catch.h"
#include "tests/support/dist.h"
#include "tests/support/message_of.h"
#include "tests/support/tiny_model.h"
#include "trainer/run/stepper.h"
#include "trainer/state/frozen_digest.h"

using namespace moetune;

namespace {

std::string message(Model& model, Mesh& mesh) {
  std::vector<HeldDigest> held = trained_digests(model);
  for (HeldDigest& frozen : frozen_digests(model, mesh)) held.push_back(std::move(frozen));
  return message_of<InternalError>([&] { require_equal_replicas(held, mesh, "step 7", "nothing was updated"); });
}

constexpr const char* kNone = "(nothing was thrown)";

/// Bytes that a rank holds, the name that a message gives them, and who else holds them.
struct Target {
  std::string name;
  Replicas replicas;
  at::Tensor bytes;
};

at::Tensor bytes_of(const at::Tensor& tensor) { return tensor.detach().view({-1}).view(at::kByte); }

/// One target of each kind of thing and each kind of group, in the same order on every rank.
std::vector<Target> targets(Model& model) {
  std::map<std::string, Target> found;
  auto add = [&](const std::string& kind, const std::string& name, Replicas replicas, const at::Tensor& bytes) {
    found.emplace(str(kind, static_cast<int>(replicas)), Target{name, replicas, bytes});
  };
  for (Parameter& parameter : model.parameters.all()) {
    add("trained", parameter.name(), parameter.info().replicas, bytes_of(parameter.working));
  }
  for (size_t layer = 0; layer < model.blocks.size(); ++layer) {
    if (model.blocks[layer].is_moe()) {
      add("bias", str("model.layers.", layer, ".mlp.gate.e_score_correction_bias"), Replicas::kEverywhere,
          bytes_of(model.blocks[layer].router()->bias()));
    }
  }
  for (const PlainTensor& plain : model.plain) {
    add("plain", plain.name, plain.part.is_whole() ? Replicas::kEverywhere : Replicas::kTensorIndex,
        bytes_of(plain.held));
  }
  for (const FrozenSlab& slab : model.slabs->all()) {
    const auto [first, kept] = slab.kept();
    for (const FrozenSlab::Held& held : slab.held()) {
      const MatrixCut& cut = held.weight->shape().cut;
      const Replicas of_experts = cut.parts > 1 ? Replicas::kExpertTensorIndex : Replicas::kExpertReplicas;
      const Replicas of_dense = cut.dim != MatrixCut::Dim::kNone ? Replicas::kTensorIndex : Replicas::kEverywhere;
      if (held.offset < first || held.offset >= first + kept.numel()) continue;
      add("slab", held.name + "/", slab.kind() == SlabKind::kExperts ? of_experts : of_dense,
          kept.narrow(0, held.offset - first, 1));
    }
  }
  std::vector<Target> all;
  for (const auto& [kind, target] : found) all.push_back(target);
  return all;
}

/// The group of copies by the definition of the mesh, and its name.
std::pair<std::string, std::vector<int64_t>> copies(const MeshShape& shape, Replicas replicas, int64_t of) {
  const MeshCoordinates place = coordinates_of(shape, of);
  const bool same_tp = replicas == Replicas::kTensorIndex || replicas == Replicas::kExpertTensorIndex;
  const bool same_ep = replicas == Replicas::kExpertReplicas || replicas == Replicas::kExpertTensorIndex;
  std::vector<int64_t> ranks;
  for (int64_t rank = 0; rank < shape.num_ranks(); ++rank) {
    const MeshCoordinates other = coordinates_of(shape, rank);
    if ((!same_tp || other.tp == place.tp) && (!same_ep || other.ep == place.ep)) ranks.push_back(rank);
  }
  return {same_tp && same_ep ? "dp" : same_tp ? "data" : same_ep ? "expert_replicas" : "stage", ranks};
}

std::string listed(const std::vector<int64_t>& ranks) {
  std::string text = ranks.size() == 1 ? "rank " : "ranks ";
  for (const int64_t rank : ranks) text += (text.back() == ' ' ? "" : ", ") + std::to_string(rank);
  return text + (ranks.size() == 1 ? " has" : " have");
}

}  // namespace

TEST_CASE("a rank with another copy of anything is told, and equal copies pass", "[replica_check][ranks8]") {
  const int64_t P = test_launch().world_size(), own = test_launch().rank(), bad = P - 1;
  for (const int64_t ep : {1, 2, 4}) {
    for (const auto& [tp, expert_tp] : {std::pair<int64_t, int64_t>{1, 1}, {2, 1}, {2, 2}}) {
      if (P % (ep * tp) != 0) continue;
      const MeshShape shape{1, P / (ep * tp), ep, tp, expert_tp};
      Mesh mesh(test_launch(), shape);
      const TinyOptions options{.base = BaseFormat::kFp32, .compute = at::kBFloat16, .device = test_launch().device()};
      TinyModel tiny(tiny_blueprint(2), options, &mesh);
      INFO(to_string(shape));
      CHECK(message(*tiny.model, mesh) == kNone);
      int64_t found = 0;
      for (const Target& target : targets(*tiny.model)) {
        INFO(target.name);
        at::Tensor last = target.bytes.narrow(0, target.bytes.numel() - 1, 1);
        if (own == bad) last.bitwise_xor_(64);
        const std::string said = message(*tiny.model, mesh);
        if (own == bad) last.bitwise_xor_(64);
        auto [group, ranks] = copies(shape, target.replicas, bad);
        ranks.pop_back();
        if (ranks.empty()) {
          CHECK(said == kNone);
          continue;
        }
        ++found;
        INFO(said);
        CHECK(contains(said, "step 7: replicas differ; nothing was updated"));
        CHECK(contains(said, "\n  " + target.name));
        CHECK(contains(said, str(" (group ", group, "): rank ", bad, " has not what ", listed(ranks))));
      }
      CHECK(found >= 4);
      CHECK(message(*tiny.model, mesh) == kNone);
    }
  }
}

TEST_CASE("of frozen slabs the ranks that keep the same range are compared", "[replica_check]") {
  const int64_t P = test_launch().world_size(), own = test_launch().rank();
  if (P < 4) return;
  // As two hosts of P/2 ranks each would share weights: rank r and rank r + P/2 keep the same.
  Mesh mesh(test_launch(), {1, P, 1, 1});
  const auto host = test_launch().make_group(static_cast<int>(own / (P / 2)), static_cast<int>(own), "host");
  for (const bool one_group : {false, true}) {
    const auto all = test_launch().make_group(0, static_cast<int>(own), "all");
    Communicator* shared = one_group ? all.get() : host.get();
    WeightStore store(test_launch().device());
    SlabPlacement placement;
    placement.dense_replicas = placement.expert_replicas = shared;
    FrozenSlabs slabs(store, placement);
    TinyModel tiny(tiny_blueprint(2), {.base = BaseFormat::kNf4, .slabs = &slabs}, &mesh);
    CHECK(message(*tiny.model, mesh) == kNone);
    for (FrozenSlab& slab : slabs.all()) {
      const at::Tensor kept = slab.kept().second;  // nothing on the last rank where many share little
      if (own == P - 1) kept.bitwise_xor_(1);
      const std::string said = message(*tiny.model, mesh);
      if (own == P - 1) kept.bitwise_xor_(1);
      INFO(said);
      // Sharded over all there are no copies: the digest of the frozen weights is what sees it.
      if (one_group) CHECK(said == kNone);
      else CHECK(contains(said, str("rank ", P - 1, " has not what rank ", P / 2 - 1, " has")));
    }
  }
}

TEST_CASE("one of many is told by those it stands against", "[replica_check]") {
  const int64_t P = test_launch().world_size(), own = test_launch().rank();
  if (P < 4) return;
  Mesh mesh(test_launch(), {1, P, 1, 1});
  auto held = [&](int64_t value) {
    return std::vector<HeldDigest>{
        {"a", "whole", Replicas::kEverywhere, true, true, at::full({}, value, test_options(at::kLong))}};
  };
  auto said = [&](int64_t value) {
    return message_of<InternalError>([&] { require_equal_replicas(held(value), mesh, "now", "so"); });
  };
  CHECK(contains(said(own == 0), "a (group stage): rank 0 has not what ranks 1, 2, 3 have"));
  CHECK(contains(said(own < 2 ? 5 : own), "a (group stage): rank 2; rank 3 have not what ranks 0, 1 have"));
  // A rank that holds another part than its group's is a defect of whoever said who holds copies.
  std::vector<HeldDigest> other = held(1);
  if (own == 0) other[0].place = "half";
  CHECK(contains(message_of<InternalError>([&] { require_equal_replicas(other, mesh, "now", "so"); }),
                 str("ranks hold the same part, group stage has ", P)));
}

TEST_CASE("parts of unequal size, empty ones and whole packed maps are not taken for copies",
          "[replica_check][ranks8]") {
  const int64_t P = test_launch().world_size();
  Blueprint blueprint = tiny_blueprint(2);
  for (LayerSpec& layer : blueprint.layers) layer.attention.heads = layer.attention.kv_heads = 4;
  blueprint.layers[0].dense_width = 320;
  blueprint.experts.width = 128;
  blueprint.experts.shared_width = 96;
  for (const int64_t tp : {2, 4}) {
    for (const int64_t expert_tp : {int64_t{1}, tp}) {
      if (P % tp != 0) continue;
      Mesh mesh(test_launch(), {1, P / tp, 1, tp, expert_tp});
      const TinyOptions options{
          .base = BaseFormat::kNf4Double, .compute = at::kBFloat16, .device = test_launch().device()};
      TinyModel tiny(blueprint, options, &mesh);
      INFO("tp " << tp << ", expert tp " << expert_tp);
      CHECK(message(*tiny.model, mesh) == kNone);
    }
  }
}

TEST_CASE("what the first and the last stage hold alike is compared", "[replicas]") {
  const auto ranks = static_cast<int64_t>(test_launch().world_size());
  if (ranks < 2) return;
  Mesh mesh(test_launch(), {ranks, 1, 1, 1});
  const int64_t stage = mesh.here().pp;
  const auto held = [&](int64_t of_last) {
    const int64_t digest = stage == ranks - 1 ? of_last : 7;
    std::vector<HeldDigest> all;
    // Of one stage alone: nobody else's business.
    all.push_back({"norm", "whole", Replicas::kEverywhere, true, false, at::full({}, stage, test_options(at::kLong))});
    if (stage == 0 || stage == ranks - 1) {
      all.push_back(
          {"embed", "whole", Replicas::kEverywhere, true, false, at::full({}, digest, test_options(at::kLong)), true});
    }
    return all;
  };
  require_equal_replicas(held(7), mesh, "step 1", "nothing was updated");
  const std::string said =
      message_of<InternalError>([&] { require_equal_replicas(held(8), mesh, "step 1", "nothing was updated"); });
  if (stage == 0 || stage == ranks - 1) {
    CHECK(said.find(str("step 1: replicas differ; nothing was updated\n  embed (group ends): rank ", ranks - 1,
                        " has not what rank 0 has")) == 0);
  } else {
    CHECK(said == "(nothing was thrown)");
  }
}
