#include "moe/routed_experts.h"

#include <algorithm>
#include <numeric>
#include <optional>

#include "moe/row_gather.h"
#include "parallel/base/error.h"
#include "parallel/device/trace_range.h"

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
  const TraceRange range("route");
  RoutingRecord record;
  record.expert_UK = gathered(expert_TK.to(at::kShort));
  record.expert_TK = record.expert_UK.narrow(0, axis_.index() * expert_TK.size(0), expert_TK.size(0));
  record.rounds = exchange_.plan(record.expert_UK.to(at::kLong), placement_.total);
  return record;
}

std::vector<ExpertChunk> RoutedExperts::chunks(const std::vector<int64_t>& rows_of_expert, at::Device device) const {
  std::vector<ExpertChunk> result;
  int64_t first = 0, first_row = 0;
  for (RowGroups& groups : RowGroups::runs(rows_of_expert, chunk_experts_, device)) {
    const int64_t count = groups.num_groups(), rows = groups.num_rows();
    result.push_back({first, count, first_row, std::move(groups)});
    first += count;
    first_row += rows;
  }
  return result;
}

Dispatch RoutedExperts::send(const RoutingRecord& record, const RoutedInputs& inputs, const PassContext& pass,
                             const KeptExperts* kept) const {
  at::NoGradGuard no_grad;
  const TraceRange range("send");
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
  const TraceRange range("receive");
  return sent.rows_U.of_received(exchange_.receive(
      index == 0 ? std::move(sent.first) : exchange_.send(record.rounds[index], sent.rows_U.tensors())));
}

KeptExperts::Round RoutedExperts::grouped(const ExchangeRound& round, const RowFields& rows_Y) const {
  const TraceRange range("sorting");
  KeptExperts::Round rows;
  rows.y_YD = rows_Y.z;
  at::Tensor local_YK = rows_Y.expert.to(at::kLong).sub_(placement_.first);
  // Slots of other ranks' experts sort behind those of the last local expert and are cut off.
  at::Tensor foreign = local_YK.lt(0).logical_or_(local_YK.ge(placement_.count));
  const int64_t num_routed = std::accumulate(round.rows_of_expert.begin(), round.rows_of_expert.end(), int64_t{0});
  rows.slot_X = std::get<1>(local_YK.masked_fill_(foreign, placement_.count).flatten().sort(/*stable=*/true, 0, false))
                    .narrow(0, 0, num_routed);
  const int64_t top_k = rows_Y.weight.size(1);
  rows.row_X = rows.slot_X.floor_divide(top_k);
  if (rows.slot_X.is_cuda()) rows.place_YK = places_of(rows.slot_X, rows_Y.weight.size(0), top_k);
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
    std::optional<TraceRange> experts("experts");
    at::Tensor sum_YD = at::zeros_like(rows.y_YD);
    for (const ExpertChunk& chunk : chunks(round.rows_of_expert, routed_UD.device())) {
      const at::Tensor row_X = part(rows.row_X, chunk);
      const ExpertRows inputs{gather_rows(rows.y_YD, row_X, mlp_.x_columns(pass.random)), part(rows.weight_X, chunk),
                              part(rows.token_X, chunk)};
      at::Tensor before;
      gather_sum(mlp_.forward(chunk, inputs, pass, kept != nullptr ? &before : nullptr),
                 {row_X, rows.place_YK, chunk.first_row}, sum_YD);
      if (kept != nullptr) rows.gate_up.push_back(std::move(before));
      pass.scratch.release_to(mark);
    }
    experts.reset();
    const TraceRange home("home");
    exchange_.back(round, sum_YD, routed_UD);
    if (kept != nullptr) kept->rounds.push_back(std::move(rows));
  }
  return axis_.reduce_scatter_rows(routed_UD);
}

