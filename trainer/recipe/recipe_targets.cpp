#include "trainer/recipe/recipe_targets.h"

#include <algorithm>
#include <utility>

#include "moe/trained_parts.h"

namespace moetune {
namespace {

const std::vector<std::pair<std::string, std::vector<std::string>>>& target_groups() {
  static const std::vector<std::string> kAttention = {"q_a_proj",  "q_b_proj", "q_proj", "kv_a_proj_with_mqa",
                                                      "kv_b_proj", "k_proj",   "v_proj", "o_proj"};
  static const std::vector<std::string> kDense = {"gate_proj", "up_proj", "down_proj"};
  static const std::vector<std::string> kExperts = {
      "experts.gate_proj", "experts.up_proj", "experts.down_proj", "experts.gate_up_proj",
      "experts.w1",        "experts.w3",      "experts.w2"};
  static const auto all = [] {
    std::vector<std::string> leaves = kAttention;
    leaves.insert(leaves.end(), kDense.begin(), kDense.end());
    leaves.insert(leaves.end(), kExperts.begin(), kExperts.end());
    return leaves;
  };
  static const std::vector<std::pair<std::string, std::vector<std::string>>> kGroups = {{"attention", kAttention},
                                                                                        {"dense_mlp", kDense},
                                                                                        {"shared_expert", kDense},
                                                                                        {"experts", kExperts},
                                                                                        {"all_linear", all()}};
  return kGroups;
}

}  // namespace

std::vector<std::string> target_leaf_words() { return target_leaves("all_linear"); }

std::vector<std::string> model_part_words() {
  const auto words = words_of(ModelPart());
  return {words.begin(), words.end()};
}

std::vector<std::string> target_words() {
  std::vector<std::string> words;
  for (const auto& [group, leaves] : target_groups()) words.push_back(group);
  for (const std::string& leaf : target_leaf_words()) words.push_back(leaf);
  return words;
}

std::vector<std::string> target_leaves(const std::string& target) {
  for (const auto& [group, leaves] : target_groups()) {
    if (group == target) return leaves;
    if (group == "all_linear" && std::find(leaves.begin(), leaves.end(), target) != leaves.end()) return {target};
  }
  return {};
}

}  // namespace moetune
