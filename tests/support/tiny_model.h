// A small model of random weights on one rank, and a step's batch for it.
//
//   TinyModel tiny(tiny_blueprint(/*layers=*/3), {.base = BaseFormat::kNf4});
//   Sweep sweep(*tiny.model, {});
//   sweep.train(tiny.batch({5, 9}, /*slice_tokens=*/8), {17, 0, true});
#pragma once

#include <cmath>
#include <memory>

#include "moe/model.h"
#include "parallel/comm/mesh.h"
#include "parallel/comm/token_exchange.h"
#include "tests/support/numbers.h"
#include "trainer/assemble.h"
#include "trainer/data/step_batch.h"

namespace moetune {

/// One dense layer, then MoE layers (an MTP module is at hand) of 4 experts in 2 groups; every linear weight is a
/// multiple of 64 numbers.
inline Blueprint tiny_blueprint(int64_t layers) {
  Blueprint model;
  model.vocab = 32;
  model.width = 16;
  LayerSpec layer;
  layer.attention.heads = layer.attention.kv_heads = 2;
  layer.attention.q_lora = 16;
  layer.attention.kv_lora = 16;
  layer.attention.nope_dim = 8;
  layer.attention.rotary_dim = 4;
  layer.attention.value_dim = 8;
  layer.attention.softmax_scale = 1.0 / std::sqrt(12.0);
  model.layers.assign(layers, layer);
  model.layers[0].dense_width = 24;
  model.num_mtp_layers = 1;
  model.mtp_layer = layer;
  model.rotary.dim = 4;
  model.router.experts = 4;
  model.router.top_k = 2;
  model.router.choice = RouterSpec::Choice::kGroupsByBestTwo;
  model.router.num_groups = 2;
  model.router.top_groups = 2;
  model.router.correction_bias = true;
  model.router.normalise_eps = 1e-20;
  model.router.scale = 2.5;
  model.experts.width = 8;
  model.experts.shared_width = 8;
  model.initializer_range = 0.2;
  return model;
}

struct TinyOptions {
  BaseFormat base = BaseFormat::kNf4;
  at::ScalarType compute = at::kFloat;
  std::vector<std::string> targets = {"all_linear"};  ///< empty: no adapters
  TrainedParts trained = {};
  double dropout = 0.0;
  bool with_mtp = false;
  uint64_t seed = 17;
  TensorAxis axis = {};
  FrozenSlabs* slabs = nullptr;
  at::Device device = at::kCPU;
};

struct TinyModel {
  /// With a mesh, what this rank of it holds.
  TinyModel(const Blueprint& blueprint, const TinyOptions& tiny, Mesh* mesh = nullptr)
      : exchange(mesh == nullptr || mesh->shape().ep == 1 ? make_local_exchange()
                                                          : make_token_exchange(mesh->ep(), 0)) {
    if (!tiny.targets.empty()) targets = AdapterTargets({tiny.targets, 2, 4.0, false, tiny.dropout, {}});
    ModelOptions options;
    options.device = tiny.device;
    options.compute = tiny.compute;
    options.base = tiny.base;
    options.trained = tiny.trained;
    options.targets = tiny.targets.empty() ? nullptr : &targets;
    const int64_t local_experts =
        mesh == nullptr ? blueprint.router.experts : blueprint.router.experts / mesh->shape().ep;
    options.placement = {mesh == nullptr ? 0 : mesh->here().ep * local_experts, local_experts,
                         blueprint.router.experts};
    options.exchange = exchange.get();
    options.seed = tiny.seed;
    options.slabs = tiny.slabs;
    options.with_mtp = tiny.with_mtp;
    options.axis = mesh == nullptr ? tiny.axis : TensorAxis(mesh->tp());
    if (mesh != nullptr) options.expert_axis = expert_axis(*mesh);
    options.expert_chunk_bytes = 1;  // one expert at a time
    model = build_model(blueprint, *make_random_weights(blueprint, tiny.seed, at::kCPU), options);
    // B of zeros would leave A without a gradient.
    uint64_t seed = 1000;
    for (Parameter& parameter : model->parameters.all()) {
      if (parameter.info().role != Role::kAdapterB) continue;
      parameter.master().copy_(random_normal(parameter.master().sizes(), seed++) * 0.1);
      parameter.refresh_working();
    }
  }

  /// Documents of these lengths; every token is a target but the first of each.
  StepBatch batch(const std::vector<int64_t>& lengths, int64_t slice_tokens) const {
    RankBatch local;
    local.document_begins.push_back(0);
    for (const int64_t length : lengths) {
      for (int64_t t = 0; t < length; ++t) {
        const auto place = static_cast<int64_t>(local.tokens.size());
        local.tokens.push_back(static_cast<int32_t>((place * 7 + place * place) % model->blueprint.vocab));
        local.targets.push_back(t + 1 < length ? static_cast<int32_t>(place % model->blueprint.vocab) : kNotTrained);
        local.positions.push_back(static_cast<int32_t>(t));
        local.global_tokens.push_back(place);
      }
      local.document_begins.push_back(static_cast<int64_t>(local.tokens.size()));
      local.global.targets += length - 1;
    }
    for (const int64_t length : lengths) local.global.mtp_targets += std::max<int64_t>(0, length - 2);
    local.global.documents = static_cast<int64_t>(lengths.size());
    local.global.tokens = static_cast<int64_t>(local.tokens.size());
    return make_step_batch(local, *model, slice_tokens, at::kCPU, model->parameters.compute());
  }

  std::unique_ptr<TokenExchange> exchange;
  AdapterTargets targets;
  std::unique_ptr<Model> model;
};

}  // namespace moetune