ExpertGradients RoutedExperts::backward(const RoutingRecord& record, Dispatch sent, PassContext& pass,
                                        const KeptExperts* kept) {
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
    std::optional<TraceRange> experts("experts");
    const at::Tensor& d_sum_YD = rows_Y.d_routed;
    at::Tensor d_y_YD = at::zeros_like(rows.y_YD);
    at::Tensor d_weight_YK = at::zeros({rows.y_YD.size(0), top_k}, d_sum_YD.options());
    size_t chunk_index = 0;
    for (const ExpertChunk& chunk : chunks(round.rows_of_expert, d_sum_YD.device())) {
      const at::Tensor row_X = part(rows.row_X, chunk);
      const ExpertRows inputs{gather_rows(rows.y_YD, row_X, mlp_.x_columns(pass.random)), part(rows.weight_X, chunk),
                              part(rows.token_X, chunk)};
      const at::Tensor* before = rows.gate_up.empty() ? nullptr : &rows.gate_up[chunk_index++];
      const RowGradients d =
          mlp_.backward(chunk, inputs, gather_rows(d_sum_YD, row_X, mlp_.d_out_columns(pass.random)), pass, before);
      d_weight_YK.view(-1).index_copy_(0, part(rows.slot_X, chunk), d.d_weight_X);
      gather_sum(d.d_x_XD, {row_X, rows.place_YK, chunk.first_row}, d_y_YD);
      pass.scratch.release_to(mark);
    }
    experts.reset();
    const TraceRange home("home");
    exchange_.back(round, d_y_YD, d_z_UD);
    exchange_.back(round, d_weight_YK, d_weight_UK);
  }
  return {axis_.reduce_scatter_rows(d_z_UD), axis_.reduce_scatter_rows(d_weight_UK)};
}

namespace {

/// The maps of a stack that are computed as one, gate and up, or down.
struct StackedMaps {
  int64_t outputs = 0, inputs = 0;  ///< held here
  int64_t rank = 0;                 ///< of all adapters together, as they are folded
  bool folds = false;
  bool drops = false;  ///< in training passes, which then do not fold
};

StackedMaps stacked(const std::vector<LinearMap>& maps, bool down, const PassTraits& traits) {
  StackedMaps found;
  bool suits = traits.on_gpu() && traits.compute == at::kBFloat16;
  for (const LinearMap& map : maps) {
    if (map.stack == 0 || (map.role == TensorRole::kDown) != down) continue;
    const LinearMap held = map.part(traits.parts);
    found.outputs += held.outputs;
    found.inputs = held.inputs;
    suits = suits && !map.trained && held.outputs % kGroupedAlignment == 0 && held.inputs % kGroupedAlignment == 0;
    if (!map.adapter) continue;
    found.rank += grouped_aligned(map.adapter->rank);
    found.drops = found.drops || map.adapter->dropout > 0.0;
    suits = suits && map.adapter->experts.are_all();
  }
  found.folds = suits && found.rank > 0;
  return found;
}

}  // namespace

int64_t folded_scratch_elements(const std::vector<LinearMap>& maps, const PassTraits& traits) {
  int64_t elements = 0;
  for (const bool down : {false, true}) {
    const StackedMaps of = stacked(maps, down, traits);
    if (of.folds) elements += (of.outputs + of.rank) * (of.inputs + of.rank) - of.outputs * of.inputs;
  }
  return elements;
}

