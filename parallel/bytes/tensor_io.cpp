#include "parallel/bytes/tensor_io.h"

#include <algorithm>
#include <array>

#include "parallel/base/error.h"
#include "parallel/base/text.h"

namespace moetune {
namespace {

constexpr std::array<std::pair<DType, at::ScalarType>, 19> kTypes = {{
    {DType::kBool, at::kBool},
    {DType::kU8, at::kByte},
    {DType::kI8, at::kChar},
    {DType::kF8E5M2, at::kFloat8_e5m2},
    {DType::kF8E4M3, at::kFloat8_e4m3fn},
    {DType::kF8E8M0, at::kFloat8_e8m0fnu},
    {DType::kF8E4M3Fnuz, at::kFloat8_e4m3fnuz},
    {DType::kF8E5M2Fnuz, at::kFloat8_e5m2fnuz},
    {DType::kI16, at::kShort},
    {DType::kU16, at::kUInt16},
    {DType::kF16, at::kHalf},
    {DType::kBF16, at::kBFloat16},
    {DType::kI32, at::kInt},
    {DType::kU32, at::kUInt32},
    {DType::kF32, at::kFloat},
    {DType::kC64, at::kComplexFloat},
    {DType::kF64, at::kDouble},
    {DType::kI64, at::kLong},
    {DType::kU64, at::kUInt64},
}};

// Source: SafetensorsFolder or SafetensorsFile. Fills a new tensor of `shape` with the bytes from `first_byte` on.
template <typename Source>
at::Tensor read_bytes(const Source& source, const TensorInfo& info, at::IntArrayRef shape, std::uint64_t first_byte) {
  const std::optional<at::ScalarType> type = scalar_type_of(info.dtype);
  if (!type) {
    throw UserError(
        str(info.file, ": tensor ", in_quotes(info.name), ": torch has no dtype for ", dtype_name(info.dtype)));
  }
  at::Tensor tensor = at::empty(shape, at::TensorOptions().dtype(*type));
  source.read(info, first_byte, tensor.nbytes(), tensor.data_ptr());
  return tensor;
}

template <typename Source>
at::Tensor read_row_range(const Source& source, std::string_view name, std::int64_t first_row, std::int64_t num_rows) {
  const TensorInfo& info = source.at(name);
  if (info.shape.empty() || first_row < 0 || num_rows < 0 || first_row > info.shape[0] ||
      num_rows > info.shape[0] - first_row) {
    // qualified: c10 has a str() too, which its own types would bring in
    throw UserError(moetune::str(info.file, ": tensor ", in_quotes(name), " has shape ", at::IntArrayRef(info.shape),
                                 ", but ", num_rows, " rows from row ", first_row,
                                 " on are needed; do config.json and weights belong together?"));
  }
  std::vector<std::int64_t> shape = info.shape;
  shape[0] = num_rows;
  const std::uint64_t row_bytes = num_rows == 0 ? 0 : info.bytes / static_cast<std::uint64_t>(info.shape[0]);
  return read_bytes(source, info, shape, static_cast<std::uint64_t>(first_row) * row_bytes);
}

}  // namespace

std::optional<at::ScalarType> scalar_type_of(DType dtype) {
  for (const auto& [ours, torchs] : kTypes) {
    if (ours == dtype) return torchs;
  }
  return std::nullopt;
}

std::optional<DType> dtype_of(at::ScalarType type) {
  for (const auto& [ours, torchs] : kTypes) {
    if (torchs == type) return ours;
  }
  return std::nullopt;
}

at::Tensor read_tensor(const SafetensorsFolder& folder, std::string_view name) {
  const TensorInfo& info = folder.at(name);
  return read_bytes(folder, info, info.shape, 0);
}

at::Tensor read_tensor(const SafetensorsFile& file, std::string_view name) {
  const TensorInfo& info = file.at(name);
  return read_bytes(file, info, info.shape, 0);
}

at::Tensor read_rows(const SafetensorsFolder& folder, std::string_view name, std::int64_t first_row,
                     std::int64_t num_rows) {
  return read_row_range(folder, name, first_row, num_rows);
}

at::Tensor read_rows(const SafetensorsFile& file, std::string_view name, std::int64_t first_row,
                     std::int64_t num_rows) {
  return read_row_range(file, name, first_row, num_rows);
}

void write_tensors(const std::string& path, const std::vector<std::pair<std::string, at::Tensor>>& tensors,
                   StringMap metadata) {
  std::vector<std::pair<std::string, at::Tensor>> ordered = tensors;
  std::stable_sort(ordered.begin(), ordered.end(),
                   [](const auto& a, const auto& b) { return a.second.element_size() > b.second.element_size(); });
  std::vector<SafetensorsWriter::Spec> specs;
  for (const auto& [name, tensor] : ordered) {
    const std::optional<DType> dtype = dtype_of(tensor.scalar_type());
    MT_CHECK(dtype && tensor.is_contiguous(), path, ": tensor ", in_quotes(name), " is ", tensor.toString(), " ",
             tensor.sizes(), "; only contiguous tensors of the dtypes of safetensors can be written");
    specs.push_back({name, *dtype, tensor.sizes().vec()});
  }
  SafetensorsWriter writer(path, specs, std::move(metadata));
  for (const auto& [name, tensor] : ordered) writer.append(name, tensor.cpu().data_ptr(), tensor.nbytes());
  writer.commit();
}

}  // namespace moetune
