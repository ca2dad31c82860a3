// adapter_config.json, as PEFT writes it: what of it shapes the numbers, and nothing that would change them unnoticed.
//
//   PeftConfig config = read_peft_config("adapters/base");
//   write_peft_config("adapters/new", config);
//
// Read by an allowlist. Keys that shape the numbers are read; keys that only tell about an adapter may say anything of
// their type; every other key, known to PEFT or not, must stand at "nothing" (null, false, [], {}, ""). So a variant
// of LoRA that a later PEFT invents is refused by name, not trained as plain LoRA. Fields of PEFT 0.21.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

namespace moetune {

/// The fields of adapter_config.json that shape the numbers.
struct PeftConfig {
  int64_t rank = 0;
  double alpha = 0.0;
  bool rslora = false;
  double dropout = 0.0;
  std::vector<std::string> target_modules;
  std::vector<std::string> target_parameters;   ///< parameters of all experts of a layer together
  std::map<std::string, int64_t> rank_pattern;  ///< module name (a suffix) -> rank
  std::map<std::string, double> alpha_pattern;
  std::vector<std::string> modules_to_save;  ///< written only: modules that trained whole, beside the adapters
  std::string base_model;

  /// Whether PEFT could give a map this rank: r, or one of rank_pattern.
  bool allows_rank(int64_t rank) const;
};

/// Throws UserError, naming file and key, for what is no LoRA adapter, what this program does not compute (DoRA, bias,
/// modules_to_save, initialisations that changed the base, ...), and values of a wrong type.
PeftConfig read_peft_config(const std::filesystem::path& folder);
/// Writes adapter_config.json with every field that PEFT and serving engines look for.
void write_peft_config(const std::filesystem::path& folder, const PeftConfig& config);

}  // namespace moetune
