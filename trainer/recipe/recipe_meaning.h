// What a recipe means: its words as the types of the parts that they are for, and what `auto` comes to.
//
//   const MeshShape shape = mesh_shape(recipe, blueprint, launch.world_size());
//   AdapterTargets targets = adapter_targets(recipe);
#pragma once

#include <torch/types.h>

#include <cstdint>
#include <optional>

#include "lora/adapters/adapter.h"
#include "moe/balance.h"
#include "moe/blueprint.h"
#include "moe/keep.h"
#include "moe/trained_parts.h"
#include "parallel/bytes/weight_store.h"
#include "parallel/comm/mesh.h"
#include "trainer/recipe/recipe.h"

namespace moetune {

/// The type of activations and matrix products.
at::ScalarType scalar_type(ComputeType compute);
/// Where in the store, or beside it, what the recipe says lies.
SlabTier slab_tier(OffloadTier tier);
/// Where summed gradients lie: beside an optimizer that is on the device.
SlabTier tier_of_gradients(const OffloadRecipe& offload);
/// What gradients of layers' trained matrices add up in.
at::ScalarType gradient_dtype(const Recipe& recipe);
/// What the recipe asks of adapters; matches nothing for `adapter: none`.
AdapterTargets adapter_targets(const Recipe& recipe);
/// What it asks of the routers' maps: the rank and scale of other adapters; none: no adapter.
std::optional<AdapterSpec> router_adapter(const Recipe& recipe);
/// The parts of the model that train themselves: those of train.parts and, with router.train: full, the routers.
TrainedParts trained_parts(const Recipe& recipe);
/// What PEFT takes whole from an adapter's folder (modules_to_save) where it trained itself beside the adapter; other
/// parts leave with the weights alone.
TrainedParts parts_beside_adapter(const Blueprint& blueprint);
/// What leaves the choice of experts to the loads of the training data: adapter.experts or train.experts: top N.
struct ChoiceByLoad {
  const char* key = "";
  int64_t top = 0;  ///< N
};
std::optional<ChoiceByLoad> choice_by_load(const Recipe& recipe);
/// Whether routers' weights train, or adapters of theirs.
bool trains_router(const Recipe& recipe);
/// Whether any linear map of the model is frozen, so that model.base says how it is held.
bool freezes_maps(const Recipe& recipe, const Blueprint& blueprint);
/// Throws UserError, with all mistakes in one, where train.parts or train.experts do not go with the model or with the
/// rest of the recipe: a part or an expert that the model has not, tied embeddings of which one would be frozen, a map
/// with an adapter, and model.base: nf4 or model.cache where no map would be frozen.
void require_trained_parts(const Recipe& recipe, const Blueprint& blueprint);
/// The recipe's mesh on `world_size` ranks. Throws UserError where it does not divide the ranks, or the ranks the
/// experts, heads and matrices: all mistakes in one.
MeshShape mesh_shape(const Recipe& recipe, const Blueprint& blueprint, int64_t world_size);
/// The balance loss that the recipe asks for of this model's router. Throws UserError for one that it cannot have.
BalanceSpec balance_spec(const Recipe& recipe, const Blueprint& blueprint);
/// Throws UserError where the recipe moves a correction bias that the model does not have.
void require_correction_bias(const Recipe& recipe, const Blueprint& blueprint);
/// Throws UserError where the recipe trains routers whose gradient is nothing: of one chosen expert a normalised weight
/// is 1 whatever the scores are, and no balance loss reads these.
void require_router_gradient(const Recipe& recipe, const Blueprint& blueprint);
/// What the recipe computes on, as this machine is.
at::DeviceType device_type(const Recipe& recipe);
/// Which of so many blocks keep what; with auto nothing, for the plan decides.
KeptBlocks kept_blocks(const KeepLayers& keep, int64_t num_blocks);
/// Whether checkpoints of which a rank has so many bytes are written beside training, by `checkpoint.async`; `room`:
/// the host has the memory for a second copy of them.
bool saves_beside_training(const CheckpointRecipe& checkpoint, int64_t bytes, bool room);
/// Rows that go through mixing at once on `device` when the recipe says auto.
int64_t automatic_slice_tokens(at::Device device);

}  // namespace moetune
