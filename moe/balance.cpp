#include "moe/balance.h"

#include "moe/router.h"
#include "parallel/base/choice.h"
#include "parallel/base/error.h"
#include "parallel/device/tally.h"

namespace moetune {
namespace {

constexpr double kExpertAlpha = 0.003, kDeviceAlpha = 0.05, kCommunicationAlpha = 0.02;

double usual_weight(BalanceKind kind) {
  switch (kind) {
    case BalanceKind::kSequence: return 1e-4;
    case BalanceKind::kSwitch: return 0.01;
    case BalanceKind::kPooled: return 0.001;
    case BalanceKind::kDeepseekV2: return 1.0;
    case BalanceKind::kAuto:
    case BalanceKind::kNone: break;
  }
  return 0.0;
}

BalanceKind own_kind(const RouterSpec& router) {
  if (router.balance != BalanceKind::kAuto) return router.balance;
  if (router.scores == RouterSpec::Scores::kSigmoid) return BalanceKind::kSequence;
  return router.choice == RouterSpec::Choice::kGroupsByMax ? BalanceKind::kDeepseekV2 : BalanceKind::kSwitch;
}

// Documents of this slice, and one more that rows of padding are of.
at::Tensor document_sums(const at::Tensor& rows_TE, const Slice& slice) {
  at::Tensor zeros = at::zeros({slice.num_documents + 1, rows_TE.size(1)}, rows_TE.options());
  return zeros.index_add_(0, slice.document_T, rows_TE).narrow(0, 0, slice.num_documents);
}

at::Tensor lengths(const Slice& slice, at::ScalarType dtype) { return slice.document_length.to(dtype).unsqueeze(-1); }

}  // namespace

BalanceSpec balance_of(BalanceKind kind, std::optional<double> weight, const RouterSpec& router) {
  if (kind == BalanceKind::kAuto) kind = own_kind(router);
  if (kind == BalanceKind::kNone) {
    if (weight.value_or(0.0) > 0.0) {
      throw UserError(str("router.balance.weight is ", *weight,
                          ", but router.balance.kind is none; name a kind (auto is the family's own), or leave the "
                          "weight away"));
    }
    return {};
  }
  if (kind == BalanceKind::kDeepseekV2 && router.scores != RouterSpec::Scores::kSoftmax) {
    throw UserError(
        "router.balance.kind is deepseek_v2, whose losses are of softmax scores over all experts; this model's router "
        "has other scores: use sequence, switch or pooled");
  }
  return {kind, weight.value_or(usual_weight(kind))};
}

StepBalance::StepBalance(const BalanceSpec& spec, const RouterSpec& router, const BalanceTotals& totals,
                         const TensorAxis& axis, at::Device device)
    : spec_(spec), router_(router), totals_(totals), axis_(axis), device_(device) {
  MT_CHECK(spec.kind != BalanceKind::kAuto && spec.kind != BalanceKind::kNone, "a balance loss of kind ",
           to_string(spec.kind));
}

double StepBalance::per_document() const {
  return totals_.documents == 0 ? 0.0 : spec_.weight / static_cast<double>(totals_.documents);
}

void StepBalance::count(int64_t layer, const at::Tensor& score_TE, const at::Tensor& probability_TE,
                        const at::Tensor& expert_TK, const Slice& slice) {
  at::NoGradGuard no_grad;
  Layer& counted = layers_[layer];
  dtype_ = probability_TE.scalar_type();
  if (spec_.kind == BalanceKind::kSequence) return count_documents(counted, score_TE, probability_TE, slice);
  const int64_t real_rows = slice.num_rows - slice.num_padding;
  at::Tensor count_C = counts(expert_TK);
  at::Tensor probability_E = probability_TE.narrow(0, 0, real_rows).sum(0, false, at::kDouble);
  counted.count_C = counted.count_C.defined() ? counted.count_C + count_C : count_C;
  counted.probability_E = counted.probability_E.defined() ? counted.probability_E + probability_E : probability_E;
}

void StepBalance::count_documents(Layer& layer, const at::Tensor& score_TE, const at::Tensor& probability_TE,
                                  const Slice& slice) {
  const at::Tensor length = lengths(slice, score_TE.scalar_type());
  at::Tensor chosen = at::zeros_like(score_TE).scatter_(-1, top_indices(score_TE, router_.top_k), 1.0);
  at::Tensor times_chosen = document_sums(chosen, slice);
  axis_.sum(times_chosen);
  at::Tensor fraction = times_chosen / length * (static_cast<double>(router_.experts) / router_.top_k);
  const at::Tensor loss = (fraction * (document_sums(probability_TE, slice) / length)).sum();
  documents_loss_ = documents_loss_.defined() ? documents_loss_ + loss : loss;
  layer.fraction_BE.push_back(std::move(fraction));
}

at::Tensor StepBalance::counts(const at::Tensor& expert_TK) const {
  const at::Tensor count_E = tally(expert_TK, router_.experts);
  if (spec_.kind != BalanceKind::kDeepseekV2) return count_E;
  // A choice of E, of padding, is on a device behind the last, which is cut off.
  const at::Tensor device_TK = expert_TK.floor_divide(router_.experts / router_.num_groups);
  const at::Tensor reached = at::zeros({expert_TK.size(0), router_.num_groups + 1}, expert_TK.options());
  return at::cat({count_E, reached.scatter_(1, device_TK, 1).sum(0).narrow(0, 0, router_.num_groups)});
}

void StepBalance::close(const Sum& sum_over_documents, const Sum& sum_over_stages) {
  if (!spec_.takes_whole_loads()) return;
  at::Tensor count_LC, together;
  if (!layers_.empty()) {
    std::vector<at::Tensor> counts;
    for (const auto& [number, layer] : layers_) counts.push_back(layer.count_C);
    count_LC = at::stack(counts);
    axis_.sum(count_LC);
    sum_over_documents(count_LC);
  }
  if (spec_.kind == BalanceKind::kPooled) {
    // A stage may have no such layer, and is waited for by those that have.
    const at::Tensor all_E = count_LC.defined()
                                 ? count_LC.sum(0)
                                 : at::zeros({router_.experts}, at::TensorOptions(at::kLong).device(device_));
    sum_over_stages(all_E);
    together = coefficient(all_E, totals_.layers > 0 ? totals_.layers : static_cast<int64_t>(layers_.size()));
  }
  const bool pooled = together.defined();
  int64_t row = 0;
  for (auto& [number, layer] : layers_) {
    layer.count_C = count_LC[row++];
    layer.coefficient_E = pooled ? together : coefficient(layer.count_C, 1);
  }
}

at::Tensor StepBalance::coefficient(const at::Tensor& count_C, int64_t layers_together) const {
  const int64_t E = router_.experts, D = router_.num_groups;
  const at::Tensor n_E = count_C.narrow(0, 0, E).to(at::kDouble);
  const double T = static_cast<double>(totals_.tokens * layers_together);
  if (T == 0.0) return at::zeros_like(n_E);
  if (spec_.kind != BalanceKind::kDeepseekV2) return n_E * (spec_.weight * static_cast<double>(E) / (T * T));
  const at::Tensor f_E = n_E * (static_cast<double>(E) / (static_cast<double>(router_.top_k) * T));
  at::Tensor sum_E = f_E * kExpertAlpha;
  if (D > 1) {
    const at::Tensor device_D = f_E.view({D, E / D}).mean(1);
    const at::Tensor sent_D = count_C.narrow(0, E, D).to(at::kDouble) *
                              (static_cast<double>(D) / (static_cast<double>(router_.top_groups) * T));
    sum_E = sum_E + (device_D * kDeviceAlpha + sent_D * kCommunicationAlpha).repeat_interleave(E / D);
  }
  return sum_E * (spec_.weight / T);
}

at::Tensor StepBalance::gradient(int64_t layer, size_t slice_idx, const Slice& slice) const {
  at::NoGradGuard no_grad;
  const Layer& counted = layers_.at(layer);
  if (spec_.kind == BalanceKind::kSequence) {
    const at::Tensor& fraction = counted.fraction_BE.at(slice_idx);
    const at::Tensor d_BE =
        fraction * at::full({}, per_document(), fraction.options()) / lengths(slice, fraction.scalar_type());
    return at::constant_pad_nd(d_BE, {0, 0, 0, 1}).index_select(0, slice.document_T);
  }
  const at::Tensor d_E = counted.coefficient_E.to(dtype_);
  at::Tensor d_TE = d_E.expand({slice.num_rows, router_.experts});
  if (slice.num_padding == 0) return d_TE;
  d_TE = d_TE.clone();
  d_TE.narrow(0, slice.num_rows - slice.num_padding, slice.num_padding).zero_();
  return d_TE;
}

at::Tensor StepBalance::loss() const {
  if (layers_.empty()) return {};
  if (spec_.kind == BalanceKind::kSequence) return documents_loss_ * per_document();
  at::Tensor sum;
  for (const auto& [number, layer] : layers_) {
    const at::Tensor part = layer.coefficient_E.dot(layer.probability_E);
    sum = sum.defined() ? sum + part : part;
  }
  return sum;
}

}  // namespace moetune
