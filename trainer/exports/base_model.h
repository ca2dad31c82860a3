// The model that a run started from, tensor by tensor under Hugging Face names: what a run's exports are made of.
//
//   BaseModel base(saved.recipe());
//   for (const BaseTensor& tensor : base.tensors()) at::Tensor stored = base.read(tensor);
//
// Of a checkpoint these are all its tensors, those of parts that the run did not use included, in the order in which
// they lie on disk; FP8 blocks come as bf16. Of weights drawn from the seed they are the tensors that the run drew.
#pragma once

#include <torch/types.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "moe/disk_layout.h"
#include "moe/weight_source.h"
#include "trainer/exports/saved_run.h"
#include "trainer/recipe/recipe.h"

namespace moetune {

/// Of config.json in the recipe's model.path. UserError where there is none.
Blueprint blueprint_of(const Recipe& recipe);
/// Name on disk of the correction bias of the router of `layer`, a block or the MTP module's.
std::string router_bias_name(const Blueprint& blueprint, int64_t layer);

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
  at::Tensor read(const BaseTensor& tensor);

 private:
  void list_pretrained(const std::string& folder);
  void list_random();

  Blueprint blueprint_;
  std::vector<DiskTensor> used_;
  std::unique_ptr<WeightSource> source_;
  bool drawn_ = false;
  std::vector<BaseTensor> tensors_;
};

/// The stored tensor with each tensor of the model that it holds as `change` makes it of that part of it, in `dtype`.
at::Tensor changed_by_piece(const BaseTensor& tensor, const at::Tensor& stored, at::ScalarType dtype,
                            const std::function<at::Tensor(const DiskPiece& piece, const at::Tensor& stored)>& change);

}  // namespace moetune
