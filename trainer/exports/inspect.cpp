#include "trainer/exports/inspect.h"

#include <algorithm>
#include <deque>
#include <fstream>
#include <map>
#include <optional>
#include <set>

#include <nlohmann/json.hpp>

#include "lora/adapters/narrowing.h"
#include "lora/adapters/peft_files.h"
#include "moe/families/family.h"
#include "moe/inventory.h"
#include "parallel/base/error.h"
#include "parallel/base/files.h"
#include "parallel/base/sha256.h"
#include "parallel/base/strict_json.h"
#include "parallel/base/text.h"
#include "parallel/base/units.h"
#include "parallel/bytes/tensor_io.h"
#include "trainer/data/data_files.h"
#include "trainer/data/documents.h"
#include "trainer/exports/saved_run.h"
#include "trainer/exports/staged_folder.h"
#include "trainer/plan/model_banner.h"
#include "trainer/recipe/recipe.h"
#include "trainer/recipe/recipe_load.h"
#include "trainer/recipe/recipe_meaning.h"
#include "trainer/run/run_lock.h"
#include "trainer/state/manifest.h"
#include "trainer/state/weight_cache.h"

namespace moetune {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr std::uintmax_t kCheapDigestBytes = 1'000'000'000;
constexpr size_t kShownSteps = 5, kShownChoices = 8;

/// Lines of a description.
class Text {
 public:
  template <typename... Parts>
  void line(const Parts&... parts) {
    text_ += str(parts..., "\n");
  }
  std::string text_;
};

std::string size_of(std::uint64_t bytes) { return bytes_text(static_cast<int64_t>(bytes)); }

json read_json(const fs::path& path) { return read_json_object(path.string(), /*max_depth=*/64); }

/// Text under `key`; "?" where there is none.
std::string text_of(const json& object, const char* key) {
  const json value = object.value(key, json());
  return value.is_string() ? value.get<std::string>() : "?";
}

void add_digest(Text& out, const fs::path& path, bool digests) {
  if (digests || fs::file_size(path) < kCheapDigestBytes) {
    out.line("  SHA-256 ", sha256_of_file(path.string()), "  ", path.filename().string());
  }
}

/// Tensors by dtype, from SafetensorsFile or SafetensorsFolder.
template <typename Source>
void add_dtypes(Text& out, const Source& source) {
  struct Sums {
    int64_t tensors = 0, elements = 0;
    std::uint64_t bytes = 0;
  };
  std::map<DType, Sums> sums;
  for (const std::string& name : source.names()) {
    const TensorInfo& info = source.at(name);
    Sums& sum = sums[info.dtype];
    ++sum.tensors;
    sum.elements += info.numel();
    sum.bytes += info.bytes;
  }
  for (const auto& [dtype, sum] : sums) {
    out.line("  ", dtype_name(dtype), ": ", sum.tensors, " tensors, ", count_text(sum.elements), " elements, ",
             size_of(sum.bytes));
  }
}

void add_config(Text& out, const fs::path& folder) {
  try {
    const Blueprint model = load_blueprint(folder);
    const AttentionSpec& attention = model.attention();
    const std::string kv =
        attention.kind == AttentionSpec::Kind::kLatent
            ? str(", latents ", attention.q_lora ? str(*attention.q_lora, " and ") : "", attention.kv_lora)
            : str(", ", attention.kv_heads, " of keys and values");
    out.line("  family ", model.model_type, ": ", count_text(count_parameters(model)), " parameters, ",
             count_text(count_active_parameters(model)), " active for a token");
    out.line("  ", model.num_layers(), " layers (", model.num_dense_layers(), " dense), width ", model.width,
             ", vocabulary ", model.vocab, ", positions ", model.max_positions);
    out.line("  ", attention.heads, " heads of ", attention.key_dim(), kv, "; ", model.router.experts, " experts of ",
             model.experts.width, ", ", model.router.top_k, " a token, ", shared_text(model.experts));
    out.line("  rotary ", rotary_text(model.rotary));
    out.line("  multi-token prediction: ",
             model.num_mtp_layers == 0 ? "none" : str(model.num_mtp_layers, " layer in config.json"),
             model.mxfp4_experts ? "; experts in MXFP4 blocks of 32"
             : model.fp8_blocks  ? "; weights in FP8 blocks of 128 x 128"
                                 : "");
  } catch (const UserError& error) {
    out.line("  family ", in_quotes(text_of(read_json(folder / "config.json"), "model_type")),
             ": not one that moetune trains: ", error.what());
  }
}

bool holds_safetensors(const fs::path& folder) {
  if (fs::exists(fs::symlink_status(folder / "model.safetensors.index.json"))) return true;
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (entry.path().extension() == ".safetensors") return true;
  }
  return false;
}

