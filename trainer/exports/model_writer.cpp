#include "trainer/exports/model_writer.h"

#include <algorithm>
#include <cstdio>
#include <map>
#include <set>

#include <nlohmann/json.hpp>

#include "parallel/base/error.h"
#include "parallel/base/files.h"
#include "parallel/bytes/tensor_io.h"

namespace moetune {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;
using Spec = SafetensorsWriter::Spec;

// Larger ones are no tokenizer.
constexpr std::uintmax_t kLargestCompanionBytes = 256u << 20;

std::uint64_t bytes_of(const Spec& spec) {
  const auto bytes = size_in_bytes(spec.dtype, spec.shape);
  MT_CHECK(bytes, spec.name, ": its bytes overflow");
  return *bytes;
}

std::vector<std::vector<Spec>> split(const std::vector<Spec>& specs, std::uint64_t shard_bytes) {
  std::vector<std::vector<Spec>> shards(1);
  std::uint64_t filled = 0;
  for (const Spec& spec : specs) {
    if (!shards.back().empty() && filled + bytes_of(spec) > shard_bytes) {
      shards.emplace_back();
      filled = 0;
    }
    shards.back().push_back(spec);
    filled += bytes_of(spec);
  }
  for (auto& shard : shards) {
    std::stable_sort(shard.begin(), shard.end(),
                     [](const Spec& a, const Spec& b) { return size_in_bits(a.dtype) > size_in_bits(b.dtype); });
  }
  return shards;
}

std::string shard_name(size_t number, size_t count) {
  if (count == 1) return "model.safetensors";
  char name[64];
  std::snprintf(name, sizeof name, "model-%05zu-of-%05zu.safetensors", number, count);
  return name;
}

const char* config_dtype_name(DType dtype) {
  switch (dtype) {
    case DType::kF64: return "float64";
    case DType::kF32: return "float32";
    case DType::kF16: return "float16";
    case DType::kBF16: return "bfloat16";
    default: throw InternalError(str("a model is written in floats of 16 bits or more, not ", dtype_name(dtype)));
  }
}

}  // namespace

WrittenModel write_model(const fs::path& folder, const std::vector<Spec>& specs,
                         const std::function<at::Tensor(const Spec&)>& make, std::uint64_t shard_bytes) {
  const std::vector<std::vector<Spec>> shards = split(specs, shard_bytes);
  WrittenModel written;
  written.num_files = static_cast<int64_t>(shards.size());
  std::map<std::string, std::string> weight_map;
  for (size_t i = 0; i < shards.size(); ++i) {
    const std::string file = shard_name(i + 1, shards.size());
    SafetensorsWriter writer((folder / file).string(), shards[i], {});
    for (const Spec& spec : shards[i]) {
      const at::Tensor tensor = make(spec).contiguous();
      MT_CHECK(dtype_of(tensor.scalar_type()) == spec.dtype && tensor.sizes() == at::IntArrayRef(spec.shape), spec.name,
               " was made as ", tensor.toString(), " ", tensor.sizes(), ", announced as ", dtype_name(spec.dtype), " ",
               at::IntArrayRef(spec.shape));
      writer.append(spec.name, tensor.const_data_ptr(), tensor.nbytes());
      weight_map[spec.name] = file;
      written.bytes += tensor.nbytes();
      written.parameters += tensor.numel();
    }
    writer.commit();
  }
  if (shards.size() > 1) {
    const ordered_json index = {{"metadata", {{"total_size", written.bytes}, {"total_parameters", written.parameters}}},
                                {"weight_map", weight_map}};
    write_text_atomically((folder / "model.safetensors.index.json").string(), index.dump(2) + "\n");
  }
  return written;
}

void write_model_config(const fs::path& source, const fs::path& folder, const std::vector<Spec>& specs) {
  const std::string path = (source / "config.json").string();
  ordered_json config = ordered_json::parse(read_text_file(path), nullptr, false);
  if (!config.is_object()) throw UserError(str(path, ": is not a JSON object"));
  std::map<DType, std::uint64_t> bytes;
  for (const Spec& spec : specs) bytes[spec.dtype] += bytes_of(spec);
  const DType most = std::max_element(bytes.begin(), bytes.end(), [](const auto& a, const auto& b) {
                       return a.second < b.second;
                     })->first;
  config.erase("quantization_config");
  // transformers 5 spells the key "dtype", earlier ones "torch_dtype".
  const auto set_dtype = [&](ordered_json& section) {
    section[section.contains("dtype") ? "dtype" : "torch_dtype"] = config_dtype_name(most);
  };
  set_dtype(config);
  // Of a multimodal model the text has a section of its own.
  if (config.contains("text_config") && config["text_config"].is_object()) set_dtype(config["text_config"]);
  write_text_atomically((folder / "config.json").string(), config.dump(2) + "\n");
}

void copy_model_config(const fs::path& source, const fs::path& folder) {
  write_text_atomically((folder / "config.json").string(), read_text_file((source / "config.json").string()));
}

std::vector<std::string> copy_companions(const fs::path& source, const fs::path& folder) {
  static const std::set<std::string> kKinds = {".json", ".jinja", ".txt", ".model", ".tiktoken", ".py"};
  std::vector<std::string> copied;
  for (const auto& entry : fs::directory_iterator(source)) {
    const std::string name = entry.path().filename().string();
    if (!entry.is_regular_file() || name.front() == '.' || entry.file_size() > kLargestCompanionBytes) continue;
    const bool weights = name == "config.json" || name.ends_with(".index.json") || name.rfind("moetune_", 0) == 0 ||
                         name.rfind("adapter_", 0) == 0;
    if (weights || (kKinds.count(entry.path().extension().string()) == 0 && name.rfind("LICENSE", 0) != 0)) continue;
    write_text_atomically((folder / name).string(), read_text_file(entry.path().string()));
    copied.push_back(name);
  }
  std::sort(copied.begin(), copied.end());
  return copied;
}

}  // namespace moetune
