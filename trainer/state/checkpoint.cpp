#include "trainer/state/checkpoint.h"

#include <algorithm>
#include <cstdio>

#include "parallel/base/error.h"
#include "parallel/base/files.h"
#include "parallel/base/log.h"
#include "parallel/base/sha256.h"
#include "parallel/bytes/tensor_io.h"
#include "parallel/comm/gathered_text.h"
#include "trainer/state/checkpoint_folder.h"
#include "trainer/state/manifest.h"

namespace moetune {
namespace {

namespace fs = std::filesystem;

std::string numbered(const char* pattern, int64_t first, int64_t second = 0) {
  char text[64];
  std::snprintf(text, sizeof text, pattern, static_cast<long>(first), static_cast<long>(second));
  return text;
}

/// Calls `visit(kind, tensor)` for what an optimizer holds of a group.
template <typename Visit>
void for_each_kind(const Optimizer::Shard& shard, const Visit& visit) {
  visit(SavedKind::kMaster, shard.master);
  visit(SavedKind::kFirstMoment, shard.first_moment);
  visit(SavedKind::kSecondMoment, shard.second_moment);
}

Manifest::File describe_file(const fs::path& path) {
  return {sha256_of_file(path.string()), static_cast<int64_t>(fs::file_size(path))};
}

/// UserError where the checkpoint has no such tensor, or has it of other experts.
void require_same_experts(const SavedState& saved, const Parameter& parameter) {
  saved.shape(parameter.name());
  if (saved.experts(parameter.name()) == parameter.info().experts) return;
  throw UserError(str(saved.checkpoint().string(), ": ", parameter.name(),
                      " was saved of other experts than this run's; is adapter.experts as it was?"));
}

void load_router_biases(const SavedState& saved, Model& model) {
  for (size_t block = 0; block < model.blocks.size(); ++block) {
    if (model.blocks[block].has_correction_bias()) {
      model.blocks[block].router()->bias().copy_(saved.router_bias(static_cast<int64_t>(block)));
    }
  }
}

}  // namespace

std::string Checkpoints::write_own_file(const fs::path& folder, TrainingState& state) {
  Communicator& world = mesh_.world();
  std::vector<std::pair<std::string, at::Tensor>> tensors;
  StringMap metadata;
  const std::vector<FlatGroup>& groups = state.optimizer.partition().groups();
  for (size_t i = 0; i < groups.size(); ++i) {
    for (const FlatGroup::Piece& piece : groups[i].own_pieces()) {
      const std::string& name = piece.parameter->name();
      metadata[name] = run_metadata(block_of(*piece.parameter), piece.first, piece.parameter->info());
      for_each_kind(state.optimizer.shards()[i], [&](SavedKind kind, const at::Tensor& shard) {
        tensors.emplace_back(saved_name(kind, name), shard.narrow(0, piece.in_shard, piece.count));
      });
    }
  }
  for (size_t block = 0; world.rank() == 0 && block < state.model.blocks.size(); ++block) {
    if (state.model.blocks[block].has_correction_bias()) {
      tensors.emplace_back(saved_bias_name(static_cast<int64_t>(block)),
                           state.model.blocks[block].router()->bias().cpu());
    }
  }
  if (tensors.empty()) return "";
  const std::string name = numbered("state-%05ld-of-%05ld.safetensors", world.rank(), world.size());
  write_tensors((folder / name).string(), tensors, metadata);
  return name;
}

void Checkpoints::save(int64_t step, TrainingState& state, int64_t keep_last) {
  state.optimizer.flush();
  Communicator& world = mesh_.world();
  const bool leads = world.rank() == 0;
  const fs::path temporary = unfinished_checkpoint(folder_, step, token_);
  if (leads) {
    std::error_code error;
    fs::remove_all(temporary, error);
    fs::create_directories(temporary, error);
    if (error) throw UserError(str(temporary.string(), ": cannot make the folder: ", error.message()));
  }
  world.barrier();
  const std::string own_name = write_own_file(temporary, state);
  const Manifest::File own = own_name.empty() ? Manifest::File() : describe_file(temporary / own_name);
  const std::vector<std::string> names = gathered_text(world, own_name), digests = gathered_text(world, own.sha256);
  const std::vector<std::string> sizes = gathered_text(world, std::to_string(own.bytes));
  if (leads) {
    write_text_atomically((temporary / "recipe.yaml").string(), state.recipe_text);
    Manifest manifest{step,
                      state.optimizer.steps_taken(),
                      state.seed,
                      state.batch,
                      to_string(mesh_.shape()),
                      state.frozen_digest,
                      state.data_digest,
                      state.best,
                      {}};
    manifest.files["recipe.yaml"] = describe_file(temporary / "recipe.yaml");
    if (!state.config_text.empty()) {
      write_text_atomically((temporary / "config.json").string(), state.config_text);
      manifest.files["config.json"] = describe_file(temporary / "config.json");
    }
    for (size_t rank = 0; rank < names.size(); ++rank) {
      if (!names[rank].empty()) manifest.files[names[rank]] = {digests[rank], std::stoll(sizes[rank])};
    }
    write_manifest(temporary, manifest);
    put_checkpoint(temporary, folder_, step);
    // A checkpoint of a later step is a damaged one that the run was not resumed from: it takes no one's place.
    std::vector<fs::path> all = list_checkpoints(folder_);
    std::erase_if(all, [&](const fs::path& path) { return *step_of_name(path) > step; });
    for (size_t i = 0; i + static_cast<size_t>(keep_last) < all.size(); ++i) {
      if (!state.best || step_of_name(all[i]) != state.best->step) remove_checkpoint(all[i]);
    }
  }
  world.barrier();
}

std::optional<int64_t> Checkpoints::load_latest(TrainingState& state) {
  Communicator& world = mesh_.world();
  // Each rank reads a part of the files; what one finds damaged is damaged for all.
  const fs::path newest = newest_whole(
      folder_,
      [&](const fs::path& checkpoint) {
        for (const std::string& damage : gathered_text(world, damage_of(checkpoint, world.rank(), world.size()))) {
          if (!damage.empty()) return damage;
        }
        return std::string();
      },
      world.rank() == 0);
  if (newest.empty()) return std::nullopt;
  const SavedState saved(newest);
  restore(saved, state);
  log_info(str("resumed from ", newest.string()));
  return saved.manifest().step;
}

void Checkpoints::restore(const SavedState& saved, TrainingState& state) {
  const std::string from = saved.checkpoint().string();
  const Manifest& manifest = saved.manifest();
  auto same = [&](const auto& then, const auto& now, const char* what) {
    if (then != now) {
      throw UserError(str(from, ": ", what, " then ", then, ", now ", now, "; a resumed run must go on with the same"));
    }
  };
  same(manifest.seed, state.seed, "run.seed was");
  same(manifest.batch, state.batch, "train.batch was");
  same(manifest.data_digest, state.data_digest, "the training data had the digest");
  same(manifest.frozen_digest, state.frozen_digest, "the frozen weights had the digest");
  // UserError where it is not there
  for (const Parameter& parameter : state.model.parameters.all()) require_same_experts(saved, parameter);
  const size_t num_saved = saved.names().size(), num_trained = state.model.parameters.all().size();
  if (num_saved != num_trained) {
    throw UserError(str(from, ": holds ", num_saved, " trained tensors, this run has ", num_trained,
                        "; was it made with other adapter targets?"));
  }

  at::NoGradGuard no_grad;
  state.optimizer.flush();
  const std::vector<FlatGroup>& groups = state.optimizer.partition().groups();
  for (size_t i = 0; i < groups.size(); ++i) {
    for (const FlatGroup::Piece& piece : groups[i].own_pieces()) {
      for_each_kind(state.optimizer.shards()[i], [&](SavedKind kind, const at::Tensor& shard) {
        saved.read(kind, piece.parameter->name(), block_of(*piece.parameter), piece.first,
                   shard.narrow(0, piece.in_shard, piece.count));
      });
    }
  }
  load_router_biases(saved, state.model);
  state.optimizer.set_steps_taken(manifest.optimizer_steps);
  state.best = manifest.best;
  state.optimizer.publish();
}

void load_weights(const SavedState& saved, Model& model) {
  at::NoGradGuard no_grad;
  if (!model.open_adapters.empty()) model.adapt_experts(saved.chosen_experts());
  for (Parameter& parameter : model.parameters.all()) {
    require_same_experts(saved, parameter);
    parameter.master().copy_(saved.read(SavedKind::kMaster, parameter.name(), block_of(parameter)));
    parameter.refresh_working();
  }
  load_router_biases(saved, model);
}

}  // namespace moetune