std::string describe_model(const fs::path& folder, bool digests) {
  Text out;
  out.line("model folder ", folder.string());
  add_config(out, folder);
  if (holds_safetensors(folder)) {
    const SafetensorsFolder weights(folder.string());
    const std::vector<std::string> names = weights.names();
    std::set<std::string> files;
    for (const std::string& name : names) files.insert(weights.at(name).file);
    const bool mtp = std::any_of(names.begin(), names.end(),
                                 [](const std::string& name) { return name.ends_with(".eh_proj.weight"); });
    out.line("  weights: ", names.size(), " tensors, ", size_of(weights.total_bytes()), " in ", files.size(),
             files.size() == 1 ? " file" : " files", "; MTP module ", mtp ? "present" : "absent");
    add_dtypes(out, weights);
    for (const std::string& file : files) add_digest(out, file, digests);
  } else {
    out.line("  weights: none here (no safetensors); enough for weights: random");
  }
  out.line("  tokenizer.json: ", fs::exists(folder / "tokenizer.json") ? "present" : "absent", "; chat template: ",
           fs::exists(folder / "chat_template.jinja") ||
                   (fs::exists(folder / "tokenizer_config.json") &&
                    read_json(folder / "tokenizer_config.json").contains("chat_template"))
               ? "present"
               : "absent");
  return out.text_;
}

/// "0, 4-7".
std::string numbers_text(const std::set<int64_t>& numbers) {
  std::string text;
  for (auto at = numbers.begin(); at != numbers.end();) {
    NumberRange run{*at, *at};
    while (++at != numbers.end() && *at == run.last + 1) ++run.last;
    text += (text.empty() ? "" : ", ") + to_string(run);
  }
  return text;
}

/// The number after `part`, as in "...layers.7....".
std::optional<int64_t> number_after(const std::string& name, const std::string& part) {
  constexpr size_t kMostDigits = 9;
  const size_t found = name.find(part);
  if (found == std::string::npos) return {};
  const size_t first = found + part.size(), end = name.find_first_not_of("0123456789", first);
  if (end == std::string::npos || end == first || end - first > kMostDigits || name[end] != '.') return {};
  return std::stoll(name.substr(first, end - first));
}

/// The layers and the single experts that tensors of an adapter are named for.
void add_places(Text& out, const std::vector<std::string>& names) {
  std::set<int64_t> layers;
  std::map<int64_t, std::set<int64_t>> experts;  // by layer
  for (const std::string& name : names) {
    const std::optional<int64_t> layer = number_after(name, ".layers."), expert = number_after(name, ".experts.");
    if (!layer) continue;
    layers.insert(*layer);
    if (expert) experts[*layer].insert(*expert);
  }
  if (!layers.empty()) out.line("  layers ", numbers_text(layers));
  std::map<std::set<int64_t>, std::set<int64_t>> layers_of;  // by experts
  for (const auto& [layer, numbers] : experts) layers_of[numbers].insert(layer);
  size_t shown = 0;
  for (const auto& [numbers, of] : layers_of) {
    if (++shown > kShownChoices) return out.line("  and other experts in other layers");
    out.line("  experts ", numbers_text(numbers), layers_of.size() > 1 ? " of layers " + numbers_text(of) : "");
  }
}

