// A low-rank adapter of one linear map or of a stack of them (Hu et al. 2021, LoRA): delta y = s * B A dropout(x).
//
//   std::optional<AdapterSpec> spec = targets.match("q_a_proj", "attention", LayerId::block(3));
//   if (spec) adapter = std::make_unique<Adapter>(*spec, place, ...);
//
// A starts as PEFT starts it, kaiming-uniform with a = sqrt(5), i.e. uniform in [-1/sqrt(I), 1/sqrt(I)); B starts at
// zero.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "lora/adapters/narrowing.h"
#include "lora/adapters/parameter.h"
#include "lora/formats/matrix_cut.h"

namespace moetune {

/// s of an adapter: alpha / R, or alpha / sqrt(R) with rsLoRA (Kalajdzievski 2023).
double adapter_scale(double alpha, int64_t rank, bool rslora);

struct AdapterSpec {
  int64_t rank = 0;
  double scale = 1.0;         ///< adapter_scale()
  double dropout = 0.0;       ///< probability that an input feature of the adapter is dropped
  StackExperts experts = {};  ///< of a stack: those that have adapters
};

/// Which linear maps get an adapter, and which. Counts what it matched, so that a target without a match is an error.
class AdapterTargets {
 public:
  struct Options {
    /// groups (attention, dense_mlp, shared_expert, experts, all_linear) or map names
    std::vector<std::string> targets;
    int64_t rank = 0;
    double alpha = 0.0;
    bool rslora = false;
    double dropout = 0.0;
    std::vector<std::pair<std::string, int64_t>> ranks;  ///< rank of single maps, by name
    LayerChoice layers = {};
    ExpertChoice experts = {};
  };
  AdapterTargets() = default;  ///< matches nothing
  explicit AdapterTargets(Options options);

  /// The adapter of the linear map named `leaf` ("q_a_proj"; "experts.gate_proj" for routed experts) in `group` and
  /// `layer`; `stack`: experts of a stack, 0 of a plain map.
  std::optional<AdapterSpec> match(const std::string& leaf, const std::string& group, LayerId layer, int64_t stack = 0);
  /// Throws UserError that names each target, layer and expert that matched no map of the model, and what there is.
  void require_all_matched() const;

 private:
  void require_experts_matched() const;

  Options options_;
  std::vector<int64_t> matches_;        // by target
  std::vector<int64_t> layer_matches_;  // by range of layers, the MTP module's block last
  std::vector<std::string> seen_;
  int64_t most_experts_ = 0;  // of a stack among the matches
  int64_t last_layer_ = -1;
};

/// Where randomness and dropout of the step stand: masks are a function of (seed, step, name, token, feature).
struct StepRandom {
  uint64_t seed = 0;
  int64_t step = 0;
  bool training = false;  ///< false: no dropout
};

/// A [R, I] and B [O, R] of one linear map, or A [e, R, I] and B [e, O, R] of a stack of e experts: of those that the
/// spec names the ones that lie here, none perhaps. Of a map that is
/// cut, B has the outputs or A the inputs that this rank holds; the other is whole, and its gradient here that of this
/// rank's part of the map.
class Adapter {
 public:
  /// Adds its two parameters to `parameters`. `info` carries name (of the map, without ".lora_A.weight"), layer, group
  /// and, for a stack, replicas, first_expert and num_experts; expert e of a stack starts as the stream of its own name
  /// says. outputs and inputs are those of the whole map; `cut`: the part of it, of a stack the part of each map, held
  /// here, which starts as that part of the whole does.
  Adapter(const AdapterSpec& spec, const ParameterInfo& info, int64_t local_experts, int64_t outputs, int64_t inputs,
          uint64_t seed, ParameterSet& parameters, const MatrixCut& cut = {});

  /// `x` with features dropped for this step and rescaled: [rows, inputs held here] like x; x itself without dropout.
  at::Tensor drop(const at::Tensor& x, const at::Tensor& global_token, const StepRandom& random) const;

  /// Numbers in A and B for each of `units` maps.
  static int64_t numbers(int64_t rank, int64_t units, int64_t outputs, int64_t inputs) {
    return units * rank * (outputs + inputs);
  }

  Parameter& a() const { return *a_; }
  Parameter& b() const { return *b_; }
  double scale() const { return spec_.scale; }
  int64_t rank() const { return spec_.rank; }
  /// Of a stack: the experts of A and B, in order, numbered among those of this rank.
  const std::vector<int64_t>& experts() const { return experts_; }
  /// Of a stack: whether every expert has one, whatever rank holds it.
  bool of_all_experts() const { return spec_.experts.are_all(); }
  bool drops(const StepRandom& random) const { return random.training && spec_.dropout > 0.0; }

 private:
  AdapterSpec spec_;
  std::string name_;
  std::vector<int64_t> experts_;
  int64_t inputs_, first_input_;  // of the whole map; of the part held
  Parameter* a_;
  Parameter* b_;
};

/// Name of one expert's tensor of a stack: '*' becomes the number.
std::string expert_name(const std::string& stack_name, int64_t expert);

}  // namespace moetune
