// moetune plan: what a run needs, takes and costs, without GPUs, mpirun, weights or data.
//
//   const PlanAnswer answer = plan({.recipe = "recipes/deepseek-v3-attention.yaml", .on = "16xH100"});
//   std::cout << answer.text;
//   return answer.fits ? 0 : 3;
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace moetune {

struct PlanOptions {
  /// A file, or empty: `model` and `method` say what is trained. Beside `model` "key.sub=value" is an override too.
  std::string recipe;
  std::vector<std::string> overrides;  ///< of the recipe
  std::string model;                   ///< a shipped model's name, or a folder with config.json
  std::string method = "attention";    ///< attention, experts, full
  std::optional<int64_t> documents, tokens_per_document;
  std::string lengths;  ///< file that DataAmount::of_file() takes
  std::string on;       ///< "16xH100" or several with commas; empty: the machine at hand
  std::string machine;  ///< file of moetune bench, instead of figures that come with the program
  std::string network = "ndr", disk = "nvme";
  std::string prices, price_class;  ///< empty: the shipped table, its class
  std::optional<double> price;      ///< dollars a GPU-hour, instead of the table's
  double host_memory_gb = 0.0;      ///< for each GPU; 0: 200 of machines that are named, all of the one at hand
  double skew = 0.0;                ///< 0: not known
  std::string receipts;             ///< folder of run folders: what they say of the planner corrects it
  bool json = false;
  std::string html;  ///< file to write

  bool search = false;  ///< the cheapest and the fastest layout of the recipe that fit
  int64_t max_gpus = 16;
  std::optional<double> max_hours, max_dollars;
  std::string to;  ///< recipe to write: the cheapest layout; the fastest beside it
};

struct PlanAnswer {
  std::string text;  ///< for standard output
  bool fits = false;
};

/// Throws UserError.
PlanAnswer plan(const PlanOptions& options);

}  // namespace moetune
