// What an hour of a GPU costs: a dated table with sources, shipped with the program or a file of the user's.
//
//   const PriceTable prices = load_prices("");                 // recipes/machines/prices.json
//   const Price price = prices.of("h100", "neocloud");
#pragma once

#include <optional>
#include <string>
#include <vector>

namespace moetune {

struct Price {
  std::string gpu;          ///< as machine profiles name it
  std::string cloud_class;  ///< marketplace, neocloud, hyperscaler
  double dollars_per_gpu_hour = 0.0;
  std::string source;
};

struct PriceTable {
  std::string date;  ///< when the table was made
  std::string default_class;
  std::vector<Price> prices;

  /// That of the class, or of the table's default where `cloud_class` is empty, or of another class where that one has
  /// none; none: the table does not know the GPU. Throws UserError for a class that the table has nowhere.
  std::optional<Price> of(const std::string& gpu, const std::string& cloud_class = "") const;
};

/// `path` empty: the shipped table. Throws UserError naming file and entry.
PriceTable load_prices(const std::string& path);

}  // namespace moetune
