#include "moe/families/family.h"

#include <system_error>
#include <utility>

#include <nlohmann/json.hpp>

#include "moe/families/deepseek_v2.h"
#include "moe/families/deepseek_v3.h"
#include "moe/families/dots1.h"
#include "moe/families/glm4_moe.h"
#include "moe/families/gpt_oss.h"
#include "moe/families/llama4.h"
#include "moe/families/minimax_m2.h"
#include "moe/families/mixtral.h"
#include "moe/families/olmoe.h"
#include "moe/families/qwen_moe.h"
#include "parallel/base/error.h"
#include "parallel/base/strict_json.h"

namespace moetune {
namespace {

namespace fs = std::filesystem;

struct Family {
  const char* model_type;
  Blueprint (*read)(const ConfigReader& config);
};

/// By model_type, in the order of the alphabet.
constexpr Family kFamilies[] = {
    {"deepseek_v2", deepseek_v2},
    {"deepseek_v3", deepseek_v3},
    {"deepseek_v32", sparse_latent},
    {"dots1", dots1},
    {"glm4_moe", glm4_moe},
    {"glm4_moe_lite", latent_with_sigmoid_router},
    {"glm_moe_dsa", sparse_latent},
    {"gpt_oss", gpt_oss},
    {"kimi_k2", deepseek_v3},
    {"llama4", llama4},
    {"llama4_text", llama4_text},
    {"minimax_m2", minimax_m2},
    {"mixtral", mixtral},
    {"olmoe", olmoe},
    {"qwen2_moe", qwen2_moe},
    {"qwen3_moe", qwen3_moe},
};

}  // namespace

std::vector<std::string> known_model_types() {
  std::vector<std::string> types;
  for (const Family& family : kFamilies) types.emplace_back(family.model_type);
  return types;
}

Blueprint parse_blueprint(const nlohmann::json& object, const std::string& place) {
  const ConfigReader config(object, place);
  const std::string model_type = config.text_or("model_type", "");
  for (const Family& family : kFamilies) {
    if (model_type != family.model_type) continue;
    Blueprint model = family.read(config);
    model.model_type = model_type;
    return model;
  }
  std::string known;
  for (const std::string& type : known_model_types()) known += (known.empty() ? "" : ", ") + type;
  config.fail("model_type", str("is ", single_quoted(model_type), "; this program trains ", known));
}

Blueprint load_blueprint(const fs::path& folder) {
  const fs::path path = folder / "config.json";
  std::error_code ignored;
  if (fs::is_regular_file(folder, ignored)) {
    throw UserError(str(folder.string(), ": is a file; model.path must be the Hugging Face folder that holds it"));
  }
  if (!fs::exists(path, ignored)) {
    throw UserError(str(path.string(), ": cannot be read; model.path must be a Hugging Face folder with config.json"));
  }
  return parse_blueprint(read_json_object(path.string()), path.string());
}

}  // namespace moetune
