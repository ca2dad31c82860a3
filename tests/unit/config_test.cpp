// config.json: what is read, in both spellings, and what is refused with which words.
#include "tests/support/catch.h"

#include <cmath>
#include <filesystem>

#include <nlohmann/json.hpp>

#include "moe/families/family.h"
#include "parallel/base/error.h"
#include "parallel/base/files.h"
#include "tests/support/deepseek_v3_config.h"
#include "tests/support/message_of.h"
#include "tests/support/temporary_folder.h"

using namespace moetune;
using nlohmann::json;

namespace {

json deepseek_v3() { return json::parse(kDeepseekV3Config); }

std::string refusal(const json& config) {
  return message_of<UserError>([&] { parse_blueprint(config, "config.json"); });
}
std::string refusal(const char* key, const json& value) {
  json config = deepseek_v3();
  config[key] = value;
  return refusal(config);
}

}  // namespace

TEST_CASE("DeepSeek-V3 is read as published", "[config]") {
  const Blueprint config = parse_blueprint(deepseek_v3(), "config.json");
  CHECK(config.vocab == 129280);
  CHECK(config.width == 7168);
  CHECK(config.attention().q_lora == 1536);
  CHECK(config.attention().key_dim() == 192);
  CHECK(config.router.experts == 256);
  CHECK(config.router.num_groups == 8);
  CHECK(config.router.top_groups == 4);
  CHECK(config.router.scale == 2.5);
  CHECK(config.num_mtp_layers == 1);
  CHECK(config.fp8_blocks);
  CHECK(!config.has_experts(LayerId::block(2)));
  CHECK(config.has_experts(LayerId::block(3)));
  CHECK(config.rotary.scaling == RotarySpec::Scaling::kYarn);
  CHECK(config.rotary.factor == 40);
  CHECK(config.attention().softmax_scale == Approx(0.13523378).epsilon(1e-7));
}

TEST_CASE("the softmax scale carries YaRN's correction alone", "[config]") {
  json config = deepseek_v3();
  config["rope_scaling"] = nullptr;
  CHECK(parse_blueprint(config, "").attention().softmax_scale == Approx(1 / std::sqrt(192.0)));
}

TEST_CASE("the spelling of transformers 5 says the same", "[config]") {
  json config = deepseek_v3();
  json rope = config["rope_scaling"];
  rope.erase("type");
  rope["rope_type"] = "yarn";
  rope["rope_theta"] = 50000.0;
  config.erase("rope_scaling");
  config.erase("rope_theta");
  config["rope_parameters"] = rope;
  const Blueprint read = parse_blueprint(config, "config.json");
  CHECK(read.rotary.theta == 50000.0);
  CHECK(read.rotary.scaling == RotarySpec::Scaling::kYarn);
  CHECK(read.attention().softmax_scale == Approx(0.13523378).epsilon(1e-7));

  config["rope_parameters"] = {{"rope_type", "default"}, {"rope_theta", 500.0}};
  CHECK(parse_blueprint(config, "config.json").rotary.scaling == RotarySpec::Scaling::kDefault);
  CHECK(parse_blueprint(config, "config.json").rotary.theta == 500.0);
  config["rope_parameters"] = nullptr;
  CHECK(parse_blueprint(config, "config.json").rotary.theta == 10000.0);
}

TEST_CASE("kimi_k2 and a plain query projection are read", "[config]") {
  json config = deepseek_v3();
  config["model_type"] = "kimi_k2";
  config["n_group"] = 1;
  config["topk_group"] = 1;
  config["n_routed_experts"] = 384;
  config["q_lora_rank"] = nullptr;
  const Blueprint read = parse_blueprint(config, "config.json");
  CHECK(read.router.experts == 384);
  CHECK(!read.attention().q_lora);
}

