#include "trainer/sweep/sweep.h"

#include "parallel/base/error.h"
#include "parallel/device/tally.h"
#include "trainer/sweep/named_gradients.h"

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

Sweep::Sweep(Model& model, const SweepOptions& options, LayerHooks hooks, RankProgress* progress)
    : model_(model),
      options_(options),
      hooks_(std::move(hooks)),
      progress_(progress),
      trunk_(model.blueprint.blocks(/*with_mtp=*/false)),
      scratch_(model.parameters.device(), model.parameters.compute()),
      lowest_trained_(model.parameters.lowest_layer(model.blueprint.turn())),
      mixing_parameters_(model.blocks.size()),
      states_(model.blocks.size()),
      stash_(model.parameters.device()) {
  scratch_.reserve(model.scratch_elements());
  scratch_.poison_released(options.poison_released);
  for (Parameter& parameter : model.parameters.all()) {
    // Stacks over experts get their gradients from the plain functions of RoutedExperts.
    const ParameterInfo& info = parameter.info();
    if (info.layer.is_block() && info.num_experts == 0) mixing_parameters_[info.layer.number()].push_back(&parameter);
  }
}

bool Sweep::keeps_graph(LayerId layer) const {
  return layer.number() >= static_cast<int64_t>(model_.blocks.size()) - options_.keep_layers &&
         layer >= lowest_trained_;
}

bool Sweep::stashes(LayerId layer) const {
  return options_.stash_inputs && !keeps_graph(layer) && layer >= lowest_trained_ &&
         layer.number() + 1 < model_.blueprint.num_layers();
}

bool Sweep::balances(LayerId layer) const {
  return options_.balance.is_on() && !layer.is_mtp() && block(layer).is_moe();
}

at::Tensor Sweep::down(LayerId layer, const at::Tensor& x_TD, const Stream& stream, PassContext& pass, Mode mode) {
  const RankProgress::Place place(progress_, str(layer, " on its way down"));
  hooks_.before(layer);
  Block& block = this->block(layer);
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
    mixed.push_back(block.mix(x, stream.slices[s], stream.angles[s], /*replayed_TK=*/{}, balance, pass));
    if (balance) {
      Mixed& slice = mixed.back();
      balance_->count(layer.number(), slice.score_TE, slice.probability_TE, slice.expert_TK, stream.slices[s]);
      slice.score_TE = at::Tensor();
      if (!keep) slice.probability_TE = at::Tensor();
    }
    if (block.is_moe()) expert.push_back(std::exchange(mixed.back().expert_TK, {}));
    if (keep) state.leaf_x.push_back(x);
  }
  Dispatch sent;
  if (block.is_moe()) {
    const at::Tensor expert_TK = joined(expert);
    state.routing = block.experts()->route(expert_TK);
    if (mode != Mode::kEvaluate) loads_.push_back(tally(expert_TK, model_.blueprint.router.experts));
    sent = block.experts()->send(
        state.routing, {joined(mixed, &Mixed::z_TD), joined(mixed, &Mixed::weight_TK), stream.token_T, {}}, pass);
  }
  for (size_t s = 0; s < stream.slices.size(); ++s) {
    at::AutoGradMode with_graph(keep);
    block.add_mlp(mixed[s], stream.slices[s], pass);
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
    if (stashes(layer)) stash_.put(layer.number(), x_TD);
    else if (layer >= lowest_trained_) state.x_TD = x_TD;
    if (layer >= lowest_trained_) kept_input_bytes_ += static_cast<int64_t>(x_TD.nbytes());
    states_[layer.number()] = std::move(state);
  }
  return y_TD;
}

