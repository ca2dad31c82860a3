// Documents::from_cache: the token file that `moetune prepare` writes.
#include <string>
#include <utility>
#include <vector>

#include "parallel/base/error.h"
#include "parallel/bytes/safetensors.h"
#include "trainer/data/documents.h"

namespace moetune {
namespace {

// The whole one-dimensional tensor `name`, which must have this dtype.
template <typename Number>
std::vector<Number> read_vector(const SafetensorsFile& file, const char* name, DType dtype) {
  const TensorInfo& info = file.at(name);
  if (info.dtype != dtype || info.shape.size() != 1) {
    throw UserError(str(file.path(), ": tensor '", name, "' is ", dtype_name(info.dtype), " with ", info.shape.size(),
                        " dims; a token file has ", dtype_name(dtype),
                        " with 1 there. Write it again with moetune prepare"));
  }
  std::vector<Number> values(static_cast<size_t>(info.numel()));
  file.read(info, 0, info.bytes, values.data());
  return values;
}

}  // namespace

Documents Documents::from_cache(const std::string& path, std::int64_t vocab_size) {
  const SafetensorsFile file(path);
  auto tokens = read_vector<std::int32_t>(file, "tokens", DType::kI32);
  auto labels = read_vector<std::int32_t>(file, "labels", DType::kI32);
  auto offsets = read_vector<std::int64_t>(file, "offsets", DType::kI64);
  return Documents(path, vocab_size, std::move(tokens), std::move(labels), std::move(offsets), {});
}

}  // namespace moetune
