// What becomes of an exported adapter in the hands of those who read it: which group of maps who reads, and what who
// drops or wants otherwise.
//
//   const ExportedAdapter file = {recipe, blueprint, reader, adapters, left_out, left_out_routers, rank};
//   std::cout << reader_table(file) << reader_notes(file);
//
// Sources: those of readers.h.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "moe/blueprint.h"
#include "trainer/exports/readers.h"
#include "trainer/exports/saved_run.h"
#include "trainer/recipe/recipe.h"

namespace moetune {

/// An export of adapters, as its readers find it. Refers to what it is made of.
struct ExportedAdapter {
  const AdapterRecipe& recipe;
  const Blueprint& blueprint;
  AdapterReader reader;  ///< for whom it was written
  const std::vector<SavedAdapter>& adapters;
  const std::vector<std::string>& left_out;          ///< paths, of the MTP module
  const std::vector<std::string>& left_out_routers;  ///< paths
  int64_t rank = 0;                                  ///< r of adapter_config.json
  int64_t mtp_layer = -1;                            ///< -1: the run had none
  bool wraps_parameters = false;                     ///< names target_parameters
};

/// Lines: for each group of maps what PEFT, vLLM and SGLang make of it.
std::string reader_table(const ExportedAdapter& file);
/// Lines: what is left out, dropped or wanted otherwise, each with the maps that it is about and the way out.
std::string reader_notes(const ExportedAdapter& file);

}  // namespace moetune
