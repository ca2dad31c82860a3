// The names of the linear maps that a recipe can give adapters: groups, and leaf names as Hugging Face writes them.
//
//   target_leaves("attention") == {"q_a_proj", "q_b_proj", "q_proj", "kv_a_proj_with_mqa", "kv_b_proj", "k_proj", ...}
//   target_leaves("experts")   == {"experts.gate_proj", "experts.up_proj", "experts.down_proj", "experts.w1", ...}
//
// Families differ: a group stands for the names of all of them, of which a model has some (moe/blueprint.h).
// gate_proj, up_proj and down_proj alone are those of dense MLPs and shared experts, never of routed experts.
#pragma once

#include <string>
#include <vector>

namespace moetune {

/// The leaf names that a group stands for, or a leaf name itself, without saying in which part of a block they lie:
/// dense_mlp and shared_expert give the same three. Empty when `target` is neither.
std::vector<std::string> target_leaves(const std::string& target);

/// All that adapter.targets may list: groups first, then leaf names.
std::vector<std::string> target_words();

/// All leaf names: the keys that adapter.ranks may have.
std::vector<std::string> target_leaf_words();

/// All that train.parts may list, the words of ModelPart (moe/trained_parts.h).
std::vector<std::string> model_part_words();

}  // namespace moetune
