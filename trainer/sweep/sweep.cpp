#include "trainer/sweep/sweep.h"

#include <algorithm>
#include <array>
#include <optional>

#include "parallel/base/error.h"
#include "parallel/bytes/weight_store.h"
#include "parallel/device/tally.h"
#include "parallel/device/trace_range.h"
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

/// Of a slice; null where the block keeps no part of its mixing, or all.
KeptMixing* kept_of(BlockState& state, size_t slice) { return state.kept.empty() ? nullptr : &state.kept[slice]; }

StepTraits traits_of(Model& model, const SweepOptions& options) {
  StepTraits traits;
  traits.mtp = model.mtp != nullptr;
  traits.lowest_trained =
      options.lowest_trained ? *options.lowest_trained : model.parameters.lowest_layer(model.blueprint.turn());
  traits.pipeline = options.pipeline;
  traits.whole_loads = options.balance.takes_whole_loads();
  traits.shared_embedding = !model.stage.is_first() && !model.parameters.of_layer(LayerId::embedding()).empty();
  traits.mtp_input_trains = model.mtp != nullptr && model.mtp->input_trains();
  return traits;
}

}  // namespace

Sweep::Sweep(Model& model, const SweepOptions& options, LayerHooks hooks, RankProgress* progress)
    : model_(model),
      options_(options),
      hooks_(std::move(hooks)),
      progress_(progress),
      scratch_(model.parameters.device(), model.parameters.compute()),
      traits_(traits_of(model, options)),
      stash_(model.parameters.device()) {
  scratch_.reserve(model.scratch_elements());
  scratch_.poison_released(options.poison_released);
  for (Parameter& parameter : model.parameters.all()) {
    // Stacks over experts get their gradients from the plain functions of RoutedExperts.
    const ParameterInfo& info = parameter.info();
    if (info.layer.is_block() && info.num_experts == 0) mixing_parameters_[info.layer].push_back(&parameter);
  }
}

bool Sweep::stashes(const StepOp& op) const {
  return options_.stash_inputs && op.keep != Keep::kAll && traits_.goes_up(op.layer) &&
         op.layer.number() + 1 < model_.blueprint.num_layers();
}

bool Sweep::balances(LayerId layer) const {
  return options_.balance.is_on() && !layer.is_mtp() && block(layer).is_moe();
}