std::string describe_adapter(const fs::path& folder, bool digests) {
  const PeftConfig config = read_peft_config(folder);
  const SafetensorsFile file = open_peft_weights(folder);
  Text out;
  out.line("adapter folder ", folder.string());
  out.line("  rank ", config.rank, ", alpha ", config.alpha, config.rslora ? ", rsLoRA" : "", ", dropout ",
           config.dropout, ", base model ", in_quotes(config.base_model));
  std::string targets;
  for (const std::string& target : config.target_modules) targets += (targets.empty() ? "" : ", ") + target;
  out.line("  targets ", targets);
  std::map<std::string, std::pair<int64_t, int64_t>> groups;  // tensors, parameters
  std::set<int64_t> ranks;
  int64_t parameters = 0;
  for (const std::string& name : file.names()) {
    const TensorInfo& info = file.at(name);
    auto& [tensors, elements] = groups[adapter_group(name)];
    ++tensors;
    elements += info.numel();
    parameters += info.numel();
    if (name.ends_with(".lora_A.weight") && !info.shape.empty()) ranks.insert(info.shape[0]);
  }
  for (const auto& [group, sums] : groups) {
    out.line("  ", group, ": ", sums.first, " tensors, ", sums.second, " parameters");
  }
  add_places(out, file.names());
  if (ranks.size() > 1) {
    std::string text;
    for (int64_t rank : ranks) text += str(text.empty() ? "" : ", ", rank);
    out.line("  ranks of its tensors: ", text);
  }
  out.line("  ", parameters, " parameters in all, ", size_of(file.total_bytes()));
  add_dtypes(out, file);
  if (fs::exists(folder / kExportFile)) {
    const json made = read_json(folder / kExportFile);
    out.line("  exported from ", text_of(made, "checkpoint"), ", step ", made.value("step", json()).dump());
    if (made.contains("narrowed")) out.line("  only maps", text_of(made, "narrowed"), " were trained");
  }
  add_digest(out, file.path(), digests);
  return out.text_;
}

/// The format of a line of data, by its keys; these are tried in the order in which preparation tries them.
std::string format_of(const json& line) {
  static const std::vector<std::pair<std::string, std::vector<std::string>>> kFormats = {
      {"messages", {"messages"}},
      {"sharegpt", {"conversations"}},
      {"input_ids/labels", {"input_ids"}},
      {"prompt/completion", {"prompt", "completion"}},
      {"alpaca", {"instruction", "output"}},
      {"text", {"text"}}};
  for (const auto& [format, keys] : kFormats) {
    if (line.is_object() &&
        std::all_of(keys.begin(), keys.end(), [&](const std::string& key) { return line.contains(key); })) {
      return format;
    }
  }
  return "";
}

/// What the preparation of data unpacks and reads before it is lines; empty for JSONL.
std::string packed_kind(std::ifstream& file) {
  std::string head(4, '\0');
  file.read(head.data(), 4);
  head.resize(static_cast<size_t>(file.gcount()));
  file.clear();
  file.seekg(0);
  if (head.starts_with("PAR1")) return "Parquet";
  if (head.starts_with("\x1f\x8b")) return "gzip-compressed";
  if (head.starts_with("(\xb5/\xfd")) return "zstd-compressed";
  return head.starts_with("[") ? "one JSON array" : "";
}

std::string describe_data(const fs::path& path, bool digests) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw UserError(str(path.string(), ": cannot be read"));
  if (const std::string kind = packed_kind(file); !kind.empty()) {
    Text out;
    out.line("data file ", path.string());
    out.line("  ", kind, ", ", size_of(fs::file_size(path)), "; moetune prepare says what its documents hold");
    add_digest(out, path, digests);
    return out.text_;
  }
  int64_t lines = 0, blank = 0;
  std::string line, format;
  while (std::getline(file, line)) {
    ++lines;
    if (line.find_first_not_of(" \t\r") == std::string::npos) {
      ++blank;
    } else if (lines - blank == 1) {
      const json first = json::parse(line, nullptr, false);
      if (!first.is_object()) {
        throw UserError(str(path.string(), ":", lines,
                            ": is no JSON object; data is one JSON object a line, and moetune inspects safetensors, "
                            "folders and such files"));
      }
      format = format_of(first);
    }
  }
  Text out;
  out.line("data file ", path.string());
  out.line("  format of its first line: ", format.empty() ? "none that moetune knows" : format);
  out.line("  ", lines - blank, " lines", blank > 0 ? str(" and ", blank, " blank ones") : "", ", ",
           size_of(fs::file_size(path)));
  add_digest(out, path, digests);
  return out.text_;
}

