#include "moe/families/gpt_oss.h"

#include "parallel/base/error.h"

namespace moetune {
namespace {

// What transformers and the authors' code have written down as numbers.
constexpr double kLimit = 7.0, kAlpha = 1.702;

}  // namespace

Blueprint gpt_oss(const ConfigReader& config) {
  if (config.number_or("swiglu_limit", kLimit) != kLimit) {
    config.fail("swiglu_limit",
                str("is not ", kLimit, ", and transformers computes with ", kLimit, " whatever it says"));
  }
  config.require({"num_key_value_heads", "head_dim"});
  Blueprint model;
  config.read_common(model, /*mxfp4=*/true);
  if (!config.has("rope_scaling") && !config.has("rope_parameters")) {
    config.fail("rope_scaling", "is missing, and readers of this format differ in what that means");
  }
  model.rotary.theta = 150000;
  LayerSpec layer;
  layer.attention = config.read_grouped_query(model.rotary, model.max_positions);
  layer.attention.qkv_bias = layer.attention.o_bias = config.flag_or("attention_bias", true);
  layer.attention.sinks = true;
  model.layers.assign(config.num_layers(), layer);
  // The first layer slides, the second does not, ...
  std::vector<std::string> types;
  if (config.has("layer_types")) types = config.texts("layer_types");
  else {
    for (int64_t i = 0; i < model.num_layers(); ++i) {
      types.emplace_back(i % 2 == 0 ? "sliding_attention" : "full_attention");
    }
  }
  if (static_cast<int64_t>(types.size()) != model.num_layers()) {
    config.fail("layer_types", str("names ", types.size(), " layers, but num_hidden_layers is ", model.num_layers()));
  }
  for (int64_t i = 0; i < model.num_layers(); ++i) {
    if (types[i] == "sliding_attention") {
      model.layers[i].attention.mask = {MaskSpec::Kind::kWindow, config.integer("sliding_window", 1)};
    } else if (types[i] != "full_attention") {
      config.fail("layer_types",
                  str("holds ", single_quoted(types[i]), ", want 'sliding_attention' or 'full_attention'"));
    }
  }
  config.read_router_sizes(model.router, "num_local_experts", "num_experts");
  model.router.scores = RouterSpec::Scores::kSoftmaxOfChosen;
  model.router.bias = true;
  model.router.normalise = false;
  model.experts.width = config.integer("intermediate_size", 1, kMostFeatures);
  model.experts.activation = ExpertSpec::Activation::kClampedSwiglu;
  model.experts.activation_limit = kLimit;
  model.experts.activation_alpha = kAlpha;
  model.experts.biases = true;
  model.experts.layout = ExpertSpec::Layout::kInterleaved;
  model.naming.router = "router";
  config.check_size(model, "num_local_experts");
  return model;
}

}  // namespace moetune
