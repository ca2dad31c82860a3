#include "trainer/sweep/sweep.h"

#include <torch/csrc/autograd/autograd.h>

#include "parallel/base/error.h"
#include "parallel/device/tally.h"

namespace moetune {
namespace {

at::Tensor rows_of(const at::Tensor& x, const Slice& slice) { return x.narrow(0, slice.first_row, slice.num_rows); }

at::Tensor joined(const std::vector<at::Tensor>& parts) { return parts.size() == 1 ? parts[0] : at::cat(parts); }

/// One of the slices' tensors, all rows, without their graphs.
at::Tensor joined(const std::vector<Mixed>& slices, at::Tensor Mixed::* tensor) {
  std::vector<at::Tensor> parts;
  for (const Mixed& slice : slices) parts.push_back((slice.*tensor).detach());
  return joined(parts);
}

}  // namespace

Sweep::Sweep(Model& model, const SweepOptions& options, RankProgress* progress)
    : model_(model),
      options_(options),
      progress_(progress),
      scratch_(model.parameters.device(), model.parameters.compute()),
      lowest_trained_(model.parameters.lowest_layer(turn_layer(model.config))),
      mixing_parameters_(model.blocks.size()),
      states_(model.blocks.size()),
      stash_(model.parameters.device()) {
  scratch_.reserve(model.scratch_elements());
  scratch_.poison_released(options.poison_released);
  for (Parameter& parameter : model.parameters.all()) {
    // Stacks over experts get their gradients from the plain functions of RoutedExperts.
    const int64_t layer = parameter.info().layer;
    const bool in_block = layer >= 0 && layer < static_cast<int64_t>(model.blocks.size());
    if (in_block && parameter.info().num_experts == 0) mixing_parameters_[layer].push_back(&parameter);
  }
}

bool Sweep::keeps_graph(int64_t layer) const {
  return layer >= static_cast<int64_t>(model_.blocks.size()) - options_.keep_layers && layer >= lowest_trained_;
}

bool Sweep::stashes(int64_t layer) const {
  return options_.stash_inputs && !keeps_graph(layer) && layer >= lowest_trained_ &&
         layer + 1 < model_.config.num_layers;
}

bool Sweep::balances(int64_t layer) const {
  return options_.balance_weight > 0.0 && layer < model_.config.num_layers && model_.blocks[layer].is_moe();
}

at::Tensor Sweep::down(int64_t layer, const at::Tensor& x_TD, const Stream& stream, PassContext& pass, Mode mode) {
  const RankProgress::Place place(progress_, str("layer ", layer, " on its way down"));
  options_.before_layer(layer);
  Block& block = model_.blocks[layer];
  LayerState state;
  const bool keep = mode == Mode::kTrain && keeps_graph(layer);
  const bool balance = mode == Mode::kTrain && balances(layer);
  block.use(pass);
  std::vector<Mixed> mixed;
  std::vector<at::Tensor> expert;
  for (size_t s = 0; s < stream.slices.size(); ++s) {
    at::AutoGradMode with_graph(keep);
    at::Tensor x = rows_of(x_TD, stream.slices[s]).detach();
    if (keep) x.requires_grad_(needs_input_gradient(layer));
    at::Tensor expert_TK;
    mixed.push_back(block.mix(x, stream.slices[s], stream.angles[s], expert_TK, balance, pass));
    if (block.is_moe()) expert.push_back(expert_TK);
    if (keep) state.leaf_x.push_back(x);
  }
  Dispatch sent;
  if (block.is_moe()) {
    const at::Tensor expert_TK = joined(expert);
    state.routing = block.experts()->route(expert_TK);
    if (mode == Mode::kTrain) loads_.push_back(tally(expert_TK, model_.config.experts));
    sent = block.experts()->send(
        state.routing, {joined(mixed, &Mixed::z_TD), joined(mixed, &Mixed::weight_TK), stream.token_T, {}}, pass);
  }
  for (size_t s = 0; s < stream.slices.size(); ++s) {
    at::AutoGradMode with_graph(keep);
    block.add_mlp(mixed[s], stream.slices[s], pass);
    const at::Tensor& loss = mixed[s].balance_loss;
    if (loss.defined()) balance_loss_ = balance_loss_.defined() ? balance_loss_ + loss.detach() : loss.detach();
  }
  at::Tensor y_TD = joined(mixed, &Mixed::residual_TD);
  if (keep) state.mixed = std::move(mixed);
  mixed.clear();
  if (block.is_moe()) {
    block.use_experts();
    if (keep) state.experts = std::make_unique<KeptExperts>();
    at::Tensor routed = block.experts()->forward(state.routing, std::move(sent), pass, state.experts.get());
    y_TD = keep ? y_TD + routed : y_TD.add_(routed);
    block.release_experts();
  }
  block.release(pass);
  if (mode == Mode::kTrain) {
    if (stashes(layer)) stash_.put(layer, x_TD);
    else if (layer >= lowest_trained_) state.x_TD = x_TD;
    if (layer >= lowest_trained_) kept_input_bytes_ += static_cast<int64_t>(x_TD.nbytes());
    states_[layer] = std::move(state);
  }
  return y_TD;
}

at::Tensor Sweep::up(int64_t layer, const at::Tensor& d_y_TD, const Stream& stream, PassContext& pass,
                     int64_t num_documents) {
  const RankProgress::Place place(progress_, str("layer ", layer, " on its way up"));
  Block& block = model_.blocks[layer];
  LayerState state = std::move(states_[layer]);
  states_[layer] = LayerState();
  if (stashes(layer)) state.x_TD = stash_.take(layer);
  if (layer > 0 && layer <= model_.config.num_layers && stashes(layer - 1)) stash_.fetch(layer - 1);
  block.use(pass);
  const bool recompute = state.mixed.empty();
  if (recompute) {
    at::AutoGradMode with_graph(true);
    for (size_t s = 0; s < stream.slices.size(); ++s) {
      const Slice& slice = stream.slices[s];
      at::Tensor x = rows_of(state.x_TD, slice).detach().requires_grad_(needs_input_gradient(layer));
      at::Tensor expert_TK;
      if (block.is_moe()) expert_TK = rows_of(state.routing.expert_TK, slice).to(at::kLong);
      state.mixed.push_back(block.mix(x, slice, stream.angles[s], expert_TK, balances(layer), pass));
      state.leaf_x.push_back(x);
    }
  }
  Dispatch sent;
  if (block.is_moe()) {
    RoutedInputs inputs{{}, {}, stream.token_T, d_y_TD};
    if (recompute) {  // what was kept is there already
      inputs.z_TD = joined(state.mixed, &Mixed::z_TD);
      inputs.weight_TK = joined(state.mixed, &Mixed::weight_TK);
    }
    sent = block.experts()->send(state.routing, inputs, pass, state.experts.get());
  }
  if (recompute) {
    at::AutoGradMode with_graph(true);
    for (size_t s = 0; s < stream.slices.size(); ++s) block.add_mlp(state.mixed[s], stream.slices[s], pass);
  }
  ExpertGradients routed;
  if (block.is_moe()) {
    block.use_experts();
    routed = block.experts()->backward(state.routing, std::move(sent), pass, state.experts.get());
    block.release_experts();
  }
  std::vector<at::Tensor> d_x;
  for (size_t s = 0; s < stream.slices.size(); ++s) {
    const Slice& slice = stream.slices[s];
    Mixed& mixed = state.mixed[s];
    std::vector<at::Tensor> outputs, d_outputs, inputs;
    auto from = [&](const at::Tensor& output, const at::Tensor& d_output) {
      if (!output.defined() || !output.requires_grad()) return;
      outputs.push_back(output);
      d_outputs.push_back(d_output);
    };
    from(mixed.residual_TD, rows_of(d_y_TD, slice));
    if (block.is_moe()) {
      from(mixed.z_TD, rows_of(routed.d_z_TD, slice));
      from(mixed.weight_TK, rows_of(routed.d_weight_TK, slice));
    }
    if (mixed.balance_loss.defined()) {
      from(mixed.balance_loss,
           at::full_like(mixed.balance_loss, options_.balance_weight / static_cast<double>(num_documents)));
    }
    if (needs_input_gradient(layer)) inputs.push_back(state.leaf_x[s]);
    for (Parameter* parameter : mixing_parameters_[layer]) inputs.push_back(parameter->working);
    if (!outputs.empty() && !inputs.empty()) {
      auto gradients = torch::autograd::grad(outputs, inputs, d_outputs, /*retain_graph=*/false, /*create_graph=*/false,
                                             /*allow_unused=*/true);
      size_t next = 0;
      if (needs_input_gradient(layer)) d_x.push_back(gradients[next++]);
      for (Parameter* parameter : mixing_parameters_[layer]) parameter->add_gradient(gradients[next++]);
    }
    mixed = Mixed();  // this slice's graph ends here
  }
  block.release(pass);
  return needs_input_gradient(layer) ? joined(d_x) : at::Tensor();
}

at::Tensor Sweep::turn(const at::Tensor& x_TD, const StepBatch& batch, PassContext& pass, SweepResult& result,
                       const std::function<void(int64_t)>& layer_done) {
  const RankProgress::Place place(progress_, "turn");
  const TensorAxis& axis = model_.axis;
  at::Tensor x_UD = axis.gather_rows(x_TD, batch.main.num_gathered_rows);
  HeadResult head = model_.head->loss(x_UD, batch.main.target_row, batch.main.target,
                                      1.0 / static_cast<double>(batch.main.global_targets), true);
  result.loss_sum = head.loss_sum;
  if (!model_.mtp) return axis.reduce_scatter_rows(head.d_x_UD);

  Mtp& mtp = *model_.mtp;
  const int64_t layer = model_.config.num_layers;
  at::Tensor x_rows = x_UD.index_select(0, batch.mtp_row).requires_grad_();
  x_UD = at::Tensor();
  at::Tensor embedding = mtp.embedding().embed(batch.mtp_next_token);
  std::vector<at::Tensor> inputs{x_rows};
  if (mtp.embedding().trains()) inputs.push_back(embedding.requires_grad_());
  std::vector<Parameter*> trained;
  for (Parameter* parameter : model_.parameters.of_layer(turn_layer(model_.config))) {
    trained.push_back(parameter);
    inputs.push_back(parameter->working);
  }
  // The projection's graph is small and waits for its block; its weight is dense twice, as any other's.
  at::Tensor z_TD;
  mtp.use(pass);
  {
    at::AutoGradMode with_graph(true);
    z_TD = mtp.input(x_rows, embedding);
  }
  mtp.release(pass);
  at::Tensor out_TD = down(layer, z_TD.detach(), batch.mtp, pass, Mode::kTrain);
  const double scale =
      batch.mtp.global_targets > 0 ? options_.mtp_weight / static_cast<double>(batch.mtp.global_targets) : 0.0;
  HeadResult second = mtp.head().loss(axis.gather_rows(out_TD, batch.mtp.num_gathered_rows), batch.mtp.target_row,
                                      batch.mtp.target, scale, true);
  result.mtp_loss_sum = second.loss_sum;
  at::Tensor d_z_TD = up(layer, axis.reduce_scatter_rows(second.d_x_UD), batch.mtp, pass, batch.global.documents);
  // Undefined where nothing at or below the module's input trains.
  if (d_z_TD.defined()) {
    mtp.use(pass);
    auto gradients = torch::autograd::grad({z_TD}, inputs, {d_z_TD}, /*retain_graph=*/false, /*create_graph=*/false,
                                           /*allow_unused=*/true);
    mtp.release(pass);
    head.d_x_UD.index_add_(0, batch.mtp_row, gradients[0]);
    size_t next = 1;
    if (mtp.embedding().trains()) mtp.embedding().add_gradient(batch.mtp_next_token, gradients[next++]);
    for (Parameter* parameter : trained) parameter->add_gradient(gradients[next++]);
  }
  layer_done(layer);
  return axis.reduce_scatter_rows(head.d_x_UD);
}

std::vector<FrozenSlab*> Sweep::uses(Mode mode) const {
  std::vector<FrozenSlab*> uses;
  auto add = [&](int64_t layer) {
    for (FrozenSlab* slab : model_.blocks[layer].slabs()) uses.push_back(slab);
  };
  const int64_t layers = model_.config.num_layers;
  for (int64_t layer = 0; layer < layers; ++layer) add(layer);
  if (mode == Mode::kEvaluate) return uses;
  if (model_.mtp) {
    FrozenSlab* projection = model_.mtp->parts().slab;
    if (projection != nullptr) uses.push_back(projection);
    add(layers);
    add(layers);
    if (projection != nullptr && needs_input_gradient(layers)) uses.push_back(projection);
  }
  for (int64_t layer = layers - 1; layer >= std::max<int64_t>(0, lowest_trained_); --layer) add(layer);
  return uses;
}

at::Tensor Sweep::way_down(const StepBatch& batch, PassContext& pass, Mode mode) {
  model_.slabs->schedule(uses(mode));
  options_.before_layer(-1);
  at::Tensor x_TD = model_.embedding.embed(batch.input_U);
  for (int64_t layer = 0; layer < model_.config.num_layers; ++layer) x_TD = down(layer, x_TD, batch.main, pass, mode);
  options_.before_layer(turn_layer(model_.config));
  return x_TD;
}

SweepResult Sweep::train(const StepBatch& batch, const StepRandom& random,
                         const std::function<void(int64_t)>& layer_done) {
  at::NoGradGuard no_grad;
  PassContext pass{scratch_, dequantised_, random};
  SweepResult result;
  balance_loss_ = at::Tensor();
  loads_.clear();
  kept_input_bytes_ = 0;
  at::Tensor x_TD = way_down(batch, pass, Mode::kTrain);
  at::Tensor d_x_TD = turn(x_TD, batch, pass, result, layer_done);
  x_TD = at::Tensor();
  layer_done(turn_layer(model_.config));
  if (balance_loss_.defined()) {
    result.balance_loss = balance_loss_ * (options_.balance_weight / static_cast<double>(batch.global.documents));
    model_.axis.sum(result.balance_loss);
  }
  for (int64_t layer = model_.config.num_layers - 1; layer >= std::max<int64_t>(0, lowest_trained_); --layer) {
    d_x_TD = up(layer, d_x_TD, batch.main, pass, batch.global.documents);
    layer_done(layer);
  }
  for (LayerState& state : states_) state = LayerState();
  if (model_.embedding.trains()) {
    model_.embedding.add_gradient(batch.input_U, d_x_TD);
    layer_done(-1);
  }
  if (!loads_.empty()) {
    result.load_LE = at::stack(loads_);
    model_.axis.sum(result.load_LE);
  }
  return result;
}

SweepResult Sweep::evaluate(const StepBatch& batch) {
  at::NoGradGuard no_grad;
  PassContext pass{scratch_, dequantised_, StepRandom{}};
  SweepResult result;
  at::Tensor x_TD = way_down(batch, pass, Mode::kEvaluate);
  at::Tensor x_UD = model_.axis.gather_rows(x_TD, batch.main.num_gathered_rows);
  result.loss_sum = model_.head->loss(x_UD, batch.main.target_row, batch.main.target, 0.0, /*backward=*/false).loss_sum;
  return result;
}

at::Tensor Sweep::logits(const StepBatch& batch) {
  at::NoGradGuard no_grad;
  PassContext pass{scratch_, dequantised_, StepRandom{}};
  at::Tensor x_UD = model_.axis.gather_rows(way_down(batch, pass, Mode::kEvaluate), batch.main.num_gathered_rows);
  return model_.head->logits(x_UD.index_select(0, batch.main.place));
}

}  // namespace moetune