std::string describe_safetensors(const fs::path& path, bool digests) {
  const SafetensorsFile file(path.string());
  Text out;
  const bool cache =
      file.find("tokens") != nullptr && file.find("labels") != nullptr && file.find("offsets") != nullptr;
  out.line(cache ? "token cache " : "safetensors file ", path.string());
  if (cache) {
    at::Tensor trained = read_tensor(file, "labels").ne(kNotTrained);
    const bool weighted = file.find("weights") != nullptr;
    if (weighted) trained.logical_and_(read_tensor(file, "weights").gt(0));
    const int64_t targets = trained.sum().item<int64_t>();
    const auto& metadata = file.metadata();
    out.line("  ", std::max<int64_t>(0, file.at("offsets").numel() - 1), " documents, ", file.at("tokens").numel(),
             " tokens, ", targets, " targets", weighted ? " with weights" : "");
    if (metadata.count("format") > 0 && metadata.at("format") != "pt") {
      out.line("  made from lines of format ", metadata.at("format"));
    }
  }
  out.line("  ", file.names().size(), " tensors, ", size_of(file.total_bytes()));
  add_dtypes(out, file);
  add_digest(out, path, digests);
  return out.text_;
}

/// UserError where it is damaged.
std::string describe_checkpoint(const fs::path& checkpoint) {
  const std::string damage = damage_of(checkpoint);
  if (!damage.empty()) throw UserError(str("checkpoint ", checkpoint.string(), " is damaged: ", damage));
  const Manifest manifest = read_manifest(checkpoint);
  Text out;
  out.line("checkpoint ", checkpoint.string());
  out.line("  step ", manifest.step, ", mesh ", manifest.mesh, ", seed ", manifest.seed, ", batch ", manifest.batch);
  out.line("  digest of frozen weights ", manifest.frozen_digest, ", of data ", manifest.data_digest);
  for (size_t i = 0; i < manifest.best.size(); ++i) {
    out.line(i == 0 ? "  best so far: step " : "               step ", manifest.best[i].step, ", held-out loss ",
             manifest.best[i].loss);
  }
  std::uint64_t bytes = 0;
  for (const auto& [name, entry] : manifest.files) bytes += static_cast<std::uint64_t>(entry.bytes);
  out.line("  whole: ", manifest.files.size(), " files, ", size_of(bytes), ", SHA-256 of each as in manifest.json");
  for (const auto& [name, entry] : manifest.files) out.line("  SHA-256 ", entry.sha256, "  ", name);
  return out.text_;
}

void add_recipe(Text& out, const fs::path& path) {
  constexpr std::uint64_t kMaxRecipeBytes = 4 << 20;
  const Recipe recipe = parse_recipe(read_own_file(path.string(), kMaxRecipeBytes), path.string());
  const TrainedParts parts = trained_parts(recipe);
  std::string adapter = str("none (the weights train: ", to_string(parts), ")");
  if (recipe.adapter) {
    std::string targets;
    for (const std::string& target : recipe.adapter->targets) targets += (targets.empty() ? "" : ", ") + target;
    adapter = str("rank ", recipe.adapter->rank, ", alpha ", recipe.adapter->alpha,
                  recipe.adapter->rslora ? ", rsLoRA" : "", " on ", targets, narrowing_text(*recipe.adapter),
                  parts.none() ? "" : str("; the weights of ", to_string(parts), " train"));
  }
  out.line("  model ", recipe.model.path, ", base ", to_string(recipe.model.base), ", compute ",
           to_string(recipe.model.compute));
  out.line("  adapter ", adapter);
  out.line("  data ", shown(recipe.data.train));
}

