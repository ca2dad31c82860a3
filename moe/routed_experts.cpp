#include "moe/routed_experts.h"

#include <algorithm>
#include <numeric>

#include "parallel/base/error.h"

namespace moetune {
namespace {

// Rows of an optional per-row tensor that a chunk covers.
at::Tensor part(const at::Tensor& rows, const ExpertChunk& chunk) {
  return rows.defined() ? rows.narrow(0, chunk.first_row, chunk.groups.num_rows()) : rows;
}

}  // namespace

std::vector<at::Tensor> RowFields::tensors() const {
  std::vector<at::Tensor> travelling;
  for (const at::Tensor* field : {&z, &weight, &expert, &token, &d_routed}) {
    if (field->defined()) travelling.push_back(*field);
  }
  return travelling;
}

RowFields RowFields::of_received(std::vector<at::Tensor> tensors) const {
  RowFields received = *this;
  auto next = tensors.begin();
  for (at::Tensor* field : {&received.z, &received.weight, &received.expert, &received.token, &received.d_routed}) {
    if (field->defined()) *field = std::move(*next++);
  }
  MT_CHECK(next == tensors.end(), tensors.size(), " tensors came of a row's fields, not as many as went out");
  return received;
}

RoutedExperts::RoutedExperts(ExpertMlp mlp, ExpertPlacement placement, int64_t chunk_experts, TokenExchange& exchange,
                             const TensorAxis& axis)
    : mlp_(std::move(mlp)),
      placement_(placement),
      chunk_experts_(std::min(chunk_experts, placement.count)),
      exchange_(exchange),
      axis_(axis) {
  MT_CHECK(placement.count * exchange.num_ranks() == placement.total, placement.count, " experts on each of ",
           exchange.num_ranks(), " ranks, of ", placement.total);
  if (axis.index() > 0) mlp_.down().leave_bias();
}

int64_t RoutedExperts::scratch_elements() const { return chunk_experts_ * mlp_.scratch_elements_per_expert(); }

RoutingRecord RoutedExperts::route(const at::Tensor& expert_TK) const {
  at::NoGradGuard no_grad;
  RoutingRecord record;
  record.expert_UK = gathered(expert_TK.to(at::kShort));
  record.expert_TK = record.expert_UK.narrow(0, axis_.index() * expert_TK.size(0), expert_TK.size(0));
  record.rounds = exchange_.plan(record.expert_UK.to(at::kLong), placement_.total);
  return record;
}

std::vector<ExpertChunk> RoutedExperts::chunks(const std::vector<int64_t>& rows_of_expert, at::Device device) const {
  const RowGroups all = RowGroups::from_counts(rows_of_expert, device);
  std::vector<ExpertChunk> result;
  for (int64_t first = 0; first < placement_.count; first += chunk_experts_) {
    const int64_t count = std::min(chunk_experts_, placement_.count - first);
    result.push_back({first, count, all.begin(first), all.range(first, count)});
  }
  return result;
}

Dispatch RoutedExperts::send(const RoutingRecord& record, const RoutedInputs& inputs, const PassContext& pass,
                             const KeptExperts* kept) const {
  at::NoGradGuard no_grad;
  Dispatch sent;
  if (kept == nullptr) {
    sent.rows_U.z = gathered(inputs.z_TD);
    sent.rows_U.weight = gathered(inputs.weight_TK);
    sent.rows_U.expert = record.expert_UK;
    if (mlp_.drops(pass.random)) sent.rows_U.token = gathered(inputs.token_T).unsqueeze(1);
  }
  if (inputs.d_routed_TD.defined()) sent.rows_U.d_routed = gathered(inputs.d_routed_TD);
  sent.first = exchange_.send(record.rounds.front(), sent.rows_U.tensors());
  return sent;
}

RowFields RoutedExperts::receive(const RoutingRecord& record, size_t index, Dispatch& sent) const {
  return sent.rows_U.of_received(exchange_.receive(
      index == 0 ? std::move(sent.first) : exchange_.send(record.rounds[index], sent.rows_U.tensors())));
}

KeptExperts::Round RoutedExperts::grouped(const ExchangeRound& round, const RowFields& rows_Y) const {
  KeptExperts::Round rows;
  rows.y_YD = rows_Y.z;
  at::Tensor local_YK = rows_Y.expert.to(at::kLong).sub_(placement_.first);
  // Slots of other ranks' experts sort behind those of the last local expert and are cut off.
  at::Tensor foreign = local_YK.lt(0).logical_or_(local_YK.ge(placement_.count));
  const int64_t num_routed = std::accumulate(round.rows_of_expert.begin(), round.rows_of_expert.end(), int64_t{0});
  rows.slot_X = std::get<1>(local_YK.masked_fill_(foreign, placement_.count).flatten().sort(/*stable=*/true, 0, false))
                    .narrow(0, 0, num_routed);
  rows.row_X = rows.slot_X.floor_divide(rows_Y.weight.size(1));
  rows.weight_X = rows_Y.weight.flatten().index_select(0, rows.slot_X);
  if (rows_Y.token.defined()) rows.token_X = rows_Y.token.squeeze(1).index_select(0, rows.row_X);
  return rows;
}

at::Tensor RoutedExperts::forward(const RoutingRecord& record, Dispatch sent, PassContext& pass,
                                  KeptExperts* kept) const {
  at::NoGradGuard no_grad;
  at::Tensor routed_UD = at::zeros_like(sent.rows_U.z);
  const int64_t mark = pass.scratch.mark();
  for (size_t index = 0; index < record.rounds.size(); ++index) {
    const ExchangeRound& round = record.rounds[index];
    KeptExperts::Round rows = grouped(round, receive(record, index, sent));
    at::Tensor sum_YD = at::zeros_like(rows.y_YD);
    for (const ExpertChunk& chunk : chunks(round.rows_of_expert, routed_UD.device())) {
      const at::Tensor row_X = part(rows.row_X, chunk);
      const ExpertRows inputs{rows.y_YD.index_select(0, row_X), part(rows.weight_X, chunk), part(rows.token_X, chunk)};
      GateUp before;
      sum_YD.index_add_(0, row_X, mlp_.forward(chunk, inputs, pass, kept != nullptr ? &before : nullptr));
      if (kept != nullptr) rows.gate_up.push_back(std::move(before));
      pass.scratch.release_to(mark);
    }
    exchange_.back(round, sum_YD, routed_UD);
    if (kept != nullptr) kept->rounds.push_back(std::move(rows));
  }
  return axis_.reduce_scatter_rows(routed_UD);
}

ExpertGradients RoutedExperts::backward(const RoutingRecord& record, Dispatch sent, PassContext& pass,
                                        const KeptExperts* kept) const {
  at::NoGradGuard no_grad;
  const at::Tensor d_routed_UD = sent.rows_U.d_routed;
  const int64_t top_k = record.expert_UK.size(1);
  at::Tensor d_z_UD = at::zeros_like(d_routed_UD),
             d_weight_UK = at::zeros({d_routed_UD.size(0), top_k}, d_routed_UD.options());
  const int64_t mark = pass.scratch.mark();
  for (size_t index = 0; index < record.rounds.size(); ++index) {
    const ExchangeRound& round = record.rounds[index];
    const RowFields rows_Y = receive(record, index, sent);
    const KeptExperts::Round rows = kept != nullptr ? kept->rounds[index] : grouped(round, rows_Y);
    const at::Tensor& d_sum_YD = rows_Y.d_routed;
    at::Tensor d_y_YD = at::zeros_like(rows.y_YD);
    at::Tensor d_weight_YK = at::zeros({rows.y_YD.size(0), top_k}, d_sum_YD.options());
    size_t chunk_index = 0;
    for (const ExpertChunk& chunk : chunks(round.rows_of_expert, d_sum_YD.device())) {
      const at::Tensor row_X = part(rows.row_X, chunk);
      const ExpertRows inputs{rows.y_YD.index_select(0, row_X), part(rows.weight_X, chunk), part(rows.token_X, chunk)};
      const GateUp* before = rows.gate_up.empty() ? nullptr : &rows.gate_up[chunk_index++];
      const RowGradients d = mlp_.backward(chunk, inputs, d_sum_YD.index_select(0, row_X), pass, before);
      d_weight_YK.view(-1).index_copy_(0, part(rows.slot_X, chunk), d.d_weight_X);
      d_y_YD.index_add_(0, row_X, d.d_x_XD);
      pass.scratch.release_to(mark);
    }
    exchange_.back(round, d_y_YD, d_z_UD);
    exchange_.back(round, d_weight_YK, d_weight_UK);
  }
  return {axis_.reduce_scatter_rows(d_z_UD), axis_.reduce_scatter_rows(d_weight_UK)};
}

}  // namespace moetune