TEST_CASE("what is not computed is refused by name", "[config]") {
  CHECK(contains(refusal("model_type", "qwen9_moe"),
                 "config.json: model_type is 'qwen9_moe'; this program trains deepseek_v2, deepseek_v3"));
  CHECK(contains(refusal("hidden_act", "gelu"), "hidden_act is 'gelu'; only 'silu'"));
  CHECK(contains(refusal("scoring_func", "softmax"), "scoring_func is 'softmax'; only 'sigmoid'"));
  CHECK(contains(refusal("topk_method", "greedy"), "topk_method is 'greedy'; only 'noaux_tc'"));
  CHECK(contains(refusal("rope_interleave", false), "rope_interleave is false"));
  CHECK(contains(refusal("moe_layer_freq", 2), "moe_layer_freq is not 1"));
  CHECK(contains(refusal("num_key_value_heads", 8), "num_key_value_heads differs"));
  CHECK(contains(refusal("qk_rope_head_dim", 63), "qk_rope_head_dim is odd"));
  CHECK(contains(refusal("n_group", 7), "n_group does not divide 256 experts"));
  CHECK(contains(refusal("topk_group", 9), "topk_group exceeds n_group 8"));
  CHECK(contains(refusal("n_group", 256), "groups of one expert"));
  CHECK(contains(refusal("num_experts_per_tok", 129), "num_experts_per_tok exceeds"));
  CHECK(contains(refusal("n_routed_experts", 40000), "n_routed_experts is 40000"));
  CHECK(contains(refusal("vocab_size", 0), "vocab_size is 0, want a whole number of at least 1"));
  CHECK(contains(refusal("hidden_size", 7168.5), "hidden_size is 7168.5"));
  CHECK(contains(refusal("hidden_size", "7168"), "hidden_size is \"7168\""));
  CHECK(contains(refusal("rms_norm_eps", "small"), "rms_norm_eps is \"small\", want a number"));
  CHECK(contains(refusal("norm_topk_prob", 1), "norm_topk_prob is 1, want true or false"));
  CHECK(contains(refusal("hidden_act", 3), "hidden_act is 3, want text"));
  CHECK(contains(refusal("rope_scaling", {{"type", "linear"}, {"factor", 2}}),
                 "config.json: rope_scaling: type is 'linear'"));
  CHECK(contains(refusal("rope_scaling", {{"type", "yarn"}, {"factor", 2}}),
                 "rope_scaling: original_max_position_embeddings is missing"));
  CHECK(contains(refusal("rope_scaling", {{"type", "yarn"}, {"factor", 2}, {"original_max_position_embeddings", 0}}),
                 "is not above 0"));
  CHECK(contains(refusal("rope_scaling", {{"type", "yarn"}, {"factor", 0.5}, {"original_max_position_embeddings", 64}}),
                 "factor is 0.5, want at least 1"));
  CHECK(contains(refusal("quantization_config", {{"quant_method", "bitsandbytes"}}), "quant_method is 'bitsandbytes'"));
  CHECK(contains(refusal("quantization_config", {{"quant_method", "fp8"}, {"weight_block_size", {64, 128}}}),
                 "weight_block_size is [64,128]"));
  CHECK(contains(refusal(json::array()), "want a JSON object"));
  for (const char* key : {"vocab_size", "hidden_size", "num_hidden_layers", "kv_lora_rank", "v_head_dim",
                          "n_routed_experts", "num_experts_per_tok", "first_k_dense_replace", "n_shared_experts",
                          "n_group", "topk_group", "norm_topk_prob", "routed_scaling_factor", "q_lora_rank"}) {
    json config = deepseek_v3();
    config.erase(key);
    CHECK(contains(refusal(config), std::string(key) + " is missing"));
  }
}

TEST_CASE("a folder without a sound config.json is refused", "[config]") {
  const TemporaryFolder folder;
  CHECK(contains(message_of<UserError>([&] { load_blueprint(folder.path()); }), "must be a Hugging Face folder"));
  write_text_atomically(folder / "config.json", "{\"model_type\": ");
  CHECK(contains(message_of<UserError>([&] { load_blueprint(folder.path()); }), "config.json: not valid JSON"));
  write_text_atomically(folder / "config.json", deepseek_v3().dump());
  CHECK(load_blueprint(folder.path()).num_layers() == 61);
}

TEST_CASE("rotary parameters by kind of layer are refused, not passed over", "[config]") {
  for (const char* key : {"rope_parameters", "rope_scaling"}) {
    json config = deepseek_v3();
    config.erase("rope_scaling");
    config[key] = {{"full_attention", {{"rope_type", "yarn"}, {"factor", 4.0}}}};
    CHECK(contains(refusal(config), str(key, ": full_attention is {\"factor\":4.0,\"rope_type\":\"yarn\"}")));
  }
}

TEST_CASE("rope_parameters and rope_scaling say the same, or are refused", "[config]") {
  // transformers 5.17 takes rope_scaling, and with it another theta; earlier readers and this program's first versions
  // took rope_parameters.
  const json yarn = deepseek_v3()["rope_scaling"];
  json config = deepseek_v3();
  config["rope_parameters"] = {{"rope_type", "default"}, {"rope_theta", 10000.0}};
  CHECK(
      contains(refusal(config),
               "rope_scaling says yarn 40 x 4096 positions, theta 10000, beta 32 to 1, mscale 1, mscale_all_dim 1, but "
               "rope_parameters says default, theta 10000"));
  json same = yarn;
  same["rope_type"] = "yarn";
  same["rope_theta"] = 10000.0;
  config["rope_parameters"] = same;
  CHECK(refusal(config) == "(nothing was thrown)");
  same["rope_theta"] = 50000.0;
  config["rope_parameters"] = same;
  CHECK(contains(refusal(config), "disagree"));
  // Nothing, in either spelling.
  config["rope_parameters"] = json::object();
  CHECK(parse_blueprint(config, "").rotary.scaling == RotarySpec::Scaling::kYarn);
  config["rope_parameters"] = nullptr;
  CHECK(parse_blueprint(config, "").rotary.scaling == RotarySpec::Scaling::kYarn);
  config["rope_parameters"] = yarn;
  config["rope_scaling"] = nullptr;
  CHECK(parse_blueprint(config, "").rotary.scaling == RotarySpec::Scaling::kYarn);

  CHECK(contains(refusal("rope_scaling", json::array({1})), "rope_scaling: is [1], want a JSON object"));
  CHECK(contains(refusal("rope_scaling", "yarn"), "rope_scaling: is \"yarn\", want a JSON object"));
  CHECK(contains(refusal("partial_rotary_factor", 0.5), "partial_rotary_factor is not 1"));
  CHECK(contains(refusal("original_max_position_embeddings", 2048), "differs from the key of that name at the top"));
}

