// Exports and merges of a tiny checkpoint that the test wrote itself. Expected values are computed here, in fp64 where
// they are sums.
#include "tests/support/catch.h"

#include <cmath>
#include <filesystem>
#include <regex>

#include "lora/adapters/peft_files.h"
#include "lora/formats/nf4.h"
#include "parallel/base/files.h"
#include "tests/support/memory_count.h"
#include "tests/support/message_of.h"
#include "tests/support/tiny_run.h"
#include "trainer/exports/export.h"
#include "trainer/exports/inspect.h"
#include "trainer/exports/merge.h"
#include "trainer/exports/model_writer.h"
#include "trainer/exports/saved_run.h"

using namespace moetune;
namespace fs = std::filesystem;

namespace {

const std::string kPrefix = "base_model.model.";
const std::string kExpert = "model.layers.1.mlp.experts.3.up_proj";

std::map<std::string, at::Tensor> read_all(const std::string& path) {
  const SafetensorsFile file(path);
  std::map<std::string, at::Tensor> tensors;
  for (const std::string& name : file.names()) tensors[name] = read_tensor(file, name);
  return tensors;
}

bool ends_with(const std::string& text, const std::string& end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

std::vector<std::string> names_of(const std::map<std::string, at::Tensor>& tensors, const std::string& prefix = "") {
  std::vector<std::string> names;
  for (const auto& [name, tensor] : tensors) names.push_back(prefix + name);
  return names;
}

/// Whether `rounded` (bf16) is `exact` (fp64) rounded once, up to the error of an fp32 sum of a few terms.
bool is_rounded(const at::Tensor& rounded, const at::Tensor& exact) {
  const at::Tensor error = (rounded.to(at::kDouble) - exact).abs();
  return error.le(exact.abs() * std::pow(2.0, -8) * 1.001 + 1e-5).all().item<bool>();
}

}  // namespace

TEST_CASE("an adapter leaves as PEFT keeps it", "[export]") {
  const TinyRun run;
  const std::string report = export_adapter(run.folder(), run.to("out"), AdapterReader::kPeft);
  const auto tensors = read_all(run.to("out") + "/adapter_model.safetensors");
  REQUIRE(names_of(tensors) == names_of(run.trained, kPrefix));
  for (const auto& [name, master] : run.trained) CHECK(at::equal(tensors.at(kPrefix + name), master));
  CHECK(tensors.at(kPrefix + kExpert + ".lora_A.weight").sizes() == at::IntArrayRef({2, 16}));
  const PeftConfig config = read_peft_config(run.to("out"));
  CHECK(config.rank == 2);
  CHECK(config.alpha == 6.0);
  CHECK_FALSE(config.rslora);
  CHECK(config.rank_pattern.empty());
  CHECK(config.target_modules == std::vector<std::string>{"gate_proj", "kv_b_proj", "o_proj", "up_proj"});
  CHECK(config.base_model == run.model().string());
  CHECK_FALSE(fs::exists(run.to("out") + "/router_bias.safetensors"));
  CHECK(contains(report, "experts: 8 linear maps, 16 tensors"));
  CHECK(contains(report, "model.layers.1.self_attn.kv_b_proj"));  // vLLM ignores it
  CHECK(contains(report, "all three projections"));
  CHECK(contains(report, "without those of down_proj"));
  CHECK_FALSE(contains(report, "drops these"));
}

TEST_CASE("one checkpoint exports like its run; a damaged one is passed over or refused", "[export]") {
  const TinyRun run;
  export_adapter(run.checkpoint(), run.to("a"), AdapterReader::kPeft, "someone/base");
  CHECK(read_peft_config(run.to("a")).base_model == "someone/base");
  const fs::path damaged = run.folder() / "checkpoints" / "step-00000009";
  fs::copy(run.checkpoint(), damaged, fs::copy_options::recursive);
  const std::string manifest = read_text_file((damaged / "manifest.json").string());
  write_text_atomically((damaged / "manifest.json").string(),
                        std::regex_replace(manifest, std::regex("\"step\":7"), "\"step\":9"));
  write_text_atomically((damaged / "state-00001-of-00002.safetensors").string(), "cut");
  CHECK(contains(export_adapter(run.folder(), run.to("b"), AdapterReader::kPeft), "adapter of step 7"));
  CHECK(contains(message_of<UserError>([&] { export_adapter(damaged, run.to("c"), AdapterReader::kPeft); }),
                 "manifest.json says"));
  CHECK_FALSE(fs::exists(run.to("c")));
  CHECK(contains(message_of<UserError>([&] { export_adapter(run.model(), run.to("c"), AdapterReader::kPeft); }),
                 "holds no checkpoint"));
  CHECK(contains(message_of<UserError>([&] { export_adapter(run.folder(), run.model(), AdapterReader::kPeft); }),
                 "nothing was changed"));
}

TEST_CASE("ranks of single maps, dense maps and biases are said", "[export]") {
  const TinyRun run({.adapter = "{rank: 2, alpha: 6, targets: [o_proj, gate_proj, up_proj, experts.down_proj], ranks: "
                                "{o_proj: 3, gate_proj: 4}}",
                     .maps = {{"0.self_attn.o_proj", 3},
                              {"0.mlp.gate_proj", 4},
                              {"0.mlp.up_proj", 2},
                              {"1.mlp.shared_experts.gate_proj", 4},
                              {"1.mlp.experts.*.down_proj", 2}},
                     .router_bias = "update"});
  const std::string report = export_adapter(run.folder(), run.to("out"), AdapterReader::kPeft);
  const PeftConfig config = read_peft_config(run.to("out"));
  CHECK(config.rank == 2);
  CHECK(config.rank_pattern == std::map<std::string, int64_t>{{"self_attn\\.o_proj", 3},
                                                              {"mlp\\.gate_proj", 4},
                                                              {"mlp\\.shared_experts\\.gate_proj", 4}});
  CHECK(contains(report, "drops these"));
  CHECK(contains(report, "model.layers.0.mlp.gate_proj"));
  CHECK(contains(report, "model.layers.1.mlp.shared_experts.gate_proj"));
  CHECK(contains(report, "router_bias.safetensors"));
  const auto biases = read_all(run.to("out") + "/router_bias.safetensors");
  REQUIRE(names_of(biases) == std::vector<std::string>{"model.layers.1.mlp.gate.e_score_correction_bias"});
  CHECK(at::equal(biases.begin()->second, run.router_bias));
}

TEST_CASE("an adapter for vLLM has one rank, a scale of one and whole experts", "[export]") {
  const TinyRun run(
      {.adapter = "{rank: 2, alpha: 6, rslora: true, targets: [o_proj, experts.up_proj, experts.down_proj], ranks: "
                  "{o_proj: 4}}",
       .maps = {{"0.self_attn.o_proj", 4}, {"1.mlp.experts.*.down_proj", 2}, {"1.mlp.experts.*.up_proj", 2}}});
  export_adapter(run.folder(), run.to("out"), AdapterReader::kVllm);
  const PeftConfig config = read_peft_config(run.to("out"));
  CHECK(config.rank == 4);
  CHECK(config.alpha == 4.0);
  CHECK_FALSE(config.rslora);
  CHECK(config.rank_pattern.empty());
  CHECK(config.target_modules == std::vector<std::string>{"down_proj", "gate_proj", "o_proj", "up_proj"});
  const auto tensors = read_all(run.to("out") + "/adapter_model.safetensors");
  CHECK(tensors.size() == 2 * (1 + 3 * 4));
  for (const auto& [name, tensor] : tensors) CHECK(tensor.size(ends_with(name, ".lora_A.weight") ? 0 : 1) == 4);
  auto delta = [](const std::map<std::string, at::Tensor>& from, const std::string& path) {
    return at::mm(from.at(path + ".lora_B.weight").to(at::kDouble), from.at(path + ".lora_A.weight").to(at::kDouble));
  };
  CHECK(at::allclose(delta(tensors, kPrefix + kExpert), delta(run.trained, kExpert) * (6.0 / std::sqrt(2.0)), 1e-6,
                     1e-6));
  const std::string o_proj = "model.layers.0.self_attn.o_proj";
  CHECK(at::allclose(delta(tensors, kPrefix + o_proj), delta(run.trained, o_proj) * 3.0, 1e-6, 1e-6));
  const std::string untrained = kPrefix + "model.layers.1.mlp.experts.2.gate_proj";
  CHECK(tensors.at(untrained + ".lora_A.weight").sizes() == at::IntArrayRef({4, 16}));
  CHECK(tensors.at(untrained + ".lora_B.weight").sizes() == at::IntArrayRef({8, 4}));
  CHECK(tensors.at(untrained + ".lora_A.weight").count_nonzero().item<int64_t>() == 0);
}

TEST_CASE("what reads adapters is known of every family, and a reader that is not known is refused", "[export]") {
  for (const std::string& type : known_model_types()) CHECK(readers_of(type).model_type == type);
  Blueprint blueprint = parse_blueprint(tiny_config(), "tiny");
  for (const std::string_view word : words_of(AdapterReader::kPeft)) {
    require_reader(blueprint, adapter_reader(std::string(word)));
  }
  blueprint.model_type = "olmoe";
  require_reader(blueprint, AdapterReader::kVllm);
  CHECK(
      contains(message_of<UserError>([&] { require_reader(blueprint, AdapterReader::kSglang); }), "experts of olmoe"));
  CHECK(contains(message_of<UserError>([&] { adapter_reader("ggml"); }), "--for ggml"));
  CHECK(vllm_max_rank(1) == 1);
  CHECK(vllm_max_rank(9) == 16);
  CHECK(vllm_max_rank(512) == 512);
  CHECK(contains(message_of<UserError>([&] { vllm_max_rank(513); }), "rank 513"));
}

TEST_CASE("an adapter in transformers' fused form has gate and up as one pair", "[export]") {
  const TinyRun run;  // gate and up of rank 2, four experts of width 8
  export_adapter(run.folder(), run.to("out"), AdapterReader::kPeft3d);
  const PeftConfig config = read_peft_config(run.to("out"));
  CHECK(config.target_parameters == std::vector<std::string>{"mlp.experts.gate_up_proj"});
  CHECK(config.target_modules == std::vector<std::string>{"kv_b_proj", "o_proj"});
  CHECK(config.alpha == static_cast<double>(config.rank));
  CHECK(config.rank_pattern == std::map<std::string, int64_t>{{"mlp\\.experts\\.gate_up_proj", 4}});
  CHECK(config.alpha_pattern == std::map<std::string, double>{{"mlp\\.experts\\.gate_up_proj", 4.0}});
  const auto tensors = read_all(run.to("out") + "/adapter_model.safetensors");
  const std::string stack = kPrefix + "model.layers.1.mlp.experts";
  const at::Tensor a = tensors.at(stack + ".lora_A.weight").view({4, 4, 16});
  const at::Tensor b = tensors.at(stack + ".lora_B.weight").view({16, 4, 4});
  for (int64_t e = 0; e < 4; ++e) {
    const at::Tensor delta = at::mm(b.select(2, e).to(at::kDouble), a[e].to(at::kDouble));
    for (const auto& [leaf, first] : std::vector<std::pair<std::string, int64_t>>{{"gate_proj", 0}, {"up_proj", 8}}) {
      const std::string path = str("model.layers.1.mlp.experts.", e, ".", leaf);
      const at::Tensor expected = at::mm(run.trained.at(path + ".lora_B.weight").to(at::kDouble),
                                         run.trained.at(path + ".lora_A.weight").to(at::kDouble)) *
                                  3.0;
      CHECK(at::allclose(delta.narrow(0, first, 8), expected, 1e-6, 1e-6));
    }
  }
}

TEST_CASE("a base leaves as it was trained on", "[export]") {
  for (const auto& [base, compute, dtype] :
       std::vector<std::tuple<std::string, std::string, at::ScalarType>>{{"nf4", "bf16", at::kBFloat16},
                                                                         {"nf4_double", "fp32", at::kFloat},
                                                                         {"fp32", "fp64", at::kFloat},
                                                                         {"bf16", "bf16", at::kBFloat16}}) {
    INFO(base << " " << compute);
    const TinyRun run({.base = base, .compute = compute, .router_bias = "update"});
    const std::string report = export_base(run.folder(), run.to("out"));
    const auto tensors = read_all(run.to("out") + "/model.safetensors");
    REQUIRE(names_of(tensors) == names_of(run.weights));
    for (const auto& [name, original] : run.weights) {
      INFO(name);
      at::Tensor expected = original.to(dtype);
      if (ends_with(name, "mlp.gate.weight")) expected = original;
      if (ends_with(name, "e_score_correction_bias")) expected = run.router_bias;
      if (ends_with(name, "_proj.weight") || ends_with(name, "mqa.weight")) {
        if (base.rfind("nf4", 0) == 0) {
          expected = at::empty(original.sizes(), at::TensorOptions(dtype));
          nf4_dequantise_into(nf4_quantise(original, base == "nf4_double"), expected);
        }
      }
      CHECK(tensors.at(name).scalar_type() == expected.scalar_type());
      CHECK(at::equal(tensors.at(name), expected));
    }
    const auto config = nlohmann::json::parse(read_text_file(run.to("out") + "/config.json"));
    CHECK(config.at("torch_dtype") == (dtype == at::kFloat ? "float32" : "bfloat16"));
    CHECK(config.at("n_routed_experts") == 4);
    CHECK(fs::exists(run.to("out") + "/tokenizer.json"));
    CHECK(contains(report, "largest relative difference"));
  }
}

TEST_CASE("weights that were trained leave as a model", "[export]") {
  const TinyRun run({.adapter = "none", .base = "fp32", .compute = "bf16", .stored = at::kBFloat16});
  export_base(run.folder(), run.to("out"));
  const auto tensors = read_all(run.to("out") + "/model.safetensors");
  REQUIRE(names_of(tensors) == names_of(run.weights));
  for (const auto& [name, tensor] : tensors) {
    INFO(name);
    if (ends_with(name, "e_score_correction_bias")) CHECK(at::equal(tensor, run.weights.at(name)));
    else CHECK(at::equal(tensor, run.trained.at(name).to(at::kBFloat16)));
  }
  CHECK(contains(message_of<UserError>([&] { export_adapter(run.folder(), run.to("x"), AdapterReader::kPeft); }),
                 "--base"));
  // What --for hf of a run of weights is: the same in the dtypes of the source.
  const std::string report = merge_run(run.folder(), run.to("merged"));
  CHECK(contains(report, "trained weights of step 7"));
  const auto merged = read_all(run.to("merged") + "/model.safetensors");
  REQUIRE(names_of(merged) == names_of(run.weights));
  for (const auto& [name, tensor] : merged) {
    INFO(name);
    CHECK(tensor.scalar_type() == run.weights.at(name).scalar_type());
    const bool bias = ends_with(name, "e_score_correction_bias");
    CHECK(at::equal(tensor, bias ? run.weights.at(name) : run.trained.at(name).to(tensor.scalar_type())));
  }
  const TinyRun wide({.adapter = "none", .base = "fp32", .compute = "bf16", .router_bias = "update"});
  merge_run(wide.folder(), wide.to("merged"));
  for (const auto& [name, tensor] : read_all(wide.to("merged") + "/model.safetensors")) {
    INFO(name);
    const bool bias = ends_with(name, "e_score_correction_bias");
    CHECK(at::equal(tensor, bias ? wide.router_bias : wide.trained.at(name)));  // fp32 as the masters: bit for bit
  }
}

TEST_CASE("a merge adds s B A to the original weights and rounds once", "[export]") {
  for (const bool rslora : {false, true}) {
    const TinyRun run(
        {.adapter = str("{rank: 2, alpha: 6, rslora: ", rslora ? "true" : "false", ", targets: [attention, experts]}"),
         .router_bias = rslora ? "update" : "frozen",
         .stored = at::kBFloat16});
    const std::string report = merge_run(run.folder(), run.to("out"));
    const auto tensors = read_all(run.to("out") + "/model.safetensors");
    REQUIRE(names_of(tensors) == names_of(run.weights));
    int64_t changed = 0;
    for (const auto& [name, original] : run.weights) {
      INFO(name);
      const std::string path = name.substr(0, name.rfind('.'));
      if (run.trained.count(path + ".lora_A.weight") > 0) {
        const at::Tensor delta = at::mm(run.trained.at(path + ".lora_B.weight").to(at::kDouble),
                                        run.trained.at(path + ".lora_A.weight").to(at::kDouble)) *
                                 (6.0 / (rslora ? std::sqrt(2.0) : 2.0));
        CHECK(tensors.at(name).scalar_type() == at::kBFloat16);
        CHECK(is_rounded(tensors.at(name), original.to(at::kDouble) + delta));
        ++changed;
      } else if (rslora && ends_with(name, "e_score_correction_bias")) {
        CHECK(at::equal(tensors.at(name), run.router_bias));
      } else {
        CHECK(tensors.at(name).scalar_type() == original.scalar_type());
        CHECK(at::equal(tensors.at(name), original));
      }
    }
    CHECK(changed == 10);
    CHECK(contains(report, str(changed, " of ", tensors.size(), " tensors changed")));
    CHECK(contains(report, "trained on weights in nf4"));
    CHECK_FALSE(contains(report, "warning"));
  }
}

TEST_CASE("a merge warns where rounding swallows the delta, and refuses another model", "[export]") {
  const TinyRun small({.adapter = "{rank: 2, alpha: 0.001, targets: [attention, experts]}", .stored = at::kBFloat16});
  CHECK(contains(merge_run(small.folder(), small.to("out")), "warning: rounding disturbs"));
  const TinyRun run({.maps = {{"0.self_attn.o_proj", 2}}});
  std::map<std::string, at::Tensor> others = run.weights;
  others["model.layers.0.self_attn.o_proj.weight"] = at::zeros({16, 32});
  write_tensors((run.model() / "model.safetensors").string(), {others.begin(), others.end()}, {});
  CHECK(contains(message_of<UserError>([&] { merge_run(run.folder(), run.to("out")); }),
                 "model.layers.0.self_attn.o_proj"));
  CHECK_FALSE(fs::exists(run.to("out")));
}

TEST_CASE("FP8 weights are merged in bf16 and lose their scales", "[export]") {
  const TinyRun run({.maps = {{"0.self_attn.o_proj", 2}}, .stored = at::kBFloat16});
  std::map<std::string, at::Tensor> stored = run.weights;
  for (const char* name : {"model.layers.0.self_attn.o_proj.weight", "model.layers.0.self_attn.q_a_proj.weight"}) {
    stored[name] = run.weights.at(name).to(at::kFloat8_e4m3fn);
    stored[str(name, "_scale_inv")] = at::full({1, 1}, 0.5, at::kFloat);
  }
  write_tensors((run.model() / "model.safetensors").string(), {stored.begin(), stored.end()}, {});
  nlohmann::ordered_json config = tiny_config();
  config["quantization_config"] = {{"quant_method", "fp8"}, {"weight_block_size", {128, 128}}};
  write_text_atomically((run.model() / "config.json").string(), config.dump());
  merge_run(run.folder(), run.to("out"));
  const auto tensors = read_all(run.to("out") + "/model.safetensors");
  REQUIRE(names_of(tensors) == names_of(run.weights));
  const at::Tensor q = stored.at("model.layers.0.self_attn.q_a_proj.weight").to(at::kDouble) * 0.5;
  CHECK(at::equal(tensors.at("model.layers.0.self_attn.q_a_proj.weight").to(at::kDouble), q));
  const std::string o = "model.layers.0.self_attn.o_proj";
  const at::Tensor delta = at::mm(run.trained.at(o + ".lora_B.weight").to(at::kDouble),
                                  run.trained.at(o + ".lora_A.weight").to(at::kDouble)) *
                           3.0;
  CHECK(is_rounded(tensors.at(o + ".weight"), stored.at(o + ".weight").to(at::kDouble) * 0.5 + delta));
  CHECK_FALSE(nlohmann::json::parse(read_text_file(run.to("out") + "/config.json")).contains("quantization_config"));
}

TEST_CASE("weights that were trained leave in FP8 blocks where the source has such", "[export]") {
  for (const char* scale_fmt : {"", "ue8m0"}) {
    const TinyRun run({.adapter = "none", .base = "fp32", .compute = "bf16", .stored = at::kBFloat16});
    CHECK(contains(message_of<UserError>([&] { merge_run(run.folder(), run.to("out"), MergeFormat::kHfFp8); }),
                   "not in FP8 blocks"));
    const std::string path = "model.layers.0.self_attn.o_proj";
    std::map<std::string, at::Tensor> stored = run.weights;
    stored[path + ".weight"] = run.weights.at(path + ".weight").to(at::kFloat8_e4m3fn);
    stored[path + ".weight_scale_inv"] = at::full({1, 1}, 0.5, at::kFloat);
    write_tensors((run.model() / "model.safetensors").string(), {stored.begin(), stored.end()}, {});
    nlohmann::ordered_json config = tiny_config();
    config["quantization_config"] = {{"quant_method", "fp8"}, {"weight_block_size", {128, 128}}};
    if (*scale_fmt != 0) config["quantization_config"]["scale_fmt"] = scale_fmt;
    write_text_atomically((run.model() / "config.json").string(), config.dump());
    merge_run(run.folder(), run.to("out"), MergeFormat::kHfFp8);
    const auto tensors = read_all(run.to("out") + "/model.safetensors");
    REQUIRE(names_of(tensors) == names_of(stored));
    for (const auto& [name, tensor] : tensors) {
      if (name.starts_with(path) || ends_with(name, "e_score_correction_bias")) continue;
      INFO(name);
      CHECK(at::equal(tensor, run.trained.at(name).to(stored.at(name).scalar_type())));
    }
    // One block: its largest number is e4m3's largest, or within a factor of two where scales are powers of two; all
    // others lie within half a step, 2^-4 of themselves or the smallest number's half.
    const at::Tensor master = run.trained.at(path + ".weight").to(at::kDouble);
    const double scale = tensors.at(path + ".weight_scale_inv").item<double>(),
                 largest = master.abs().max().item<double>() / 448.0;
    if (*scale_fmt == 0) CHECK(std::abs(scale - largest) <= 1e-6 * largest);
    else CHECK((scale >= largest && scale < 2.0 * largest && std::exp2(std::round(std::log2(scale))) == scale));
    const at::Tensor error = (tensors.at(path + ".weight").to(at::kDouble) * scale - master).abs();
    CHECK(error.le(master.abs() / 16.0 + scale * std::pow(2.0, -10)).all().item<bool>());
    const auto written = nlohmann::json::parse(read_text_file(run.to("out") + "/config.json"));
    CHECK(written.contains("quantization_config"));
  }
}

TEST_CASE("exports of trained weights hold one tensor at a time", "[export]") {
  const TinyRun run({.adapter = "none", .base = "fp32", .compute = "bf16"});
  int64_t all = 0, largest = 0;
  for (const auto& [name, tensor] : run.weights) {
    all += 4 * tensor.numel();
    largest = std::max<int64_t>(largest, 4 * tensor.numel());
  }
  // Two parts of the saved tensor, put together, in the dtype that leaves; and the allocator's rounding.
  const int64_t bound = 3 * largest + 10 * 64;
  REQUIRE(all > 3 * bound);
  CHECK(peak_tensor_bytes([&] { export_base(run.folder(), run.to("base")); }) <= bound);
  CHECK(peak_tensor_bytes([&] { merge_run(run.folder(), run.to("merged")); }) <= bound);
}

TEST_CASE("the best checkpoint is one of the run folder's", "[export]") {
  const TinyRun run;
  CHECK(contains(message_of<UserError>([&] { best_checkpoint(run.folder()); }), "kept no checkpoint as the best"));
  CHECK(contains(message_of<UserError>([&] { best_checkpoint(run.checkpoint()); }), "is one checkpoint"));
  CHECK(contains(message_of<UserError>([&] { best_checkpoint(run.model()); }), "holds no checkpoint"));
  Manifest newest = read_manifest(run.checkpoint());
  newest.step = 9;
  newest.best = {{8, 0.25, "d"}, {7, 0.5, "d"}};
  const fs::path later = run.folder() / "checkpoints" / "step-00000009";
  fs::copy(run.checkpoint(), later, fs::copy_options::recursive);
  write_manifest(later, newest);
  CHECK(contains(message_of<UserError>([&] { best_checkpoint(run.folder()); }), "step-00000008, is damaged"));
  newest.best.erase(newest.best.begin());
  write_manifest(later, newest);
  CHECK(best_checkpoint(run.folder()) == run.checkpoint());
  CHECK(contains(inspect(later.string(), false), "best so far: step 7, held-out loss 0.5"));
}

TEST_CASE("a model is split into shards that its index finds again", "[export]") {
  const TinyRun run;
  fs::create_directories(run.to("out"));
  std::vector<SafetensorsWriter::Spec> specs;
  for (const auto& [name, tensor] : run.weights) specs.push_back({name, DType::kF32, tensor.sizes().vec()});
  const WrittenModel written = write_model(
      run.to("out"), specs, [&](const SafetensorsWriter::Spec& spec) { return run.weights.at(spec.name); }, 4096);
  CHECK(written.num_files > 3);
  const SafetensorsFolder folder(run.to("out"));
  REQUIRE(folder.names() == names_of(run.weights));
  for (const auto& [name, tensor] : run.weights) CHECK(at::equal(read_tensor(folder, name), tensor));
  CHECK(written.bytes == folder.total_bytes());
  for (const auto& entry : fs::directory_iterator(run.to("out"))) CHECK(fs::file_size(entry) < 4096 + 4096);
}

TEST_CASE("inspect says what lies at a path", "[export]") {
  const TinyRun run;
  const std::string model = inspect(run.model());
  CHECK(contains(model, "family deepseek_v3"));
  CHECK(contains(model, str("weights: ", run.weights.size(), " tensors")));
  CHECK(contains(model, "tokenizer.json: present"));
  CHECK(contains(model, sha256_of_file((run.model() / "model.safetensors").string())));
  std::string log = "{\"kind\":\"start\"}\n";
  for (int step = 1; step <= 7; ++step) log += str("{\"kind\":\"step\",\"step\":", step, ",\"loss\":", step, ".5}\n");
  write_text_atomically((run.folder() / "log.jsonl").string(),
                        log + "{\"kind\":\"eval\",\"step\":7,\"loss\":0.25}\n{\"kind\":\"st");
  const std::string folder = inspect(run.folder());
  CHECK(contains(folder, "last losses by step: 3: 3.5, 4: 4.5, 5: 5.5, 6: 6.5, 7: 7.5\n"));
  CHECK(contains(folder, "last evaluation: step 7: 0.25"));
  CHECK(contains(folder, "not ended"));
  CHECK(contains(folder, "run folder"));
  CHECK(contains(folder, "step 7"));
  CHECK(contains(folder, "whole: 3 files"));
  export_adapter(run.folder(), run.to("out"), AdapterReader::kPeft);
  const std::string adapter = inspect(run.to("out"));
  CHECK(contains(adapter, "rank 2, alpha 6"));
  CHECK(contains(adapter, "experts: 16 tensors"));
  CHECK(contains(adapter, "  layers 0-1\n  experts 0-3\n"));
  CHECK(!contains(adapter, "were trained"));
  CHECK(contains(adapter, "step 7"));
  write_text_atomically((run.checkpoint() / "recipe.yaml").string(), "run: {}");
  CHECK(contains(message_of<UserError>([&] { inspect(run.checkpoint()); }), "is damaged: "));
  CHECK(contains(message_of<UserError>([&] { inspect(run.folder()); }), "1 of 1 checkpoints of "));
  const std::string data = run.to("data.jsonl");
  for (const auto& [line, format] : std::vector<std::pair<std::string, std::string>>{
           {R"({"messages": []})", "messages"},
           {R"({"prompt": "", "completion": "", "text": ""})", "prompt/completion"},
           {R"({"instruction": "", "output": ""})", "alpaca"},
           {R"({"conversations": []})", "sharegpt"},
           {R"({"text": ""})", "text"},
           {R"({"input_ids": [], "labels": []})", "input_ids/labels"},
           {R"({"x": 1})", "none that moetune knows"}}) {
    write_text_atomically(data, "\n" + line + "\n" + line + "\n");
    CHECK(contains(inspect(data), "format of its first line: " + format + "\n"));
    CHECK(contains(inspect(data), "2 lines and 1 blank"));
  }
  write_tensors(run.to("cache.safetensors"),
                {{"offsets", at::tensor({int64_t{0}, int64_t{3}})},
                 {"tokens", at::tensor({1, 2, 3}, at::kInt)},
                 {"labels", at::tensor({-100, 2, -100}, at::kInt)}},
                {});
  CHECK(contains(inspect(run.to("cache.safetensors")), "1 documents, 3 tokens, 1 targets"));
  CHECK(contains(message_of<UserError>([&] { inspect(run.to("nowhere")); }), "does not exist"));
}

TEST_CASE("inspect says what narrows the targets", "[export]") {
  TinyRunOptions options;
  options.adapter = "{rank: 2, alpha: 6, targets: [attention], layers: [1]}";
  options.maps = {{"1.self_attn.kv_b_proj", 2}, {"1.self_attn.o_proj", 2}};
  const TinyRun run(options);
  write_text_atomically((run.folder() / "recipe.yaml").string(),
                        read_text_file((run.checkpoint() / "recipe.yaml").string()));
  CHECK(contains(inspect(run.folder()), "  adapter rank 2, alpha 6 on attention of layers 1\n"));
  export_adapter(run.folder(), run.to("out"), AdapterReader::kPeft);
  const std::string adapter = inspect(run.to("out"));
  CHECK(contains(adapter, "  layers 1\n"));
  CHECK(contains(adapter, "  only maps of layers 1 were trained\n"));
}

TEST_CASE("inspect counts parameters as DeepSeek does", "[export]") {
  const TemporaryFolder root;
  // DeepSeek-V3's published sizes: 671 B, 37 B active.
  const nlohmann::json config = {{"model_type", "deepseek_v3"},
                                 {"vocab_size", 129280},
                                 {"hidden_size", 7168},
                                 {"intermediate_size", 18432},
                                 {"moe_intermediate_size", 2048},
                                 {"num_hidden_layers", 61},
                                 {"first_k_dense_replace", 3},
                                 {"num_attention_heads", 128},
                                 {"q_lora_rank", 1536},
                                 {"kv_lora_rank", 512},
                                 {"qk_nope_head_dim", 128},
                                 {"qk_rope_head_dim", 64},
                                 {"v_head_dim", 128},
                                 {"n_routed_experts", 256},
                                 {"n_shared_experts", 1},
                                 {"num_experts_per_tok", 8},
                                 {"n_group", 8},
                                 {"topk_group", 4},
                                 {"norm_topk_prob", true},
                                 {"routed_scaling_factor", 2.5}};
  write_text_atomically(root / "config.json", config.dump());
  const std::string text = inspect(root.path());
  CHECK(contains(text, "671B parameters"));
  CHECK(contains(text, "37.6B active"));
}
