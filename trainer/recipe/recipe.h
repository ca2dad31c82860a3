// The recipe: everything that a run is told, one plain struct per section of the YAML file.
//
//   const Recipe recipe = load_recipe("recipes/tiny.yaml", {"train.steps=10", "adapter.targets=[attention, experts]"});
//   if (recipe.adapter) use(recipe.adapter->rank, recipe.train.optimizer.lr);
//   write_file(run_dir / "recipe.yaml", dump_resolved(recipe));   // loads again to the same values
//
// The member initialisers below are the defaults. What a key means, its unit and what it may be stand once, in
// recipe_schema.h; loading, checking, dumping and docs/recipes.md read them there. An empty std::optional is the word
// `auto`, `null` or `none` of the file, as the member's comment says.
#pragma once

#include <array>
#include <concepts>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "lora/adapters/narrowing.h"
#include "lora/formats/base_format.h"
#include "moe/blueprint.h"
#include "parallel/base/choice.h"
#include "parallel/comm/shard_scope.h"
#include "trainer/recipe/recipe_targets.h"

namespace moetune {

// Choices (parallel/base/choice.h). BaseFormat, BalanceKind and ShardScope are those of the parts that they are told.

enum class DeviceChoice { kAuto, kCpu, kCuda };
constexpr std::array<std::string_view, 3> words_of(DeviceChoice) { return {"auto", "cpu", "cuda"}; }

enum class WeightOrigin { kPretrained, kRandom };
constexpr std::array<std::string_view, 2> words_of(WeightOrigin) { return {"pretrained", "random"}; }

enum class ComputeType { kBf16, kFp32, kFp64 };
constexpr std::array<std::string_view, 3> words_of(ComputeType) { return {"bf16", "fp32", "fp64"}; }

enum class SpecialTokens { kAsText, kReject, kAllow };
constexpr std::array<std::string_view, 3> words_of(SpecialTokens) { return {"as_text", "reject", "allow"}; }

enum class TrainOn { kAssistant, kAll };
constexpr std::array<std::string_view, 2> words_of(TrainOn) { return {"assistant", "all"}; }

enum class Thoughts { kRefuse, kKeep };
constexpr std::array<std::string_view, 2> words_of(Thoughts) { return {"refuse", "keep"}; }

enum class AddBos { kAuto, kTrue, kFalse };
constexpr std::array<std::string_view, 3> words_of(AddBos) { return {"auto", "true", "false"}; }

enum class ScheduleKind { kCosine, kLinear, kConstant };
constexpr std::array<std::string_view, 3> words_of(ScheduleKind) { return {"cosine", "linear", "constant"}; }

enum class RouterBias { kFrozen, kUpdate };
constexpr std::array<std::string_view, 2> words_of(RouterBias) { return {"frozen", "update"}; }

enum class RouterTraining { kNone, kLora, kFull };
constexpr std::array<std::string_view, 3> words_of(RouterTraining) { return {"none", "lora", "full"}; }

enum class AsyncSave { kAuto, kTrue, kFalse };
constexpr std::array<std::string_view, 3> words_of(AsyncSave) { return {"auto", "true", "false"}; }

/// What the gradients of a layer's trained matrices add up in; fp32: fp64 where that is computed in.
enum class GradientType { kFp32, kBf16 };
constexpr std::array<std::string_view, 2> words_of(GradientType) { return {"fp32", "bf16"}; }

enum class Rounding { kNearest, kStochastic };
constexpr std::array<std::string_view, 2> words_of(Rounding) { return {"nearest", "stochastic"}; }

enum class OffloadTier { kNone, kHost };
constexpr std::array<std::string_view, 2> words_of(OffloadTier) { return {"none", "host"}; }

/// What layers keep of their way down instead of recomputing it on the way up (moe/keep.h).
struct KeepLayers {
  enum class Kind { kAuto, kNone, kAttention, kExperts, kAll, kCount };
  Kind kind = Kind::kAuto;
  int64_t num_layers = 0;  ///< with kCount only: the last so many keep all, the others nothing
  bool operator==(const KeepLayers&) const = default;
};

/// How much of the frozen weights lies in host memory and streams in for each use.
struct OffloadFrozen {
  enum class Kind { kAuto, kNone, kAll, kBytes };
  Kind kind = Kind::kAuto;
  int64_t bytes = 0;  ///< of a rank at the most, with kBytes only
  bool operator==(const OffloadFrozen&) const = default;
};

/// A value that is handed on as it stands: true or false, a number, text.
using Scalar = std::variant<bool, int64_t, double, std::string>;
using ScalarMap = std::map<std::string, Scalar>;

/// What data is read from: paths of files or folders, or patterns (data_files.h), and how often an epoch takes each
/// document of them.
struct DataEntry {
  std::string path;
  double weight = 1.0;
  bool operator==(const DataEntry&) const = default;
};
struct DataFiles {
  std::vector<DataEntry> entries;
  static DataFiles of(const std::string& path) { return {{{path}}}; }
  bool operator==(const DataFiles&) const = default;
};

// Sections, in the order of the file.

struct RunRecipe {
  std::string dir;  ///< required
  int64_t seed = 17;
  DeviceChoice device = DeviceChoice::kAuto;
  int64_t threads = 0;                 ///< CPU threads per rank; 0: automatic
  double stall_timeout_s = 30.0;       ///< 0: no watchdog
  int64_t check_replicas_every = 50;   ///< steps; 0: only at the start and before saves
  std::optional<std::string> machine;  ///< null: the figures that come with the program
  bool operator==(const RunRecipe&) const = default;
};

struct ModelRecipe {
  std::string path;  ///< required
  WeightOrigin weights = WeightOrigin::kPretrained;
  BaseFormat base = BaseFormat::kNf4;
  ComputeType compute = ComputeType::kBf16;
  std::optional<std::string> cache;  ///< null: none
  bool operator==(const ModelRecipe&) const = default;
};

struct AdapterRecipe {
  int64_t rank = 16;
  double alpha = 16.0;  ///< not given in the file: the rank
  double dropout = 0.0;
  bool rslora = false;
  std::vector<std::string> targets = {"attention"};  ///< groups and leaf names, checked: see target_leaves
  std::map<std::string, int64_t> ranks;              ///< leaf name -> rank, overrides `rank`
  LayerChoice layers;
  ExpertChoice experts;
  std::optional<std::string> from;  ///< null: fresh adapters
  bool operator==(const AdapterRecipe&) const = default;
};

struct DataRecipe {
  DataFiles train;  ///< required
  std::optional<DataFiles> eval;
  double eval_split = 0.0;           ///< 0: nothing is taken off the training data
  std::optional<std::string> cache;  ///< null: `.moetune` beside each file
  int64_t max_tokens = 4096;         ///< of one packed sequence
  bool packing = true;
  bool shuffle = true;
  SpecialTokens special_tokens_in_content = SpecialTokens::kAsText;
  TrainOn train_on = TrainOn::kAssistant;
  Thoughts thoughts = Thoughts::kRefuse;
  AddBos add_bos = AddBos::kAuto;
  ScalarMap chat_template_kwargs;
  std::vector<std::string> ignore_keys;
  bool operator==(const DataRecipe&) const = default;
};

struct OptimizerRecipe {
  double lr = 2.0e-4;
  double lr_b_ratio = 1.0;
  std::array<double, 2> betas = {0.9, 0.999};
  double eps = 1.0e-8;
  double weight_decay = 0.0;
  Rounding rounding = Rounding::kNearest;
  bool operator==(const OptimizerRecipe&) const = default;
};

struct ScheduleRecipe {
  ScheduleKind kind = ScheduleKind::kCosine;
  int64_t warmup_steps = 0;
  double min_lr_ratio = 0.0;
  bool operator==(const ScheduleRecipe&) const = default;
};

struct TrainRecipe {
  std::optional<int64_t> steps;  ///< exactly one of steps and epochs has a value
  std::optional<int64_t> epochs;
  /// named parts of the model whose own weights train (words of ModelPart); empty: auto, which is all of them with
  /// `adapter: none`, and none beside adapters
  std::optional<std::vector<std::string>> parts;
  ExpertChoice experts;                 ///< of the part experts those that train
  int64_t batch = 64;                   ///< sequences per optimizer step over the whole mesh
  std::optional<int64_t> slice_tokens;  ///< empty: auto
  KeepLayers keep;
  double clip = 1.0;  ///< 0: no clipping
  GradientType gradients = GradientType::kFp32;
  OptimizerRecipe optimizer;
  ScheduleRecipe schedule;
  bool operator==(const TrainRecipe&) const = default;
};

struct MeshRecipe {
  int64_t pp = 1;
  std::vector<int64_t> pp_layers;    ///< blocks of each stage; empty: cut by cost
  std::optional<int64_t> pp_groups;  ///< empty: auto
  std::optional<int64_t> dp;         ///< empty: auto
  int64_t ep = 1;
  int64_t tp = 1;
  int64_t expert_tp = 1;
  ShardScope shard = ShardScope::kNone;
  bool operator==(const MeshRecipe&) const = default;
};

struct OffloadRecipe {
  OffloadFrozen frozen;
  OffloadTier activations = OffloadTier::kNone;
  OffloadTier trained = OffloadTier::kNone;
  OffloadTier optimizer = OffloadTier::kHost;
  OffloadTier gradients = OffloadTier::kHost;
  bool operator==(const OffloadRecipe&) const = default;
};

struct ExchangeRecipe {
  std::optional<int64_t> buffer_rows;  ///< empty: auto
  bool operator==(const ExchangeRecipe&) const = default;
};

struct BalanceRecipe {
  BalanceKind kind = BalanceKind::kNone;
  std::optional<double> weight;  ///< empty: auto
  bool operator==(const BalanceRecipe&) const = default;
};

struct RouterRecipe {
  RouterTraining train = RouterTraining::kNone;
  RouterBias bias = RouterBias::kFrozen;
  double bias_rate = 0.001;
  double balance_loss = 0.0;
  BalanceRecipe balance;
  bool operator==(const RouterRecipe&) const = default;
};

struct MtpRecipe {
  double loss_weight = 0.0;
  bool trains() const { return loss_weight > 0.0; }
  bool operator==(const MtpRecipe&) const = default;
};

struct CheckpointRecipe {
  int64_t every_steps = 0;     ///< 0: only at the end
  double every_minutes = 0.0;  ///< 0: not by the clock
  int64_t keep_last = 2;
  int64_t keep_best = 0;  ///< above 0: needs data.eval and eval.every_steps
  AsyncSave async = AsyncSave::kAuto;
  bool operator==(const CheckpointRecipe&) const = default;
};

struct EvalRecipe {
  int64_t every_steps = 0;  ///< 0: never during training
  bool at_start = false;
  int64_t max_sequences = 0;  ///< 0: all
  bool operator==(const EvalRecipe&) const = default;
};

struct Recipe {
  RunRecipe run;
  ModelRecipe model;
  std::optional<AdapterRecipe> adapter = AdapterRecipe{};  ///< empty: `adapter: none`, weights themselves train
  DataRecipe data;
  TrainRecipe train;
  MeshRecipe mesh;
  OffloadRecipe offload;
  ExchangeRecipe exchange;
  RouterRecipe router;
  MtpRecipe mtp;
  CheckpointRecipe checkpoint;
  EvalRecipe eval;
  bool deterministic = false;

  /// Where each given value came from: "train.optimizer.lr" -> "recipe.yaml:12" or "command line". Absent: the default.
  std::map<std::string, std::string> origins;

  /// "recipe.yaml:12", "command line" or "default", for messages about `key`.
  std::string origin(const std::string& key) const;
};

}  // namespace moetune
