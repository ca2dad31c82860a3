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

const fs::path kFolder = fs::path(MOETUNE_SOURCE_DIR) / "tests" / "data" / "flagships";

}  // namespace

TEST_CASE("every flagship is read and counts to the unit", "[families]") {
  const nlohmann::json counts = read_json_object((kFolder / "counts.json").string());
  REQUIRE(counts.size() >= 18);
  for (const auto& [name, count] : counts.items()) {
    INFO(name);
    const Blueprint model = parse_blueprint(read_json_object((kFolder / (name + ".json")).string()), name + ".json");
    CHECK(count_parameters(model) == count.at("total").get<int64_t>());
    CHECK(count_active_parameters(model) == count.at("active").get<int64_t>());
  }
}

TEST_CASE("published numbers", "[families]") {
  const nlohmann::json counts = read_json_object((kFolder / "counts.json").string());
  // In billions, as their authors say: arXiv:2412.19437, 2405.04434, 2401.04088, the Qwen3 and gpt-oss model cards,
  // arXiv:2508.06471, the Llama-4 model card (text and vision together), arXiv:2409.02060.
  const std::map<std::string, std::pair<double, double>> published = {
      {"DeepSeek-V3", {671, 37}},     {"DeepSeek-V2", {236, 21}},     {"DeepSeek-V2-Lite", {15.7, 2.4}},
      {"Mixtral-8x7B", {46.7, 12.9}}, {"Qwen3-30B-A3B", {30.5, 3.3}}, {"Qwen3-235B-A22B", {235, 22}},
      {"gpt-oss-20b", {20.9, 3.6}},   {"gpt-oss-120b", {116.8, 5.1}}, {"GLM-4.5-Air", {106, 12}},
      {"Llama-4-Scout", {109, 17}},   {"OLMoE-1B-7B", {6.9, 1.3}},
  };
  for (const auto& [name, billions] : published) {
    INFO(name);
    CHECK(counts.at(name).at("total").get<double>() / 1e9 == Approx(billions.first).epsilon(0.012));
    // Some authors leave the embedding out of what is active.
    CHECK(counts.at(name).at("active").get<double>() / 1e9 == Approx(billions.second).epsilon(0.2));
  }
  CHECK(counts.at("Mixtral-8x7B").at("total") == 46'702'792'704);
  CHECK(counts.at("Qwen3-30B-A3B").at("total") == 30'532'122'624);
}
