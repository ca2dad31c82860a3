#include "parallel/bytes/safetensors.h"

#include <algorithm>
#include <array>
#include <bit>
#include <limits>
#include <nlohmann/json.hpp>
#include <utility>

#include "parallel/base/error.h"
#include "parallel/base/sha256.h"
#include "parallel/base/strict_json.h"
#include "parallel/base/text.h"

namespace moetune {
namespace {

using nlohmann::json;

static_assert(std::endian::native == std::endian::little, "the format is little-endian and is read without conversion");

struct DTypeRow {
  DType dtype;
  const char* name;
  int bits;
};
constexpr std::array kDTypes = {
    DTypeRow{DType::kBool, "BOOL", 8},
    DTypeRow{DType::kF4, "F4", 4},
    DTypeRow{DType::kF6E2M3, "F6_E2M3", 6},
    DTypeRow{DType::kF6E3M2, "F6_E3M2", 6},
    DTypeRow{DType::kU8, "U8", 8},
    DTypeRow{DType::kI8, "I8", 8},
    DTypeRow{DType::kF8E5M2, "F8_E5M2", 8},
    DTypeRow{DType::kF8E4M3, "F8_E4M3", 8},
    DTypeRow{DType::kF8E8M0, "F8_E8M0", 8},
    DTypeRow{DType::kF8E4M3Fnuz, "F8_E4M3FNUZ", 8},
    DTypeRow{DType::kF8E5M2Fnuz, "F8_E5M2FNUZ", 8},
    DTypeRow{DType::kI16, "I16", 16},
    DTypeRow{DType::kU16, "U16", 16},
    DTypeRow{DType::kF16, "F16", 16},
    DTypeRow{DType::kBF16, "BF16", 16},
    DTypeRow{DType::kI32, "I32", 32},
    DTypeRow{DType::kU32, "U32", 32},
    DTypeRow{DType::kF32, "F32", 32},
    DTypeRow{DType::kC64, "C64", 64},
    DTypeRow{DType::kF64, "F64", 64},
    DTypeRow{DType::kI64, "I64", 64},
    DTypeRow{DType::kU64, "U64", 64},
};

const DTypeRow& row_of(DType dtype) {
  const DTypeRow& row = kDTypes.at(static_cast<std::size_t>(dtype));
  MT_CHECK(row.dtype == dtype, "the table of dtypes is not in the order of the enum at ", row.name);
  return row;
}

constexpr std::uint64_t kPrefixBytes = 8;
// header object -> tensor -> shape
constexpr int kHeaderDepth = 3;

std::string read_header(const InputFile& file) {
  const std::string& path = file.path();
  if (file.size() < kPrefixBytes) {
    throw UserError(str(path, ": ", file.size(),
                        " bytes are too short for a safetensors file, which begins with 8 bytes of header length"));
  }
  std::uint64_t length = 0;
  file.read(0, &length, sizeof(length));
  if (length > kMaxHeaderBytes) {
    throw UserError(str(path, ": header of ", length, " bytes; at most ", kMaxHeaderBytes,
                        " are allowed. Is this a safetensors file?"));
  }
  if (length > file.size() - kPrefixBytes) {
    throw UserError(str(path, ": header of ", length, " bytes runs past the end of the file (", file.size(),
                        " bytes); the file is cut"));
  }
  std::string header(length, '\0');
  file.read(kPrefixBytes, header.data(), length);
  if (header.empty() || header[0] != '{') throw UserError(str(path, ": the header does not begin with '{'"));
  return header;
}

StringMap parse_metadata(const std::string& where, const json& entry) {
  if (!entry.is_object()) throw UserError(str(where, ": __metadata__ must be an object of strings"));
  StringMap metadata;
  for (const auto& [key, value] : entry.items()) {
    if (!value.is_string()) throw UserError(str(where, ": __metadata__ ", in_quotes(key), " must be a string"));
    metadata.emplace(key, value.get<std::string>());
  }
  return metadata;
}

// A dim or an offset: an integer of 0 to 2^63 - 1. Floats, negative and larger numbers have other JSON types or values.
std::uint64_t parse_count(const std::string& where, const char* what, const json& value) {
  constexpr auto kLargest = static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
  if (!value.is_number_unsigned() || value.get<std::uint64_t>() > kLargest) {
    throw UserError(str(where, ": ", what, " must hold integers from 0 to 2^63 - 1"));
  }
  return value.get<std::uint64_t>();
}

std::string shape_text(const std::vector<std::int64_t>& shape) {
  std::string text = "[";
  for (std::size_t i = 0; i < shape.size() && i < 8; ++i) text += str(i == 0 ? "" : ", ", shape[i]);
  return text + (shape.size() > 8 ? ", ...]" : "]");
}

// `data_begin`, `data_bytes`: where the section of the tensors begins in the file, and its length.
TensorInfo parse_tensor(const std::string& path, const std::string& name, const json& entry, std::uint64_t data_begin,
                        std::uint64_t data_bytes) {
  const std::string where = str(path, ": tensor ", in_quotes(name));
  if (!entry.is_object() || entry.size() != 3 || !entry.contains("dtype") || !entry.contains("shape") ||
      !entry.contains("data_offsets")) {
    throw UserError(str(where, ": its header entry must be an object of exactly dtype, shape and data_offsets"));
  }
  TensorInfo info;
  info.name = name;
  info.file = path;

  const json& dtype = entry["dtype"];
  const std::optional<DType> known =
      dtype.is_string() ? dtype_of_name(dtype.get_ref<const std::string&>()) : std::nullopt;
  if (!known) {
    throw UserError(str(where, ": unknown dtype ",
                        dtype.is_string() ? in_quotes(dtype.get_ref<const std::string&>()) : "(not a string)"));
  }
  info.dtype = *known;

  const json& shape = entry["shape"];
  if (!shape.is_array()) throw UserError(str(where, ": shape must be an array"));
  for (const json& dim : shape) info.shape.push_back(static_cast<std::int64_t>(parse_count(where, "shape", dim)));

  const json& offsets = entry["data_offsets"];
  if (!offsets.is_array() || offsets.size() != 2) throw UserError(str(where, ": data_offsets must be [begin, end]"));
  const std::uint64_t begin = parse_count(where, "data_offsets", offsets[0]);
  const std::uint64_t end = parse_count(where, "data_offsets", offsets[1]);
  if (begin > end || end > data_bytes) {
    throw UserError(str(where, ": data_offsets [", begin, ", ", end, "] do not lie in the file, which holds ",
                        data_bytes, " bytes of tensors; is it cut?"));
  }
  const std::optional<std::uint64_t> bytes = size_in_bytes(info.dtype, info.shape);
  if (!bytes) {
    throw UserError(str(where, ": a ", dtype_name(info.dtype), " tensor of shape ", shape_text(info.shape),
                        " overflows or does not fill whole bytes"));
  }
  if (*bytes != end - begin) {
    throw UserError(str(where, ": data_offsets span ", end - begin, " bytes, but a ", dtype_name(info.dtype),
                        " tensor of shape ", shape_text(info.shape), " has ", *bytes));
  }
  info.begin = data_begin + begin;
  info.bytes = *bytes;
  return info;
}

// No hole, no overlap, no byte left over: two readers cannot see different tensors, nor a second file hide in this one.
void check_cover(const std::string& path, const std::map<std::string, TensorInfo, std::less<>>& tensors,
                 std::uint64_t data_begin, std::uint64_t file_bytes) {
  std::vector<const TensorInfo*> ordered;
  for (const auto& [name, info] : tensors) ordered.push_back(&info);
  std::sort(ordered.begin(), ordered.end(), [](const TensorInfo* a, const TensorInfo* b) {
    return std::pair(a->begin, a->bytes) < std::pair(b->begin, b->bytes);
  });
  std::uint64_t covered = data_begin;
  for (const TensorInfo* info : ordered) {
    if (info->begin != covered) {
      throw UserError(
          str(path, ": tensor ", in_quotes(info->name), " begins at byte ", info->begin, " of the file where ", covered,
              " is due: ", info->begin < covered ? "it overlaps another tensor" : "there is a hole before it"));
    }
    covered += info->bytes;
  }
  if (covered != file_bytes) {
    throw UserError(
        str(path, ": ", file_bytes - covered, " bytes follow the last tensor, which ends at byte ", covered));
  }
}

}  // namespace

int size_in_bits(DType dtype) { return row_of(dtype).bits; }
const char* dtype_name(DType dtype) { return row_of(dtype).name; }

std::optional<DType> dtype_of_name(std::string_view name) {
  for (const DTypeRow& row : kDTypes) {
    if (name == row.name) return row.dtype;
  }
  return std::nullopt;
}

std::optional<std::uint64_t> size_in_bytes(DType dtype, const std::vector<std::int64_t>& shape) {
  // Zero dims are left out of the product that is checked, so that strides cannot overflow either.
  std::int64_t product = 1;
  bool empty = false;
  for (const std::int64_t dim : shape) {
    if (dim < 0) return std::nullopt;
    if (dim == 0) empty = true;
    if (dim != 0 && __builtin_mul_overflow(product, dim, &product)) return std::nullopt;
  }
  std::int64_t bits = 0;
  if (__builtin_mul_overflow(product, static_cast<std::int64_t>(size_in_bits(dtype)), &bits)) return std::nullopt;
  if (empty) return 0;
  if (bits % 8 != 0) return std::nullopt;
  return static_cast<std::uint64_t>(bits / 8);
}

std::int64_t TensorInfo::numel() const {
  std::int64_t product = 1;
  for (const std::int64_t dim : shape) product *= dim;
  return product;
}

SafetensorsFile::SafetensorsFile(std::string path, Links links) : path_(std::move(path)), links_(links) {
  const InputFile file(path_, links_);
  identity_ = file.identity();
  const std::string text = read_header(file);
  header_digest_ = sha256_of(text);
  const std::uint64_t data_begin = kPrefixBytes + text.size();
  const json header = parse_strict_json(text, str(path_, ": header"), kHeaderDepth);
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") {
      metadata_ = parse_metadata(path_, entry);
    } else {
      tensors_.emplace(name, parse_tensor(path_, name, entry, data_begin, file.size() - data_begin));
    }
  }
  check_cover(path_, tensors_, data_begin, file.size());
}

