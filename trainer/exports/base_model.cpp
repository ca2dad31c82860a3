#include "trainer/exports/base_model.h"

#include <algorithm>
#include <filesystem>
#include <tuple>
#include <unordered_map>

#include "moe/families/family.h"
#include "parallel/base/error.h"
#include "parallel/bytes/tensor_io.h"

namespace moetune {
namespace {

constexpr std::string_view kScale = "_scale_inv";

Blueprint config_of(const Recipe& recipe) {
  const std::filesystem::path folder = recipe.model.path;
  if (!std::filesystem::exists(folder / "config.json")) {
    throw UserError(
        str(folder.string(), ": the run's model.path holds no config.json here",
            folder.is_relative() ? "; the path is relative: run this from the folder where the run was started" : ""));
  }
  return load_blueprint(folder);
}

}  // namespace

BaseModel::BaseModel(const Recipe& recipe)
    : blueprint_(config_of(recipe)), used_(disk_tensors(blueprint_, recipe.mtp.trains())) {
  if (recipe.model.weights == WeightOrigin::kRandom) {
    source_ = make_random_weights(blueprint_, static_cast<uint64_t>(recipe.run.seed), at::kCPU);
    list_random();
  } else {
    source_ = open_pretrained(recipe.model.path);
    require_tied_head(*source_, blueprint_);
    list_pretrained(recipe.model.path);
  }
}

void BaseModel::list_pretrained(const std::string& path) {
  const SafetensorsFolder folder(path);
  std::unordered_map<std::string, const DiskTensor*> used;
  for (const DiskTensor& tensor : used_) {
    used[tensor.name] = &tensor;
    if (!tensor.may_be_shared) folder.at(tensor.name);
  }
  std::vector<const TensorInfo*> infos;
  for (const std::string& name : folder.names()) {
    if (name.ends_with(kScale) && folder.find(name.substr(0, name.size() - kScale.size())) != nullptr) continue;
    infos.push_back(&folder.at(name));
  }
  std::sort(infos.begin(), infos.end(), [](const TensorInfo* a, const TensorInfo* b) {
    return std::tie(a->file, a->begin) < std::tie(b->file, b->begin);
  });
  for (const TensorInfo* info : infos) {
    require_weight_dtype(folder, *info);
    const auto found = used.find(info->name);
    tensors_.push_back({info->name, info->shape,
                        info->dtype == DType::kF8E4M3 ? at::kBFloat16 : *scalar_type_of(info->dtype),
                        found == used.end() ? nullptr : found->second});
  }
}

void BaseModel::list_random() {
  for (const DiskTensor& tensor : used_) {
    tensors_.push_back({tensor.name, tensor.shape, tensor.shape.size() == 1 ? at::kFloat : at::kBFloat16, &tensor});
  }
}

}  // namespace moetune