at::Tensor Sweep::down(const StepOp& op, const at::Tensor& x_TD, const Stream& stream, Passage& step) {
  const LayerId layer = op.layer;
  const RankProgress::Place place(progress_, str(layer, " on its way down"));
  const TraceRange range([&] { return str(layer, " down"); });
  Block& block = this->block(layer);
  PassContext& pass = step.pass;
  BlockState state;
  const bool keep = op.keep == Keep::kAll, trains = step.mode == StepMode::kTrain, balance = trains && balances(layer);
  if (op.keep == Keep::kAttention || op.keep == Keep::kExperts) state.kept.resize(stream.slices.size());
  use(block, pass);
  std::vector<Mixed> mixed;
  std::vector<at::Tensor> expert;
  for (size_t s = 0; s < stream.slices.size(); ++s) {
    at::AutoGradMode with_graph(keep);
    at::Tensor x = rows_of(x_TD, stream.slices[s]).detach();
    if (keep) x.requires_grad_(needs_input_gradient(layer));
    mixed.push_back(
        block.mix(x, stream.slices[s], stream.angles[s], /*replayed_TK=*/{}, balance, pass, kept_of(state, s)));
    if (balance) {
      Mixed& slice = mixed.back();
      step.balance->count(layer.number(), slice.score_TE, slice.probability_TE, slice.expert_TK, stream.slices[s]);
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
    if (trains || step.mode == StepMode::kRoute) {
      at::Tensor& load_E = step.totals.loads[layer];
      const at::Tensor own_E = tally(expert_TK, model_.blueprint.router.experts);
      load_E = load_E.defined() ? load_E + own_E : own_E;
    }
    if (step.mode == StepMode::kRoute) step.totals.choices[layer].push_back(state.routing.expert_TK);
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
    if (op.keep >= Keep::kExperts) state.experts = std::make_unique<KeptExperts>();
    at::Tensor routed = block.experts()->forward(state.routing, std::move(sent), pass, state.experts.get());
    // What is kept may be the residual itself.
    y_TD = op.keep == Keep::kNothing ? y_TD.add_(routed) : y_TD + routed;
    block.release_experts();
  }
  release(block, pass);
  if (trains) {
    state.stashed = stashes(op);
    if (state.stashed) stash_.put(stash_key(op, step), x_TD);
    else if (traits_.goes_up(layer)) state.x_TD = x_TD;
    if (traits_.goes_up(layer)) {
      StepTotals& totals = step.totals;
      totals.kept_input_bytes += static_cast<int64_t>(x_TD.nbytes());
      totals.most_kept_input_bytes = std::max(totals.most_kept_input_bytes, totals.kept_input_bytes);
      step.blocks[layer] = std::move(state);
    }
  }
  return y_TD;
}

at::Tensor Sweep::up(const StepOp& op, const at::Tensor& d_y_TD, const Stream& stream, Passage& step) {
  const LayerId layer = op.layer;
  const RankProgress::Place place(progress_, str(layer, " on its way up"));
  const TraceRange range([&] { return str(layer, " up"); });
  Block& block = this->block(layer);
  PassContext& pass = step.pass;
  BlockState state = std::move(step.blocks.extract(layer).mapped());
  if (state.stashed) state.x_TD = stash_.take(stash_key(op, step));
  step.totals.kept_input_bytes -= static_cast<int64_t>(state.x_TD.nbytes());
  // The next on the way up.
  if (!step.blocks.empty() && step.blocks.rbegin()->second.stashed) stash_.fetch(stash_key(op, step) - 1);
  use(block, pass);
  const bool recompute = state.mixed.empty();
  if (recompute) {
    at::AutoGradMode with_graph(true);
    for (size_t s = 0; s < stream.slices.size(); ++s) {
      const Slice& slice = stream.slices[s];
      at::Tensor x = rows_of(state.x_TD, slice).detach().requires_grad_(needs_input_gradient(layer));
      at::Tensor replayed_TK;
      if (block.is_moe()) replayed_TK = rows_of(state.routing.expert_TK, slice).to(at::kLong);
      state.mixed.push_back(
          block.mix(x, slice, stream.angles[s], replayed_TK, balances(layer), pass, kept_of(state, s)));
      state.leaf_x.push_back(x);
    }
  }
  Dispatch sent;
  if (block.is_moe()) {
    RoutedInputs inputs{{}, {}, stream.token_T, d_y_TD};
    if (state.experts == nullptr) {  // what was kept is there already
      inputs.z_TD = joined(state.mixed, &Mixed::z_TD);
      inputs.weight_TK = joined(state.mixed, &Mixed::weight_TK);
    }
    sent = block.experts()->send(state.routing, inputs, pass, state.experts.get());
  }
  if (recompute) {
    at::AutoGradMode with_graph(true);
    for (size_t s = 0; s < stream.slices.size(); ++s) {
      block.add_mlp(state.mixed[s], stream.slices[s], pass, Wanted::kGraph);
    }
  }
  ExpertGradients routed;
  if (block.is_moe()) {
    block.use_experts();
    routed = block.experts()->backward(state.routing, std::move(sent), pass, state.experts.get());
    block.release_experts();
  }
  std::vector<at::Tensor> d_x;
  std::optional<TraceRange> backward("mixing backward");
  for (size_t s = 0; s < stream.slices.size(); ++s) {
    const Slice& slice = stream.slices[s];
    Mixed& mixed = state.mixed[s];
    NamedGradients gradients;
    gradients.of(mixed.residual_TD, rows_of(d_y_TD, slice));
    if (mixed.mlp_TD.defined()) gradients.of(mixed.mlp_TD, rows_of(d_y_TD, slice));
    if (block.is_moe()) {
      gradients.of(mixed.z_TD, rows_of(routed.d_z_TD, slice));
      gradients.of(mixed.weight_TK, rows_of(routed.d_weight_TK, slice));
    }
    if (mixed.probability_TE.defined()) {
      gradients.of(mixed.probability_TE, step.balance->gradient(layer.number(), s, slice));
    }
    if (needs_input_gradient(layer)) {
      gradients.in(state.leaf_x[s], [&](const at::Tensor& gradient) { d_x.push_back(gradient); });
    }
    for (Parameter* parameter : mixing_parameters_[layer]) {
      gradients.in(parameter->working, [=](const at::Tensor& gradient) { parameter->add_gradient(gradient); });
    }
    gradients.compute();
    mixed = Mixed();  // this slice's graph ends here
    if (KeptMixing* kept = kept_of(state, s)) *kept = KeptMixing();
  }
  backward.reset();
  release(block, pass);
  return needs_input_gradient(layer) ? joined(d_x) : at::Tensor();
}

void Sweep::head(const StepOp& op, Passage& step) {
  const RankProgress::Place place(progress_, "turn");
  const TraceRange range("head");
  const TensorAxis& axis = model_.axis;
  const Stream& stream = stream_of(op.layer, step.batch);
  if (op.layer.is_mtp()) {
    const double scale = stream.divisor > 0.0 ? options_.mtp_weight / stream.divisor : 0.0;
    HeadResult head = model_.mtp->head().loss(axis.gather_rows(step.mtp.x_TD, stream.num_gathered_rows),
                                              stream.target_row, stream.target, scale, true, stream.target_weight);
    step.result.mtp_loss_sum = head.loss_sum;
    step.mtp.x_TD = at::Tensor();
    step.mtp.d_x_TD = axis.reduce_scatter_rows(head.d_x_UD);
    return;
  }
  at::Tensor x_UD = axis.gather_rows(step.x_TD, stream.num_gathered_rows);
  if (step.mode == StepMode::kLogits) {
    step.result.logits_TV = model_.head->logits(x_UD.index_select(0, stream.place));
    return;
  }
  const bool trains = step.mode == StepMode::kTrain;
  const HeadResult head = model_.head->loss(x_UD, stream.target_row, stream.target, trains ? 1.0 / stream.divisor : 0.0,
                                            trains, stream.target_weight);
  step.result.loss_sum = head.loss_sum;
  step.result.loss_n = head.loss_n;
  step.d_x_UD = head.d_x_UD;
  if (trains && model_.mtp) step.x_UD = x_UD;
}

void Sweep::mtp_input(Passage& step) {
  const RankProgress::Place place(progress_, "turn");
  const TraceRange range("MTP input");
  Mtp& mtp = *model_.mtp;
  const bool trains = step.mode == StepMode::kTrain;
  if (!trains) step.x_UD = model_.axis.gather_rows(step.x_TD, step.batch.main.num_gathered_rows);
  step.mtp.x_rows = std::exchange(step.x_UD, {}).index_select(0, step.batch.mtp_row).requires_grad_(trains);
  step.mtp.embedding = mtp.embedding().embed(step.batch.mtp_next_token);
  if (mtp.embedding().trains()) step.mtp.embedding.requires_grad_(trains);
  // The projection's graph is small and waits for its block; its weight is dense twice, as any other's.
  mtp.use(step.pass);
  {
    at::AutoGradMode with_graph(trains);
    step.mtp.input_TD = mtp.input(step.mtp.x_rows, step.mtp.embedding);
  }
  mtp.release(step.pass);
  step.mtp.x_TD = step.mtp.input_TD.detach();
}

void Sweep::mtp_input_gradient(Passage& step) {
  const RankProgress::Place place(progress_, "turn");
  const TraceRange range("MTP input backward");
  Mtp& mtp = *model_.mtp;
  mtp.use(step.pass);
  NamedGradients gradients;
  gradients.of(step.mtp.input_TD, step.mtp.d_x_TD);
  gradients.in(step.mtp.x_rows, [&](const at::Tensor& d_x) { step.d_x_UD.index_add_(0, step.batch.mtp_row, d_x); });
  if (mtp.embedding().trains()) {
    gradients.in(step.mtp.embedding, [&](const at::Tensor& gradient) {
      mtp.embedding().add_gradient(step.batch.mtp_next_token, gradient);
    });
  }
  for (Parameter* parameter : model_.parameters.of_layer(model_.blueprint.turn())) {
    gradients.in(parameter->working, [=](const at::Tensor& gradient) { parameter->add_gradient(gradient); });
  }
  gradients.compute();
  mtp.release(step.pass);
}

void Sweep::turn(Passage& step) {
  step.mtp = {};
  step.x_TD = at::Tensor();
  step.d_x_TD = model_.axis.reduce_scatter_rows(std::exchange(step.d_x_UD, {}));
}

at::Tensor Sweep::receive(bool gradient, const Passage& step) {
  const RankProgress::Place place(progress_, gradient ? "gradient from the next stage" : "input from the stage before");
  const TraceRange range("receive");
  const std::array<int64_t, 2> shape{step.batch.main.token_T.size(0), model_.blueprint.width};
  const at::ScalarType type = model_.parameters.compute();
  return gradient ? options_.links->receive_up(shape, type) : options_.links->receive_down(shape, type);
}

void Sweep::execute(const StepOp& op, Passage& step) {
  const Stream& stream = stream_of(op.layer, step.batch);
  at::Tensor& x_TD = op.layer.is_mtp() ? step.mtp.x_TD : step.x_TD;
  at::Tensor& d_x_TD = op.layer.is_mtp() ? step.mtp.d_x_TD : step.d_x_TD;
  switch (op.kind) {
    case StepOp::Kind::kAwait: {
      const RankProgress::Place place(progress_, str("the last update of ", op.layer));
      const TraceRange range("optimizer wait");
      hooks_.before(op.layer);
      break;
    }
    case StepOp::Kind::kEmbed: x_TD = model_.embedding.embed(step.batch.input_U); break;
    case StepOp::Kind::kDown: x_TD = down(op, x_TD, stream, step); break;
    case StepOp::Kind::kHead: head(op, step); break;
    case StepOp::Kind::kMtpInput: mtp_input(step); break;
    case StepOp::Kind::kMtpInputGradient: mtp_input_gradient(step); break;
    case StepOp::Kind::kTurn: turn(step); break;
    case StepOp::Kind::kUp: d_x_TD = up(op, d_x_TD, stream, step); break;
    case StepOp::Kind::kLoads: step.balance->close(hooks_.sum_over_documents, hooks_.sum_over_stages); break;
    case StepOp::Kind::kReceive: x_TD = receive(/*gradient=*/false, step); break;
    case StepOp::Kind::kSend: options_.links->send_down(std::exchange(x_TD, {})); break;
    case StepOp::Kind::kReceiveGradient: d_x_TD = receive(/*gradient=*/true, step); break;
    case StepOp::Kind::kSendGradient: options_.links->send_up(std::exchange(d_x_TD, {})); break;
    case StepOp::Kind::kEmbedGradient:
      model_.embedding.add_gradient(step.batch.input_U, std::exchange(d_x_TD, {}));
      break;
    case StepOp::Kind::kReduce: {
      const TraceRange range("reduce");
      hooks_.done(op.layer);
      break;
    }
  }
}

void Sweep::use(Block& block, PassContext& pass) {
  if (options_.trained != nullptr) {
    const TraceRange range("weights");
    options_.trained->use(block.layer());
  }
  block.use(pass);
}

void Sweep::release(Block& block, PassContext& pass) {
  block.release(pass);
  if (options_.trained != nullptr) options_.trained->release(block.layer());
}

std::vector<int> Sweep::slabs_of(const StepProgram& program) const {
  std::vector<int> slabs;
  for (const SlabUse& use : slab_uses(model_.blueprint, program)) {
    if (const FrozenSlab* slab = model_.slab(use.kind, use.layer)) slabs.push_back(slab->number());
  }
  if (options_.trained == nullptr) return slabs;
  for (const LayerId layer : block_uses(program)) {
    for (const int slab : options_.trained->uses(layer)) slabs.push_back(slab);
  }
  return slabs;
}

std::vector<Passage> Sweep::passages(std::span<const StepBatch> groups, StepMode mode, const StepRandom& random,
                                     StepTotals& totals) {
  std::vector<Passage> passages;
  std::shared_ptr<StepBalance> balance;
  for (const StepBatch& batch : groups) {
    passages.emplace_back(batch, mode, PassContext{scratch_, dequantised_, random}, totals);
    if (mode != StepMode::kTrain || !options_.balance.is_on()) continue;
    if (!balance || !options_.balance.takes_whole_loads()) {
      balance =
          std::make_shared<StepBalance>(options_.balance, model_.blueprint.router,
                                        BalanceTotals{batch.global.documents, batch.global.tokens, num_expert_layers()},
                                        model_.axis, model_.parameters.device());
    }
    passages.back().balance = balance;
  }
  return passages;
}

int64_t Sweep::num_expert_layers() const {
  const Blueprint& blueprint = model_.blueprint;
  const std::vector<LayerId> blocks = blueprint.blocks(/*with_mtp=*/false);
  return std::count_if(blocks.begin(), blocks.end(), [&](LayerId layer) { return blueprint.has_experts(layer); });
}

SweepResult Sweep::run(std::span<const StepBatch> groups, StepMode mode, const StepRandom& random) {
  at::NoGradGuard no_grad;
  StepTraits traits = traits_;
  traits.mode = mode;
  traits.kept = options_.kept;
  traits.groups = static_cast<int64_t>(groups.size());
  const StepProgram program = step_program(model_.blueprint, traits);
  StepTotals totals;
  totals.groups_in_flight = groups_in_flight(traits.pipeline, traits.groups, traits.whole_loads);
  std::vector<Passage> steps = passages(groups, mode, random, totals);
  model_.slabs->store().schedule(slabs_of(program));
  try {
    for (const StepOp& op : program) execute(op, steps[op.group]);
    if (options_.links != nullptr) options_.links->settle();
  } catch (...) {
    if (options_.trained != nullptr) options_.trained->abandon();
    model_.slabs->abandon();
    scratch_.reset();
    throw;
  }
  return result_of(steps, totals, mode);
}

SweepResult Sweep::result_of(std::vector<Passage>& steps, const StepTotals& totals, StepMode mode) const {
  const auto add = [](at::Tensor& sum, const at::Tensor& part) {
    if (part.defined()) sum = sum.defined() ? sum + part : part;
  };
  SweepResult result;
  result.kept_input_bytes = totals.most_kept_input_bytes;
  std::vector<at::Tensor> loss_n;
  const StepBalance* balance = nullptr;
  for (const Passage& step : steps) {
    add(result.loss_sum, step.result.loss_sum);
    add(result.mtp_loss_sum, step.result.mtp_loss_sum);
    if (step.result.loss_n.defined()) loss_n.push_back(step.result.loss_n);
    if (step.balance && step.balance.get() != balance) add(result.balance_loss, step.balance->loss());
    balance = step.balance.get();
    result.logits_TV = step.result.logits_TV;
  }
  if (result.balance_loss.defined()) model_.axis.sum(result.balance_loss);
  if (!loss_n.empty()) result.loss_n = joined(loss_n);
  if (mode != StepMode::kTrain && mode != StepMode::kRoute) return result;
  const Blueprint& blueprint = model_.blueprint;
  std::vector<at::Tensor> loads;
  for (const LayerId layer : blueprint.blocks(model_.mtp != nullptr || options_.pipeline.mtp)) {
    if (!blueprint.has_experts(layer)) continue;
    if (mode == StepMode::kRoute) {
      const auto chosen = totals.choices.find(layer);
      result.expert_LTK.push_back(chosen != totals.choices.end() ? joined(chosen->second) : at::Tensor());
    }
    const auto found = totals.loads.find(layer);
    loads.push_back(
        found != totals.loads.end()
            ? found->second
            : at::zeros({blueprint.router.experts}, at::TensorOptions(at::kLong).device(model_.parameters.device())));
  }
  if (!loads.empty()) {
    result.load_LE = at::stack(loads);
    model_.axis.sum(result.load_LE);
  }
  return result;
}

SweepResult Sweep::train(std::span<const StepBatch> groups, const StepRandom& random) {
  return run(groups, StepMode::kTrain, random);
}

SweepResult Sweep::route(std::span<const StepBatch> groups) { return run(groups, StepMode::kRoute, {}); }

SweepResult Sweep::evaluate(std::span<const StepBatch> groups) { return run(groups, StepMode::kEvaluate, {}); }

at::Tensor Sweep::logits(const StepBatch& batch) { return run({&batch, 1}, StepMode::kLogits, {}).logits_TV; }

}  // namespace moetune
