// Torch tensors from and to safetensors files, without any conversion of dtype.
//
//   const at::Tensor norm_D = read_tensor(model, "model.norm.weight");
//   const at::Tensor rows = read_rows(model, "lm_head.weight", first_row, num_rows);   // reads only these bytes
//   write_tensors(path, {{"a", a}, {"b", b}}, {{"base", "DeepSeek-V3"}});
//
// All tensors are contiguous and on the CPU.
#pragma once

#include <torch/types.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "parallel/bytes/safetensors.h"

namespace moetune {

/// The torch type of the same bits: F8_E4M3 is at::kFloat8_e4m3fn, F8_E8M0 at::kFloat8_e8m0fnu, C64 at::kComplexFloat.
/// Nothing for F4 and the F6 types, whose elements do not fill bytes.
std::optional<at::ScalarType> scalar_type_of(DType dtype);
/// Nothing for torch types that the format does not know (complex128, quantised types).
std::optional<DType> dtype_of(at::ScalarType type);

/// A whole tensor. UserError if it does not exist or torch has no such dtype.
at::Tensor read_tensor(const SafetensorsFolder& folder, std::string_view name);
at::Tensor read_tensor(const SafetensorsFile& file, std::string_view name);

/// Rows [first_row, first_row + num_rows) of dim 0, which may be none. UserError if the tensor is a scalar or has fewer
/// rows: then the file does not fit the configuration that asked.
at::Tensor read_rows(const SafetensorsFolder& folder, std::string_view name, std::int64_t first_row,
                     std::int64_t num_rows);
at::Tensor read_rows(const SafetensorsFile& file, std::string_view name, std::int64_t first_row, std::int64_t num_rows);

/// Writes a file atomically; what lies on a GPU comes to the host tensor by tensor. Tensors keep their order, but wider
/// dtypes come before narrower ones, so that all of them lie aligned to their own width.
void write_tensors(const std::string& path, const std::vector<std::pair<std::string, at::Tensor>>& tensors,
                   StringMap metadata);

}  // namespace moetune
