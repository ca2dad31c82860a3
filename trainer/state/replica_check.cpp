#include "trainer/state/replica_check.h"

#include <algorithm>
#include <map>
#include <sstream>

#include "lora/adapters/counter_random.h"
#include "parallel/base/error.h"
#include "parallel/base/text.h"
#include "parallel/comm/gathered_text.h"
#include "trainer/update/replica_groups.h"

namespace moetune {
namespace {

using Ranks = std::vector<int64_t>;

std::string text_of(const Ranks& ranks) { return rank_list(ranks, 8, ", "); }

/// What the holders of one part of a tensor say of it: ranks by digest. Empty where they agree.
std::string difference(const std::map<int64_t, Ranks>& ranks_of_digest) {
  if (ranks_of_digest.size() == 1) return "";
  std::vector<Ranks> parties;
  for (const auto& [digest, ranks] : ranks_of_digest) parties.push_back(ranks);
  // Most are right, as far as anyone can tell; of as many the one with the first rank.
  std::sort(parties.begin(), parties.end(), [](const Ranks& a, const Ranks& b) {
    return a.size() != b.size() ? a.size() > b.size() : a.front() < b.front();
  });
  std::string text;
  for (size_t i = 1; i < parties.size(); ++i) text += str(i == 1 ? "" : "; ", text_of(parties[i]));
  return text + str(parties.size() == 2 && parties[1].size() == 1 ? " has" : " have", " not what ", text_of(parties[0]),
                    parties[0].size() == 1 ? " has" : " have");
}

/// Line `number`, from 0.
std::string line_of(const std::string& text, int64_t number) {
  std::istringstream lines(text);
  std::string line;
  for (int64_t i = 0; i <= number; ++i) std::getline(lines, line);
  return line;
}

/// What copies on the ranks of this stage differ in. Collective over it.
std::vector<std::string> differences_within_stage(const std::vector<HeldDigest>& held, Mesh& mesh) {
  Communicator& stage = mesh.stage();
  if (stage.size() == 1 || held.empty()) return {};
  std::vector<int64_t> keys;
  for (const HeldDigest& one : held) {
    keys.push_back(static_cast<int64_t>(stream_key(stream_key(0, one.name), one.place)));
  }
  const auto count = static_cast<int64_t>(held.size());
  const at::Tensor digests = stacked(held), own = at::cat({at::tensor(keys, at::kLong).to(digests.device()), digests});
  at::Tensor all = at::empty({stage.size(), 2, count}, own.options());
  stage.all_gather(all, own);
  all = all.cpu();
  const auto said = all.accessor<int64_t, 3>();
  const int64_t first_rank = mesh.first_rank() + mesh.here().pp * stage.size();
  struct Difference {
    int64_t tensor, holder;  // its number in the list of a rank of the stage that holds it
    std::string text;
  };
  std::vector<Difference> found;
  for (int64_t i = 0; i < count; ++i) {
    const HeldDigest& tensor = held[i];
    const std::string& group = replica_group(mesh, tensor.replicas).name();
    std::map<int64_t, std::map<int64_t, Ranks>> holders;  // by part, then by digest
    std::map<int64_t, int64_t> num_holders;
    for (int64_t rank = 0; rank < stage.size(); ++rank) {
      holders[said[rank][0][i]][said[rank][1][i]].push_back(first_rank + rank);
      ++num_holders[said[rank][0][i]];
    }
    for (const auto& [part, ranks_of_digest] : holders) {
      MT_CHECK(!tensor.all_of_group || num_holders[part] == num_replicas(mesh.shape(), tensor.replicas), tensor.name,
               ": ", num_holders[part], " ranks hold the same part, group ", group, " has ",
               num_replicas(mesh.shape(), tensor.replicas));
      const std::string differs = difference(ranks_of_digest);
      if (differs.empty()) continue;
      const int64_t holder = ranks_of_digest.begin()->second.front() - first_rank;
      found.push_back({i, holder, str(" (group ", group, "): ", differs)});
    }
  }
  if (found.empty()) return {};
  // What this rank holds at a place of the list may be another expert's than what differs.
  std::string own_names;
  for (const Difference& one : found) own_names += held[one.tensor].name + "\n";
  const std::vector<std::string> names = gathered_text(stage, own_names);
  std::vector<std::string> differences;
  for (const Difference& one : found) {
    differences.push_back(line_of(names.at(one.holder), std::ssize(differences)) + one.text);
  }
  return differences;
}

/// What the first and the last stage hold alike and differ in. Collective over the two.
std::vector<std::string> differences_of_ends(const std::vector<HeldDigest>& held, Mesh& mesh) {
  Communicator& ends = mesh.ends();
  std::vector<HeldDigest> shared;
  for (const HeldDigest& one : held) {
    if (one.on_first_and_last_stage) shared.push_back(one);
  }
  if (ends.size() == 1 || shared.empty()) return {};
  const at::Tensor own = stacked(shared);
  at::Tensor all = at::empty({ends.size(), own.numel()}, own.options());
  ends.all_gather(all, own);
  all = all.cpu();
  const auto said = all.accessor<int64_t, 2>();
  MeshCoordinates first = mesh.here(), last = first;
  first.pp = 0;
  last.pp = mesh.shape().pp - 1;
  std::vector<std::string> differences;
  for (size_t i = 0; i < shared.size(); ++i) {
    const auto column = static_cast<int64_t>(i);
    std::map<int64_t, Ranks> ranks_of_digest;
    ranks_of_digest[said[0][column]].push_back(mesh.first_rank() + rank_at(mesh.shape(), first));
    ranks_of_digest[said[1][column]].push_back(mesh.first_rank() + rank_at(mesh.shape(), last));
    const std::string differs = difference(ranks_of_digest);
    if (!differs.empty()) differences.push_back(str(shared[i].name, " (group ends): ", differs));
  }
  return differences;
}

}  // namespace

std::vector<HeldDigest> trained_digests(const Model& model) {
  at::NoGradGuard no_grad;
  std::vector<HeldDigest> held;
  for (const Parameter& parameter : model.parameters.all()) {
    const ParameterInfo& info = parameter.info();
    if (!parameter.stays()) continue;  // sharded, or in host memory
    // By the place on the axis: parts may be empty, and then begin where others do. A rank may hold none of the experts
    // that train: the rows do not tell its place, the experts that it holds do.
    const std::string part = info.part.is_whole() ? "whole" : str("part ", model.axis.index());
    const int64_t expert =
        info.num_experts > 0 ? model.block(info.layer).experts()->placement().first : info.first_expert;
    held.push_back({info.name, str(part, ", expert ", expert), info.replicas, true, false,
                    tensor_digest(info.name, parameter.working, 0), info.on_first_and_last_stage});
  }
  for (const Block& block : model.blocks) {
    if (!block.has_correction_bias()) continue;
    const std::string name = model.blueprint.correction_bias_name(block.layer().number());
    held.push_back({name, "whole", Replicas::kEverywhere, true, false, tensor_digest(name, block.router()->bias(), 0)});
  }
  return held;
}

void require_equal_replicas(const std::vector<HeldDigest>& held, Mesh& mesh, const std::string& when,
                            const std::string& outcome) {
  constexpr size_t kMostTold = 8;
  std::vector<std::string> differences = differences_of_ends(held, mesh);
  for (std::string& differs : differences_within_stage(held, mesh)) differences.push_back(std::move(differs));
  if (differences.empty()) return;
  std::string text = str(when, ": replicas differ; ", outcome);
  for (size_t i = 0; i < std::min(differences.size(), kMostTold); ++i) text += "\n  " + differences[i];
  if (differences.size() > kMostTold) text += str("\n  and ", differences.size() - kMostTold, " more");
  throw InternalError(text +
                      "\nIf `moetune verify-layout` finds this layout wrong it is a defect of moetune; otherwise "
                      "suspect the memory of the ranks that stand alone. "
                      "--resume goes on from the last checkpoint");
}

}  // namespace moetune
