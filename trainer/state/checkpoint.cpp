#include "trainer/state/checkpoint.h"

#include <algorithm>

#include "parallel/base/error.h"
#include "parallel/base/files.h"
#include "parallel/base/log.h"
#include "parallel/comm/gathered_text.h"
#include "trainer/state/checkpoint_folder.h"
#include "trainer/state/manifest.h"

namespace moetune {
namespace {

namespace fs = std::filesystem;

/// UserError where the checkpoint has no such tensor, or has it of other experts.
void require_same_experts(const SavedState& saved, const Parameter& parameter) {
  saved.shape(parameter.name());
  if (saved.experts(parameter.name()) == parameter.info().experts) return;
  throw UserError(
      str(saved.checkpoint().string(), ": ", parameter.name(),
          " was saved of other experts than this run's; are adapter.experts and train.experts as they were?"));
}

void load_router_biases(const SavedState& saved, Model& model) {
  for (Block& block : model.blocks) {
    if (block.has_correction_bias()) block.router()->bias().copy_(saved.router_bias(block.layer().number()));
  }
}

}  // namespace

size_t Checkpoints::num_trained_of_all_stages(const Model& model) {
  const std::deque<Parameter>& all = model.parameters.all();
  at::Tensor count = at::tensor({static_cast<int64_t>(std::count_if(all.begin(), all.end(),
                                                                    [&](const Parameter& one) {
                                                                      return !one.info().on_first_and_last_stage ||
                                                                             model.stage.is_first();
                                                                    }))},
                                at::kLong)
                         .to(mesh_.pp().device());
  mesh_.pp().all_reduce_sum(count);
  return static_cast<size_t>(count.item<int64_t>());
}

Checkpoints::Checkpoints(fs::path folder, Mesh& mesh, std::string token, std::unique_ptr<OrderedWorker> writer)
    : folder_(std::move(folder)), mesh_(mesh), token_(std::move(token)), writer_(std::move(writer)) {}

Checkpoints::~Checkpoints() = default;

void Checkpoints::start(int64_t step, TrainingState& state, int64_t keep_last) {
  MT_CHECK(!unfinished_, "step ", step, " is to be saved, step ", unfinished_->manifest.step, " is not whole yet");
  state.optimizer.flush();
  Communicator& world = mesh_.world();
  const fs::path temporary = unfinished_checkpoint(folder_, step, token_);
  if (world.rank() == 0) {
    std::error_code error;
    fs::remove_all(temporary, error);
    fs::create_directories(temporary, error);
    if (error) throw UserError(str(temporary.string(), ": cannot make the folder: ", error.message()));
  }
  world.barrier();
  unfinished_.emplace(Unfinished{CheckpointPart(state.model, state.optimizer, mesh_),
                                 Manifest{step,
                                          state.optimizer.steps_taken(),
                                          state.seed,
                                          state.batch,
                                          to_string(mesh_.shape()),
                                          state.frozen_digest,
                                          state.data_digest,
                                          state.best,
                                          {}},
                                 state.recipe_text, state.config_text, keep_last, temporary});
}

void Checkpoints::write_own_part() { unfinished_->own = unfinished_->part.write(unfinished_->temporary); }

void Checkpoints::collect_parts() {
  Communicator& world = mesh_.world();
  const auto& [name, file] = unfinished_->own;
  const std::vector<std::string> names = gathered_text(world, name), digests = gathered_text(world, file.sha256);
  const std::vector<std::string> sizes = gathered_text(world, std::to_string(file.bytes));
  for (size_t rank = 0; rank < names.size(); ++rank) {
    if (!names[rank].empty()) unfinished_->manifest.files[names[rank]] = {digests[rank], std::stoll(sizes[rank])};
  }
  unfinished_->has_all_parts = true;
}

void Checkpoints::make_whole() {
  Manifest& manifest = unfinished_->manifest;
  const fs::path& temporary = unfinished_->temporary;
  auto add_text = [&](const char* name, const std::string& text) {
    write_text_atomically((temporary / name).string(), text);
    manifest.files[name] = described_file(temporary / name);
  };
  add_text("recipe.yaml", unfinished_->recipe_text);
  if (!unfinished_->config_text.empty()) add_text("config.json", unfinished_->config_text);
  write_manifest(temporary, manifest);
  put_checkpoint(temporary, folder_, manifest.step);
  unfinished_->whole_at = std::chrono::steady_clock::now();
  // A checkpoint of a later step is a damaged one that the run was not resumed from: it takes no one's place.
  std::vector<fs::path> all = list_checkpoints(folder_);
  std::erase_if(all, [&](const fs::path& path) { return *step_of_name(path) > manifest.step; });
  for (size_t i = 0; i + static_cast<size_t>(unfinished_->keep_last) < all.size(); ++i) {
    const bool is_best = std::any_of(manifest.best.begin(), manifest.best.end(),
                                     [&](const BestStep& best) { return best.step == step_of_name(all[i]); });
    if (!is_best) remove_checkpoint(all[i]);
  }
}

void Checkpoints::save(int64_t step, TrainingState& state, int64_t keep_last) {
  start(step, state, keep_last);
  write_own_part();
  collect_parts();
  if (mesh_.world().rank() == 0) make_whole();
  unfinished_.reset();
  mesh_.world().barrier();
}

void Checkpoints::reserve(TrainingState& state) { CheckpointPart(state.model, state.optimizer, mesh_).copy_to(copy_); }

void Checkpoints::begin(int64_t step, TrainingState& state, int64_t keep_last) {
  MT_CHECK(writer_, "no writer to save with beside training");
  start(step, state, keep_last);
  unfinished_->part.copy_to(copy_);
  unfinished_->ticket = writer_->post([this] { write_own_part(); });
}

std::optional<int64_t> Checkpoints::unfinished() const {
  return unfinished_ ? std::optional(unfinished_->manifest.step) : std::nullopt;
}

bool Checkpoints::has_done_its_part() {
  if (!unfinished_) return true;
  if (!writer_->is_done(unfinished_->ticket)) return false;
  writer_->wait(unfinished_->ticket);  // throws what the job threw
  return true;
}

std::optional<Checkpoints::Time> Checkpoints::advance() {
  MT_CHECK(unfinished_, "no checkpoint is unfinished");
  MT_CHECK(has_done_its_part(), "step ", unfinished_->manifest.step, " is still being written");
  const bool leads = mesh_.world().rank() == 0;
  if (!unfinished_->has_all_parts) {
    collect_parts();
    if (leads) unfinished_->ticket = writer_->post([this] { make_whole(); });
    return std::nullopt;
  }
  const Time whole_at = leads ? unfinished_->whole_at : std::chrono::steady_clock::now();
  unfinished_.reset();
  return whole_at;
}

Checkpoints::Time Checkpoints::finish() {
  std::optional<Time> whole_at;
  while (!whole_at) {
    writer_->wait(unfinished_->ticket);
    whole_at = advance();
  }
  mesh_.world().barrier();
  return *whole_at;
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
  const size_t num_saved = saved.names().size(), num_trained = num_trained_of_all_stages(state.model);
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

void load_weights(const SavedState& saved, Model& model, TrainedSlabs* trained) {
  at::NoGradGuard no_grad;
  const auto read = [&](const FlatGroup::Piece& piece, const at::Tensor& target) {
    saved.read(SavedKind::kMaster, piece.parameter->name(), block_of(*piece.parameter), piece.first, target);
  };
  if (!model.open_stacks.empty()) {
    model.choose_experts(saved.chosen_experts(), [&](LayerId layer, ParameterSet& parameters) {
      if (trained != nullptr) trained->take(parameters.of_layer(layer));
    });
  }
  for (Parameter& parameter : model.parameters.all()) {
    require_same_experts(saved, parameter);
    if (trained != nullptr && trained->of(parameter) != nullptr) continue;
    parameter.master().copy_(saved.read(SavedKind::kMaster, parameter.name(), block_of(parameter)));
    parameter.refresh_working();
  }
  for (TrainedSlab* slab : trained != nullptr ? trained->all() : std::vector<TrainedSlab*>()) {
    for (const FlatGroup::Piece& piece : slab->group().own_pieces()) {
      read(piece, slab->master().narrow(0, piece.in_shard, piece.count));
    }
    slab->publish_masters();
  }
  load_router_biases(saved, model);
}

}  // namespace moetune
