// A decoder on one rank: embedding, blocks, head, MTP module, and what of it trains; or what a pipeline stage has of
// these.
//
//   std::unique_ptr<Model> model = build_model(blueprint, *source, options);
//   at::Tensor x_TD = model->embedding.embed(token_U);
//   model->block(LayerId::block(3)).mix(...);
//
// The model is mathematics: it knows which experts and which parts of matrices it holds, whom to hand rows to
// (TokenExchange) and with whom it shares matrices (TensorAxis), not on which rank it runs. trainer/sweep walks it
// layer by layer.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "lora/frozen_slab.h"
#include "moe/attention/rope.h"
#include "moe/block.h"
#include "moe/embedding.h"
#include "moe/head.h"
#include "moe/mtp.h"
#include "moe/stage.h"
#include "moe/trained_parts.h"
#include "moe/weight_source.h"

namespace moetune {

struct ModelOptions {
  at::Device device = at::kCPU;
  at::ScalarType compute = at::kFloat;
  std::optional<at::ScalarType> gradients = {};  ///< of layers' trained matrices; none: wide
  BaseFormat base = BaseFormat::kNf4;
  TrainedParts trained;                       ///< train themselves; all else is frozen
  AdapterTargets* targets = nullptr;          ///< frozen maps that get adapters; null: none
  std::optional<AdapterSpec> router_adapter;  ///< of the routers' maps; none: they have none
  ExpertPlacement placement;                  ///< experts of this rank
  TokenExchange* exchange = nullptr;
  /// where frozen weights lie; null: whole on the device, in slabs of the model's own
  FrozenSlabs* slabs = nullptr;
  TensorAxis axis;             ///< the ranks that hold the other parts of cut matrices
  TensorAxis expert_axis;      ///< those that hold the other parts of these experts: the axis, or this rank alone
  std::optional<Stage> stage;  ///< none: the whole model
  uint64_t seed = 0;
  bool with_mtp = false;
  int64_t head_chunk_rows = 1024;
  int64_t expert_chunk_bytes = int64_t{2} << 30;  ///< dense weights of the experts that are in use at a time
  /// Called after each layer, with all parameters so far.
  std::function<void(LayerId, ParameterSet&)> loaded = [](LayerId, ParameterSet&) {};
};

/// A stack's adapter, or weights of it that train, that wait for the choice of their experts.
struct OpenStack {
  LayerId layer;
  int64_t count = 0;                                        ///< of experts, to be chosen
  std::function<void(const std::vector<int64_t>&)> chosen;  ///< makes it, of these
};

struct PlainTensor {
  std::string name;  ///< Hugging Face key
  at::Tensor held;
  TensorPart part;                   ///< of it where the tensor axis cuts it
  bool of_expert = false;            ///< on the ranks that hold this expert alone
  bool repeats_first_stage = false;  ///< the last stage's copy of what the first one holds
};

struct Model {
  Model(const Blueprint& blueprint, const ModelOptions& options)
      : blueprint(blueprint),
        rope(blueprint.rotary, options.device),
        stage(options.stage.value_or(Stage::whole(blueprint))),
        parameters(options.device, options.compute, options.gradients),
        axis(options.axis) {}

  const Blueprint blueprint;
  Rope rope;
  const Stage stage;
  ParameterSet parameters;
  TensorAxis axis;
  /// Of the first stage; the last has it too where the head is tied to it, or the MTP module may share it.
  Embedding embedding;
  std::vector<Block> blocks;   ///< of the stage, in its order; the MTP module's is the last
  std::unique_ptr<Head> head;  ///< null but on the last stage
  std::unique_ptr<Mtp> mtp;    ///< null where the run does not use it, and but on the last stage
  Block& block(LayerId layer) { return blocks.at(layer.number() - stage.first_block().number()); }
  const Block& block(LayerId layer) const { return const_cast<Model*>(this)->block(layer); }

  /// Elements that the scratch must hold for any one layer.
  int64_t scratch_elements() const;
  /// All frozen linear weights, layer by layer; empty where all of them train.
  FrozenSlabs* slabs = nullptr;
  /// Those of one kind in one layer; null: it has none.
  FrozenSlab* slab(SlabKind kind, LayerId layer) const;
  std::unique_ptr<FrozenSlabs> own_slabs;
  /// What loads choose the experts of; until choose_experts() it is not there, and all experts are as they were read.
  std::vector<OpenStack> open_stacks;
  /// Makes it, of these experts: each layer with such a stack must be among them. Weights that train are read now, from
  /// the source that the model was built from.
  /// `made` is called with a layer, and all parameters so far, when its own are there.
  void choose_experts(const ExpertsOfLayers& experts, const std::function<void(LayerId, ParameterSet&)>& made);

  /// Those of embedding, head, norms, biases and routers that are frozen, held as they are.
  std::vector<PlainTensor> plain;
};

/// Builds the model tensor by tensor: each frozen weight is packed as soon as it is read. Throws UserError for a
/// missing tensor or a wrong shape, a target that matches nothing, and what a checkpoint lacks for MTP. Tied embeddings
/// train as one parameter of the embedding's, which the head's gradient is added to on the way. Where loads choose
/// experts whose weights train, the source outlives their choice.
std::unique_ptr<Model> build_model(const Blueprint& blueprint, WeightSource& source, const ModelOptions& options);

}  // namespace moetune