ExpertsCost routed_experts_cost(const Blueprint& blueprint, const std::vector<LinearMap>& maps,
                                const PassTraits& traits) {
  const int64_t D = blueprint.width, K = blueprint.router.top_k, size = traits.element_bytes();
  const int64_t F = traits.parts.expert_features(blueprint).outputs(blueprint.experts.width);
  const bool weighs_input = blueprint.experts.weight_acts == ExpertSpec::WeightActs::kInput;
  bool adapted = false, trained = false, some_train = false;
  double forward = 0.0, backward = 0.0, again = 0.0;  // of one routed row
  int64_t adapted_elements = 0;                       // that products for the gradients of A and B read and write
  for (const LinearMap& map : maps) {
    if (map.stack == 0) continue;
    forward += forward_flops(map);
    backward += backward_flops(map);
    if (map.role != TensorRole::kDown) again += forward_flops(map);
    adapted = adapted || map.adapter;
    trained = trained || map.trained;
    some_train = some_train || (map.trained && map.is_held_frozen());
    if (map.adapter) adapted_elements += 3 * map.inputs + 2 * map.outputs;
  }
  ExpertsCost cost;
  const auto routed = static_cast<double>(K);
  cost.forward.grouped = routed * forward;
  cost.backward.grouped = routed * backward;
  cost.again.grouped = routed * again;
  // Rows gathered and summed; gate and up read, h written.
  cost.forward.touched_bytes = routed * static_cast<double>(size * (4 * D + 3 * F));
  cost.backward.touched_bytes = routed * static_cast<double>(size * (6 * D + 6 * F + adapted_elements));
  cost.again.touched_bytes = routed * static_cast<double>(size * (2 * D + 3 * F));
  if (blueprint.experts.biases) {
    // Rows of biases are laid out and added to the products; down's are weighted between, and with d out they make the
    // gradient of the weight.
    const int64_t gate_up = 4 * 2 * F, down = (weighs_input ? 4 : 6) * D, weight = weighs_input ? 0 : 5 * D;
    cost.forward.touched_bytes += routed * static_cast<double>(size * (gate_up + down));
    cost.backward.touched_bytes += routed * static_cast<double>(size * weight);
    cost.again.touched_bytes += routed * static_cast<double>(size * gate_up);
  }
  if (traits.exchanged) {
    // A copy of the row to each rank, a sum home from each; backwards the gradients of both, the row again beside them.
    const double copies = traits.remote_ranks * static_cast<double>(D * size);
    cost.forward.exchange_bytes = cost.backward.exchange_bytes = 2.0 * copies;
    cost.again.exchange_bytes = copies;
  }

  // The sum of gradients of the rows; copies of rows and of their gradients where they came from other ranks. Of each
  // routed row its slot, its row and, on a GPU, its place; weights and their gradients.
  cost.received = size * D * (traits.exchanged ? 3 : 1) + K * (8 + 8 + 2 * size + (traits.on_gpu() ? 4 : 0));
  // A row of the chunk, of both ways the greater: x, d out and d x beside gate and up; or, as the activation's
  // gradients are made, d h in place of d x.
  int64_t wide = 3 * D + 2 * F, hidden = 2 * D + 3 * F;
  const StackedMaps gate_up = stacked(maps, false, traits), down = stacked(maps, true, traits);
  if ((gate_up.folds || down.folds) && !gate_up.drops && !down.drops) {
    // Rows with x A^T behind them, and gradients of gate and up beside these.
    wide += 2 * gate_up.rank + down.rank;
    hidden += 3 * F + 2 * gate_up.rank + 2 * down.rank;
  } else if (adapted) {
    wide += D;    // what the adapter adds to d x
    hidden += F;  // h again
  }
  if (trained) hidden += F;
  if (some_train) wide += D + 2 * F, hidden += D + F;  // their rows, apart, and the gradients of these
  if (!traits.on_gpu()) hidden += 4 * F;               // what activation and gradients are made of
  if (weighs_input) wide += D, hidden += D;            // x before and behind its weight
  if (blueprint.experts.biases) wide += D, hidden += 2 * F;
  cost.chunk = size * std::max(wide, hidden);
  cost.kept = size * 2 * F + 8 + 8 + size + (traits.on_gpu() ? 4 : 0);
  // The rows themselves, joined or received, where they are not what mixing keeps.
  cost.kept_received_alone = size * (K + D);
  const bool own_rows = traits.exchanged || traits.several_slices || traits.parts.experts > 1;
  cost.kept_received = own_rows ? cost.kept_received_alone : size * K;
  return cost;
}

int64_t experts_at_a_time(const Blueprint& blueprint, at::ScalarType compute, int64_t chunk_bytes,
                          int64_t local_experts, const TensorParts& parts) {
  const int64_t width = parts.expert_features(blueprint).outputs(blueprint.experts.width),
                expert_bytes = 3 * width * blueprint.width * static_cast<int64_t>(c10::elementSize(compute));
  return std::min(local_experts, std::max<int64_t>(1, chunk_bytes / expert_bytes));
}

}  // namespace moetune