const TensorInfo* SafetensorsFile::find(std::string_view name) const {
  const auto found = tensors_.find(name);
  return found == tensors_.end() ? nullptr : &found->second;
}

const TensorInfo& SafetensorsFile::at(std::string_view name) const {
  if (const TensorInfo* info = find(name)) return *info;
  throw UserError(
      str(path_, ": no tensor ", in_quotes(name), "; nearest: ", list_in_quotes(nearest(name, names(), 3))));
}

std::vector<std::string> SafetensorsFile::names() const {
  std::vector<std::string> names;
  for (const auto& [name, info] : tensors_) names.push_back(name);
  return names;
}

std::uint64_t SafetensorsFile::total_bytes() const {
  std::uint64_t total = 0;
  for (const auto& [name, info] : tensors_) total += info.bytes;
  return total;
}

const InputFile& SafetensorsFile::opened() const {
  const std::lock_guard lock(opening_);
  if (input_ == nullptr) {
    auto input = std::make_unique<InputFile>(path_, links_);
    if (input->identity() != identity_) {
      throw UserError(
          str(path_, ": the file has changed since its header was read; leave it alone during a run and start again"));
    }
    input_ = std::move(input);
  }
  return *input_;
}

void SafetensorsFile::read(const TensorInfo& info, std::uint64_t first_byte, std::uint64_t num_bytes,
                           void* destination) const {
  MT_CHECK(info.file == path_, in_quotes(info.name), " is of ", info.file, ", not of ", path_);
  MT_CHECK(first_byte <= info.bytes && num_bytes <= info.bytes - first_byte, "bytes ", first_byte, " + ", num_bytes,
           " of ", in_quotes(info.name), ", which has ", info.bytes);
  if (num_bytes > 0) opened().read(info.begin + first_byte, destination, num_bytes);
}

}  // namespace moetune
