// A low-rank adapter of one linear map or of a stack of them (Hu et al. 2021, LoRA): delta y = s * B A dropout(x).
//
//   std::optional<AdapterSpec> spec = targets.match("model.layers.3.self_attn.q_a_proj", "attention");
//   if (spec) adapter = std::make_unique<Adapter>(*spec, place, ...);
//
// A starts as PEFT starts it, kaiming-uniform with a = sqrt(5), i.e. uniform in [-1/sqrt(I), 1/sqrt(I)); B starts at
// zero.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "lora/adapters/parameter.h"
#include "lora/formats/matrix_cut.h"

namespace moetune {

/// s of an adapter: alpha / R, or alpha / sqrt(R) with rsLoRA (Kalajdzievski 2023).
double adapter_scale(double alpha, int64_t rank, bool rslora);

struct AdapterSpec {
  int64_t rank = 0;
  double scale = 1.0;    ///< adapter_scale()
  double dropout = 0.0;  ///< probability that an input feature of the adapter is dropped
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
  };
  AdapterTargets() = default;  ///< matches nothing
  explicit AdapterTargets(Options options) : options_(std::move(options)), matches_(options_.targets.size()) {}

  /// The adapter of the linear map named `leaf` ("q_a_proj"; "experts.gate_proj" for routed experts) in `group`.
  std::optional<AdapterSpec> match(const std::string& leaf, const std::string& group);
  /// Throws UserError that names each target that matched no map of the model, and the maps there are.
  void require_all_matched() const;

 private:
  Options options_;
  std::vector<int64_t> matches_;
  std::vector<std::string> seen_;
};

/// Where randomness and dropout of the step stand: masks are a function of (seed, step, name, token, feature).
struct StepRandom {
  uint64_t seed = 0;
  int64_t step = 0;
  bool training = false;  ///< false: no dropout
};

/// A [R, I] and B [O, R] of one linear map, or A [e, R, I] and B [e, O, R] of a stack of e experts. Of a map that is
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
  bool drops(const StepRandom& random) const { return random.training && spec_.dropout > 0.0; }

 private:
  AdapterSpec spec_;
  std::string name_;
  int64_t inputs_, first_input_;  // of the whole map; of the part held
  Parameter* a_;
  Parameter* b_;
};

/// Name of one expert's tensor of a stack: '*' becomes the number.
std::string expert_name(const std::string& stack_name, int64_t expert);

}  // namespace moetune
