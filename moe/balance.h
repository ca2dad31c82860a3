// Auxiliary losses that spread tokens over experts, of a whole step: one sum for each layer, or over all of them, of
// loads f that are counted, times mean probabilities P that are differentiable.
//
//   StepBalance balance(spec, router.spec(), {documents, tokens}, axis);
//   balance.count(layer, score_TE, router.probabilities(score_TE), expert_TK, slice);   // way down, slice by slice
//   balance.close(sum_over_data_ranks);                      // once, between the ways
//   at::Tensor d_TE = balance.gradient(layer, slice_idx, slice);   // way up: d loss / d probability, no graph needed
//
// With T tokens in the step on all ranks, n_i choices of expert i among the K of each, p_ti its probability for token
// t (Router::probabilities), a the weight:
//
//   sequence     DeepSeek-V3 report eq. 17-20: for each document of T tokens a sum_i f_i P_i, f_i = E / (K T) times its
//                tokens with i in the top K of the plain scores, P_i = mean_t p_ti; the mean over documents, summed
//                over layers
//   switch       Shazeer et al. 2017, Fedus et al. 2021 (eq. 4-6): a E sum_i f_i P_i, f_i = n_i / T, P_i = mean_t p_ti;
//                summed over layers. All K choices count: K where the load is even
//   pooled       load_balancing_loss_func in transformers: the same with n_i, T and the mean taken over the tokens of
//                all layers together, once
//   deepseek_v2  DeepSeek-V2 report eq. 23-31, summed over layers, a times
//                  0.003 sum_i f_i P_i      f_i = E / (K T) n_i
//                + 0.05 sum_d f'_d P'_d     f'_d = mean of f_i, P'_d = sum of P_i over the experts of device d
//                + 0.02 sum_d f''_d P'_d    f''_d = D / (M T) times tokens with a choice on d
//                A device is one of the model's D groups, M of which a token may reach, whatever the mesh is; f and P
//                are means over the step, where the report has those of a sequence. Of one group the last two are
//                constants, and left out
//
// What is counted is that of all ranks and slices, summed on the way down and held fixed on the way up; padding never
// counts. The losses are linear in p, so that the way up needs no more than their coefficients.
#pragma once

#include <torch/types.h>

#include <functional>
#include <map>
#include <optional>
#include <vector>

#include "moe/attention/slice.h"
#include "moe/blueprint.h"
#include "parallel/comm/tensor_axis.h"

namespace moetune {

struct BalanceSpec {
  BalanceKind kind = BalanceKind::kNone;  ///< never kAuto
  double weight = 0.0;                    ///< a
  bool is_on() const { return kind != BalanceKind::kNone && weight > 0.0; }
  /// Whether its gradient takes the loads of the whole step; else those of each document are enough.
  bool takes_whole_loads() const { return is_on() && kind != BalanceKind::kSequence; }
  bool operator==(const BalanceSpec&) const = default;
};

/// What is meant by a kind, kAuto too, and a weight; without a weight the kind's usual one: sequence 0.0001 (V3
/// report), switch 0.01 (Fedus et al.), pooled 0.001 (transformers), deepseek_v2 1. Throws UserError where the router
/// cannot have that loss.
BalanceSpec balance_of(BalanceKind kind, std::optional<double> weight, const RouterSpec& router);

/// Over all ranks.
struct BalanceTotals {
  int64_t documents = 0, tokens = 0;
  int64_t layers = 0;  ///< of a pooled loss; 0: those that are counted here
};

class StepBalance {
 public:
  /// `axis`: the ranks among which the rows of a slice are spread.
  StepBalance(const BalanceSpec& spec, const RouterSpec& router, const BalanceTotals& totals,
              const TensorAxis& axis = {}, at::Device device = at::kCPU);

  /// The next slice of a layer. `layer`: any number that tells layers apart. expert_TK: E for padding. Collective over
  /// the axis.
  void count(int64_t layer, const at::Tensor& score_TE, const at::Tensor& probability_TE, const at::Tensor& expert_TK,
             const Slice& slice);
  /// Adds a tensor in place over ranks.
  using Sum = std::function<void(const at::Tensor&)>;
  /// Every layer was counted. `sum_over_documents`: over the ranks that take other documents; called once, or not at
  /// all where nothing is to be added. `sum_over_stages`: over those that have the other layers of these documents;
  /// called once of a pooled loss alone. Collective over those ranks and the axis.
  void close(const Sum& sum_over_documents, const Sum& sum_over_stages = [](const at::Tensor&) {});
  /// d loss / d probability_TE of a slice, numbered from 0 in the order of count(); behind close().
  at::Tensor gradient(int64_t layer, size_t slice_idx, const Slice& slice) const;
  /// These rows' part of the loss, weight included, a scalar: over all ranks the parts add up. Behind close();
  /// undefined where no layer was counted.
  at::Tensor loss() const;

 private:
  struct Layer {
    std::vector<at::Tensor> fraction_BE;  ///< sequence: f by slice, of B documents
    at::Tensor count_C;                   ///< others: n_i; of deepseek_v2 behind them the tokens that reach each device
    at::Tensor probability_E;             ///< sum over these rows
    at::Tensor coefficient_E;             ///< d loss / d p_ti
  };
  void count_documents(Layer& layer, const at::Tensor& score_TE, const at::Tensor& probability_TE, const Slice& slice);
  at::Tensor counts(const at::Tensor& expert_TK) const;
  /// d loss / d p_ti from the loads of the step.
  at::Tensor coefficient(const at::Tensor& count_C, int64_t layers_together) const;
  double per_document() const;

  BalanceSpec spec_;
  RouterSpec router_;
  BalanceTotals totals_;
  TensorAxis axis_;
  at::Device device_;
  at::ScalarType dtype_ = at::kFloat;  ///< of probabilities
  std::map<int64_t, Layer> layers_;
  at::Tensor documents_loss_;  ///< sequence: sum over documents and layers, without weight
};

}  // namespace moetune