TEST_CASE("one thing under two keys is refused where they differ", "[config]") {
  CHECK(refusal("num_local_experts", 256) == "(nothing was thrown)");
  CHECK(contains(refusal("num_local_experts", 128), "num_local_experts is 128, but n_routed_experts is 256"));
  CHECK(contains(refusal("num_mtp_layers", 2), "num_mtp_layers is 2, but num_nextn_predict_layers is 1"));
  CHECK(contains(refusal("qk_head_dim", 128), "qk_head_dim is not qk_nope_head_dim + qk_rope_head_dim, which is 192"));
  CHECK(contains(refusal("attention_dropout", 0.1), "attention_dropout is not 0"));
  CHECK(contains(refusal("norm_topk_prob", nullptr), "norm_topk_prob is null"));
  json fp8 = deepseek_v3()["quantization_config"];
  fp8["fmt"] = "e5m2";
  CHECK(contains(refusal("quantization_config", fp8), "fmt is 'e5m2'; only e4m3"));
}

TEST_CASE("sizes are bounded before anything is made of them", "[config]") {
  for (const char* key :
       {"vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size", "moe_intermediate_size",
        "num_attention_heads", "q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim",
        "n_routed_experts", "n_shared_experts", "num_experts_per_tok", "num_nextn_predict_layers"}) {
    for (const json& size : {json(int64_t{1} << 32), json(int64_t{1} << 62), json(~uint64_t{0}), json(-1), json(1e9),
                             json("1e9"), json::array({61}), json::object(), json(true)}) {
      INFO(key << " " << size.dump());
      CHECK(contains(refusal(key, size), std::string("config.json: ") + key + " is " + size.dump()));
    }
  }
  // Each alone is allowed; their product is of no model.
  json config = deepseek_v3();
  config["hidden_size"] = 1 << 20;
  config["moe_intermediate_size"] = 1 << 24;
  CHECK(contains(refusal(config), "at most 1e+15"));
  config = deepseek_v3();
  config["num_hidden_layers"] = 4096;
  config["n_routed_experts"] = 32760;
  CHECK(contains(refusal(config), "at most 262144 experts in all layers"));
  CHECK(contains(refusal("initializer_range", 1e300), "initializer_range is not within"));
  CHECK(contains(refusal("rms_norm_eps", -1), "rms_norm_eps is not within"));
}

TEST_CASE("a wrong type is refused with file, key and value, whatever the key", "[config]") {
  const json wrong[] = {0, 1.5, "text", true, json::array({1, 2}), {{"a", 1}}};
  const json sound = deepseek_v3();
  for (const auto& [key, value] : sound.items()) {
    for (const json& other : wrong) {
      if (other.type() == value.type() || (other.is_number() && value.is_number())) continue;
      INFO(key << " " << other.dump());
      const std::string said = refusal(key.c_str(), other);
      CHECK(contains(said, "config.json: " + key));
    }
  }
  CHECK(contains(refusal("model_type", 0), "model_type is 0, want text"));
  CHECK(contains(refusal("model_type", "a\x1b[2Jb\n"), "model_type is 'a\\u001b[2Jb\\n'"));
}

TEST_CASE("config.json is a file in a folder, each key once", "[config]") {
  const TemporaryFolder folder;
  const std::string path = folder / "config.json";
  const auto said = [&](const std::string& model) { return message_of<UserError>([&] { load_blueprint(model); }); };
  std::string twice = deepseek_v3().dump();
  twice.insert(1, "\"vocab_size\": 5, ");
  write_text_atomically(path, twice);
  CHECK(contains(said(folder.path()), "\"vocab_size\" is given twice"));
  CHECK(contains(said(path), "is a file; model.path must be the Hugging Face folder"));
  for (const char* text : {"", "[]", "null", "{\"a\": NaN}", "\xff", "{} {}"}) {
    INFO(text);
    write_text_atomically(path, text);
    CHECK(contains(said(folder.path()), "config.json: "));
  }
  write_text_atomically(path, std::string(100000, '['));
  CHECK(contains(said(folder.path()), "nested deeper"));
  std::filesystem::remove(path);
  std::filesystem::create_directory(path);
  CHECK(contains(said(folder.path()), "not a regular file"));
}