at::Tensor Sweep::up(LayerId layer, const at::Tensor& d_y_TD, const Stream& stream, PassContext& pass) {
  const RankProgress::Place place(progress_, str(layer, " on its way up"));
  Block& block = this->block(layer);
  LayerState state = std::exchange(states_[layer.number()], LayerState());
  if (stashes(layer)) state.x_TD = stash_.take(layer.number());
  if (layer > LayerId::block(0)) {
    const LayerId below = LayerId::block(layer.number() - 1);
    if (stashes(below)) stash_.fetch(below.number());
  }
  block.use(pass);
  const bool recompute = state.mixed.empty();
  if (recompute) {
    at::AutoGradMode with_graph(true);
    for (size_t s = 0; s < stream.slices.size(); ++s) {
      const Slice& slice = stream.slices[s];
      at::Tensor x = rows_of(state.x_TD, slice).detach().requires_grad_(needs_input_gradient(layer));
      at::Tensor replayed_TK;
      if (block.is_moe()) replayed_TK = rows_of(state.routing.expert_TK, slice).to(at::kLong);
      state.mixed.push_back(block.mix(x, slice, stream.angles[s], replayed_TK, balances(layer), pass));
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
    NamedGradients gradients;
    gradients.of(mixed.residual_TD, rows_of(d_y_TD, slice));
    if (block.is_moe()) {
      gradients.of(mixed.z_TD, rows_of(routed.d_z_TD, slice));
      gradients.of(mixed.weight_TK, rows_of(routed.d_weight_TK, slice));
    }
    if (mixed.probability_TE.defined()) {
      gradients.of(mixed.probability_TE, balance_->gradient(layer.number(), s, slice));
    }
    if (needs_input_gradient(layer)) {
      gradients.in(state.leaf_x[s], [&](const at::Tensor& gradient) { d_x.push_back(gradient); });
    }
    for (Parameter* parameter : mixing_parameters_[layer.number()]) {
      gradients.in(parameter->working, [=](const at::Tensor& gradient) { parameter->add_gradient(gradient); });
    }
    gradients.compute();
    mixed = Mixed();  // this slice's graph ends here
  }
  block.release(pass);
  return needs_input_gradient(layer) ? joined(d_x) : at::Tensor();
}

at::Tensor Sweep::turn(const at::Tensor& x_TD, const StepBatch& batch, PassContext& pass, SweepResult& result) {
  const RankProgress::Place place(progress_, "turn");
  const TensorAxis& axis = model_.axis;
  at::Tensor x_UD = axis.gather_rows(x_TD, batch.main.num_gathered_rows);
  HeadResult head = model_.head->loss(x_UD, batch.main.target_row, batch.main.target, 1.0 / batch.main.divisor, true,
                                      batch.main.target_weight);
  result.loss_sum = head.loss_sum;
  if (!model_.mtp) return axis.reduce_scatter_rows(head.d_x_UD);

  Mtp& mtp = *model_.mtp;
  const LayerId layer = model_.blueprint.mtp();
  at::Tensor x_rows = x_UD.index_select(0, batch.mtp_row).requires_grad_();
  x_UD = at::Tensor();
  at::Tensor embedding = mtp.embedding().embed(batch.mtp_next_token);
  if (mtp.embedding().trains()) embedding.requires_grad_();
  // The projection's graph is small and waits for its block; its weight is dense twice, as any other's.
  at::Tensor z_TD;
  mtp.use(pass);
  {
    at::AutoGradMode with_graph(true);
    z_TD = mtp.input(x_rows, embedding);
  }
  mtp.release(pass);
  at::Tensor out_TD = down(layer, z_TD.detach(), batch.mtp, pass, Mode::kTrain);
  const double scale = batch.mtp.divisor > 0.0 ? options_.mtp_weight / batch.mtp.divisor : 0.0;
  HeadResult second = mtp.head().loss(axis.gather_rows(out_TD, batch.mtp.num_gathered_rows), batch.mtp.target_row,
                                      batch.mtp.target, scale, true, batch.mtp.target_weight);
  result.mtp_loss_sum = second.loss_sum;
  at::Tensor d_z_TD = up(layer, axis.reduce_scatter_rows(second.d_x_UD), batch.mtp, pass);
  // Undefined where nothing at or below the module's input trains.
  if (d_z_TD.defined()) {
    mtp.use(pass);
    NamedGradients gradients;
    gradients.of(z_TD, d_z_TD);
    gradients.in(x_rows, [&](const at::Tensor& d_x) { head.d_x_UD.index_add_(0, batch.mtp_row, d_x); });
    if (mtp.embedding().trains()) {
      gradients.in(embedding,
                   [&](const at::Tensor& gradient) { mtp.embedding().add_gradient(batch.mtp_next_token, gradient); });
    }
    for (Parameter* parameter : model_.parameters.of_layer(model_.blueprint.turn())) {
      gradients.in(parameter->working, [=](const at::Tensor& gradient) { parameter->add_gradient(gradient); });
    }
    gradients.compute();
    mtp.release(pass);
  }
  hooks_.done(layer);
  return axis.reduce_scatter_rows(head.d_x_UD);
}

std::vector<FrozenSlab*> Sweep::uses(Mode mode) const {
  std::vector<FrozenSlab*> uses;
  auto add = [&](LayerId layer) {
    for (FrozenSlab* slab : block(layer).slabs()) uses.push_back(slab);
  };
  const LayerId module = model_.blueprint.mtp();
  for (const LayerId layer : trunk_) add(layer);
  if (mode == Mode::kEvaluate) return uses;
  if (model_.mtp) {
    FrozenSlab* projection = model_.mtp->parts().slab;
    if (projection != nullptr) uses.push_back(projection);
    add(module);
    if (mode == Mode::kRoute) return uses;
    add(module);
    if (projection != nullptr && needs_input_gradient(module)) uses.push_back(projection);
  }
  if (mode == Mode::kRoute) return uses;
  for (const LayerId layer : way_up()) add(layer);
  return uses;
}

std::vector<LayerId> Sweep::way_up() const {
  std::vector<LayerId> layers;
  for (auto layer = trunk_.rbegin(); layer != trunk_.rend() && *layer >= lowest_trained_; ++layer) {
    layers.push_back(*layer);
  }
  return layers;
}

at::Tensor Sweep::way_down(const StepBatch& batch, PassContext& pass, Mode mode) {
  model_.slabs->schedule(uses(mode));
  hooks_.before(LayerId::embedding());
  at::Tensor x_TD = model_.embedding.embed(batch.input_U);
  for (const LayerId layer : trunk_) x_TD = down(layer, x_TD, batch.main, pass, mode);
  hooks_.before(model_.blueprint.turn());
  return x_TD;
}

SweepResult Sweep::train(const StepBatch& batch, const StepRandom& random) {
  at::NoGradGuard no_grad;
  PassContext pass{scratch_, dequantised_, random};
  SweepResult result;
  balance_.reset();
  if (options_.balance.is_on()) {
    balance_ = std::make_unique<StepBalance>(options_.balance, model_.blueprint.router,
                                             BalanceTotals{batch.global.documents, batch.global.tokens}, model_.axis);
  }
  loads_.clear();
  kept_input_bytes_ = 0;
  at::Tensor x_TD = way_down(batch, pass, Mode::kTrain);
  at::Tensor d_x_TD = turn(x_TD, batch, pass, result);
  x_TD = at::Tensor();
  hooks_.done(model_.blueprint.turn());
  if (balance_) {
    balance_->close(hooks_.sum_over_documents);
    result.balance_loss = balance_->loss();
    if (result.balance_loss.defined()) model_.axis.sum(result.balance_loss);
  }
  for (const LayerId layer : way_up()) {
    d_x_TD = up(layer, d_x_TD, batch.main, pass);
    hooks_.done(layer);
  }
  for (LayerState& state : states_) state = LayerState();
  if (model_.embedding.trains()) {
    model_.embedding.add_gradient(batch.input_U, d_x_TD);
    hooks_.done(LayerId::embedding());
  }
  take_loads(result);
  return result;
}

void Sweep::take_loads(SweepResult& result) {
  if (loads_.empty()) return;
  result.load_LE = at::stack(loads_);
  model_.axis.sum(result.load_LE);
}

SweepResult Sweep::route(const StepBatch& batch) {
  at::NoGradGuard no_grad;
  PassContext pass{scratch_, dequantised_, StepRandom{}};
  SweepResult result;
  loads_.clear();
  at::Tensor x_TD = way_down(batch, pass, Mode::kRoute);
  if (model_.mtp) {
    Mtp& mtp = *model_.mtp;
    at::Tensor x_UD = model_.axis.gather_rows(x_TD, batch.main.num_gathered_rows);
    mtp.use(pass);
    at::Tensor z_TD = mtp.input(x_UD.index_select(0, batch.mtp_row), mtp.embedding().embed(batch.mtp_next_token));
    mtp.release(pass);
    down(model_.blueprint.mtp(), z_TD, batch.mtp, pass, Mode::kRoute);
  }
  take_loads(result);
  return result;
}

SweepResult Sweep::evaluate(const StepBatch& batch) {
  at::NoGradGuard no_grad;
  PassContext pass{scratch_, dequantised_, StepRandom{}};
  SweepResult result;
  at::Tensor x_TD = way_down(batch, pass, Mode::kEvaluate);
  at::Tensor x_UD = model_.axis.gather_rows(x_TD, batch.main.num_gathered_rows);
  const HeadResult head = model_.head->loss(x_UD, batch.main.target_row, batch.main.target, 0.0, /*backward=*/false,
                                            batch.main.target_weight);
  result.loss_sum = head.loss_sum;
  result.loss_n = head.loss_n;
  return result;
}

at::Tensor Sweep::logits(const StepBatch& batch) {
  at::NoGradGuard no_grad;
  PassContext pass{scratch_, dequantised_, StepRandom{}};
  at::Tensor x_UD = model_.axis.gather_rows(way_down(batch, pass, Mode::kEvaluate), batch.main.num_gathered_rows);
  return model_.head->logits(x_UD.index_select(0, batch.main.place));
}

}  // namespace moetune
