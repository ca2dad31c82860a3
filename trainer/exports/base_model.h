// The model that a run started from, tensor by tensor under Hugging Face names: what a run's exports are made of.
//
//   BaseModel base(saved.recipe());
//   for (const BaseTensor& tensor : base.tensors()) at::Tensor stored = base.read(tensor);
//
// Of a checkpoint these are all its tensors, those of parts that the run did not use included, in the order in which
// they lie on disk; FP8 blocks come as bf16. Of weights drawn from the seed they are the tensors that the run drew.
#pragma once

#include <torch/types.h>

#include <memory>
#include <string>
#include <vector>

#include "moe/disk_layout.h"
#include "moe/weight_source.h"
#include "trainer/recipe/recipe.h"

namespace moetune {

struct BaseTensor {
  std::string name;
  std::vector<int64_t> shape;
  at::ScalarType dtype = at::kFloat;  ///< of read()
  const DiskTensor* used = nullptr;   ///< how the run held it; null where it had no use for it
};

class BaseModel {
 public:
  /// Reads config.json and the headers. UserError when the model is not where the recipe says, or lacks a tensor that
  /// the run used.
  explicit BaseModel(const Recipe& recipe);

  const Blueprint& blueprint() const { return blueprint_; }
  const std::vector<BaseTensor>& tensors() const { return tensors_; }
  at::Tensor read(const BaseTensor& tensor) { return source_->read(tensor.name, tensor.shape).contiguous(); }

 private:
  void list_pretrained(const std::string& folder);
  void list_random();

  Blueprint blueprint_;
  std::vector<DiskTensor> used_;
  std::unique_ptr<WeightSource> source_;
  std::vector<BaseTensor> tensors_;
};

}  // namespace moetune
