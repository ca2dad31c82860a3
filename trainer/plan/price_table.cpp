#include "trainer/plan/price_table.h"

#include <set>

#include <nlohmann/json.hpp>

#include "parallel/base/error.h"
#include "parallel/base/program_files.h"
#include "parallel/base/strict_json.h"

namespace moetune {

std::optional<Price> PriceTable::of(const std::string& gpu, const std::string& cloud_class) const {
  const std::string wanted = cloud_class.empty() ? default_class : cloud_class;
  std::set<std::string> classes;
  for (const Price& price : prices) classes.insert(price.cloud_class);
  if (!cloud_class.empty() && !classes.contains(cloud_class)) {
    std::string known;
    for (const std::string& name : classes) known += (known.empty() ? "" : ", ") + name;
    throw UserError(str("no prices are of class \"", cloud_class, "\"; there are ", known));
  }
  std::optional<Price> other;
  for (const Price& price : prices) {
    if (price.gpu != gpu) continue;
    if (price.cloud_class == wanted) return price;
    if (!other && cloud_class.empty()) other = price;
  }
  return other;
}

PriceTable load_prices(const std::string& path) {
  const std::string file = path.empty() ? (program_files().recipes / "machines" / "prices.json").string() : path;
  const nlohmann::json json = read_json_object(file);
  try {
    PriceTable table{json.at("date").get<std::string>(), json.at("default_class").get<std::string>(), {}};
    for (const auto& entry : json.at("prices")) {
      Price price{entry.at("gpu").get<std::string>(), entry.at("class").get<std::string>(),
                  entry.at("dollars_per_gpu_hour").get<double>(), entry.value("source", file)};
      if (!(price.dollars_per_gpu_hour >= 0.0)) {
        throw UserError(
            str(file, ": ", price.gpu, ", ", price.cloud_class, ": a price of ", price.dollars_per_gpu_hour));
      }
      table.prices.push_back(std::move(price));
    }
    return table;
  } catch (const nlohmann::json::exception& error) {
    throw UserError(str(file, ": is no table of prices: ", error.what(),
                        "; {\"date\", \"default_class\", \"prices\": [{\"gpu\", \"class\", \"dollars_per_gpu_hour\", "
                        "\"source\"}]}"));
  }
}

}  // namespace moetune
