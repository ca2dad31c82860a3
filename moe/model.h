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
  std::function<void(LayerId)> loaded;            ///< called after each layer, for progress
};

/// A stack's adapter that waits for the choice of its experts.
struct OpenAdapter {
  GroupedLinear* map = nullptr;
  AdapterSpec spec;  ///< without the experts
  ParameterInfo info;
  int64_t local_experts = 0, outputs = 0, inputs = 0;
  MatrixCut cut;
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
        parameters(options.device, options.compute),
        axis(options.axis),
        seed(options.seed) {}

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
  /// Adapters that loads choose the experts of; until adapt_experts() they are not there.
  std::vector<OpenAdapter> open_adapters;
  /// Makes them, of these experts: each layer with one must be among them.
  void adapt_experts(const ExpertsOfLayers& experts);
  uint64_t seed = 0;  ///< of adapters

  /// Those of embedding, head, norms, biases and routers that are frozen, held as they are.
  std::vector<PlainTensor> plain;
};

/// Builds the model tensor by tensor: each frozen weight is packed as soon as it is read. Throws UserError for a
/// missing tensor or a wrong shape, a target that matches nothing, and what a checkpoint lacks for MTP. Tied embeddings
/// train as one parameter of the embedding's, which the head's gradient is added to on the way.
std::unique_ptr<Model> build_model(const Blueprint& blueprint, WeightSource& source, const ModelOptions& options);

}  // namespace moetune