void add_log(Text& out, const fs::path& path, const std::optional<LockHolder>& holder) {
  { const InputFile regular(path.string(), Links::kRefuse); }  // a pipe would block
  std::ifstream file(path, std::ios::binary);
  std::deque<std::string> steps;
  std::string evaluation, end, line;
  while (std::getline(file, line)) {
    const json entry = json::parse(line, nullptr, false);
    if (!entry.is_object()) continue;  // the last line of a killed run
    const json kind = entry.value("kind", json()), step = entry.value("step", json()),
               loss = entry.value("loss", json());
    if (kind == "step") steps.push_back(str(step.dump(), ": ", loss.dump()));
    if (kind == "eval") evaluation = str("step ", step.dump(), ": ", loss.dump());
    if (kind == "end") end = str("step ", step.dump());
    if (kind == "start") end.clear();
    if (steps.size() > kShownSteps) steps.pop_front();
  }
  std::string losses;
  for (const std::string& step : steps) losses += (losses.empty() ? "" : ", ") + step;
  out.line("  last losses by step: ", losses.empty() ? "none" : losses);
  if (!evaluation.empty()) out.line("  last evaluation: ", evaluation);
  const bool runs = holder && !is_gone(*holder);
  out.line("  ", runs          ? "running: " + holder->text()
                 : end.empty() ? "not ended: killed, or stopped"
                               : "ended at " + end);
}

bool is_there(const fs::path& path) { return fs::exists(fs::symlink_status(path)); }

/// UserError that ends in the description where a checkpoint is damaged.
std::string describe_run(const fs::path& folder) {
  Text out;
  out.line("run folder ", folder.string());
  if (is_there(folder / "recipe.yaml")) add_recipe(out, folder / "recipe.yaml");
  if (is_there(folder / "log.jsonl")) add_log(out, folder / "log.jsonl", read_run_lock(folder));
  const std::vector<fs::path> checkpoints = list_checkpoints(folder / "checkpoints");
  if (checkpoints.empty()) out.line("  no checkpoint yet");
  size_t damaged = 0;
  for (const fs::path& checkpoint : checkpoints) {
    try {
      out.text_ += describe_checkpoint(checkpoint);
    } catch (const UserError& error) {
      if (!fs::exists(checkpoint)) continue;  // a run that goes on has removed it for a newer one
      ++damaged;
      out.line(error.what());
    }
  }
  if (damaged == 0) return out.text_;
  throw UserError(str(damaged, " of ", checkpoints.size(), " checkpoints of ", folder.string(),
                      damaged == 1 ? " is damaged:\n" : " are damaged:\n", out.text_));
}

}  // namespace

std::string inspect(const fs::path& path, bool digests) {
  if (!fs::exists(path)) throw UserError(str(path.string(), ": does not exist"));
  if (fs::is_directory(path)) {
    if (is_there(path / "manifest.json") || (step_of_name(path) && !is_there(path / "checkpoints")))
      return describe_checkpoint(path);
    if (is_there(path / "checkpoints") || is_there(path / "log.jsonl")) return describe_run(path);
    if (fs::exists(path / "adapter_config.json")) return describe_adapter(path, digests);
    if (fs::exists(path / "config.json")) return describe_model(path, digests);
    if (const auto caches = describe_weight_caches(path)) return *caches;
    throw UserError(str(path.string(),
                        ": is no folder that moetune knows: a model has config.json, an adapter adapter_config.json, a "
                        "run checkpoints/, a checkpoint manifest.json, packed weights about.json"));
  }
  if (!fs::is_regular_file(path)) throw UserError(str(path.string(), ": is neither a folder nor a regular file"));
  return path.extension() == ".safetensors" ? describe_safetensors(path, digests) : describe_data(path, digests);
}

}  // namespace moetune
