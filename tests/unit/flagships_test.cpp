// The configurations that people download: each is read, and counts to the number that transformers' own model of it
// has (tests/parity/counts_test.py) and that its authors publish.
#include "tests/support/catch.h"

#include <filesystem>
#include <map>

#include <nlohmann/json.hpp>

#include "moe/families/family.h"
#include "moe/inventory.h"
#include "parallel/base/strict_json.h"

using namespace moetune;
namespace fs = std::filesystem;

namespace {

const fs::path kSource = MOETUNE_SOURCE_DIR;
const fs::path kModels = kSource / "recipes" / "models";
const fs::path kCounts = kSource / "tests" / "data" / "flagships" / "counts.json";

}  // namespace

TEST_CASE("every flagship is read and counts to the unit", "[families]") {
  const nlohmann::json counts = read_json_object(kCounts.string());
  REQUIRE(counts.size() >= 18);
  for (const auto& [name, count] : counts.items()) {
    INFO(name);
    const Blueprint model = parse_blueprint(read_json_object((kModels / (name + ".json")).string()), name + ".json");
    CHECK(count_parameters(model) == count.at("total").get<int64_t>());
    CHECK(count_active_parameters(model) == count.at("active").get<int64_t>());
  }
}

TEST_CASE("published numbers", "[families]") {
  const nlohmann::json counts = read_json_object(kCounts.string());
  // In billions, as their authors say: arXiv:2412.19437, 2405.04434, 2401.04088, the Qwen3 and gpt-oss model cards,
  // arXiv:2508.06471, the Llama-4 model card (text and vision together), arXiv:2409.02060.
  const std::map<std::string, std::pair<double, double>> published = {
      {"deepseek-v3", {671, 37}},     {"deepseek-v2", {236, 21}},     {"deepseek-v2-lite", {15.7, 2.4}},
      {"mixtral-8x7b", {46.7, 12.9}}, {"qwen3-30b-a3b", {30.5, 3.3}}, {"qwen3-235b-a22b", {235, 22}},
      {"gpt-oss-20b", {20.9, 3.6}},   {"gpt-oss-120b", {116.8, 5.1}}, {"glm-4.5-air", {106, 12}},
      {"llama-4-scout", {109, 17}},   {"olmoe-1b-7b", {6.9, 1.3}},
  };
  for (const auto& [name, billions] : published) {
    INFO(name);
    CHECK(counts.at(name).at("total").get<double>() / 1e9 == Approx(billions.first).epsilon(0.012));
    // Some authors leave the embedding out of what is active.
    CHECK(counts.at(name).at("active").get<double>() / 1e9 == Approx(billions.second).epsilon(0.2));
  }
  CHECK(counts.at("mixtral-8x7b").at("total") == 46'702'792'704);
  CHECK(counts.at("qwen3-30b-a3b").at("total") == 30'532'122'624);
}
