#include "lora/slab_cache.h"

#include <sys/stat.h>

#include <cstdio>
#include <cstring>

#include "parallel/base/error.h"
#include "parallel/base/sha256.h"
#include "parallel/bytes/finite.h"
#include "parallel/bytes/tensor_io.h"

namespace moetune {
namespace {

constexpr const char* kDigests = "sha256";
constexpr int64_t kDigestBytes = sizeof(Sha256Bytes);

uint64_t bytes_of(const FrozenShape& shape) {
  uint64_t bytes = 0;
  for (const PackedPart& part : shape.parts()) bytes += static_cast<uint64_t>(part.bytes());
  return bytes;
}

std::vector<TensorToWrite> specs_of(const std::vector<SlabMatrix>& matrices) {
  std::vector<TensorToWrite> specs = {{kDigests, DType::kU8, {static_cast<int64_t>(matrices.size()), kDigestBytes}}};
  for (const SlabMatrix& matrix : matrices) {
    for (const PackedPart& part : matrix.shape.parts()) {
      specs.push_back({str(matrix.name, "/", part.name), *dtype_of(part.dtype), {part.elements}});
    }
  }
  return specs;
}

/// A view of a part's bytes; a copy where they lie askew for its dtype.
at::Tensor part_at(const uint8_t* bytes, const PackedPart& part) {
  const bool aligned = reinterpret_cast<uintptr_t>(bytes) % c10::elementSize(part.dtype) == 0;
  if (aligned) return at::from_blob(const_cast<uint8_t*>(bytes), {part.elements}, at::TensorOptions(part.dtype));
  at::Tensor copy = at::empty({part.elements}, at::TensorOptions(part.dtype));
  std::memcpy(copy.data_ptr(), bytes, static_cast<size_t>(part.bytes()));
  return copy;
}

}  // namespace

SlabFile::SlabFile(SlabCache& cache, const std::string& path, std::vector<SlabMatrix> matrices)
    : cache_(cache), matrices_(std::move(matrices)) {
  const std::string header = safetensors_header(path, specs_of(matrices_), {{"packing", str(kPackingVersion)}});
  digests_ = header.size();
  uint64_t place = digests_ + matrices_.size() * kDigestBytes;
  for (const SlabMatrix& matrix : matrices_) {
    places_.push_back(place);
    place += bytes_of(matrix.shape);
  }
  places_.push_back(place);
  if (cache_.writes_) {
    try {
      file_.emplace(path, place, PlacedFile::Access::kFill);
    } catch (const UserError& error) {
      cache_.stop_writing(error.what());
    }
  }
  if (!file_) file_.emplace(path, place, PlacedFile::Access::kRead);
  std::string present(header.size(), '\0');
  file_->read(0, present.data(), present.size());
  if (present == header) return;
  if (!file_->fills()) throw UserError(str(path, ": is no file of this model and format"));
  file_->write(0, header.data(), header.size());
}

std::optional<SlabFile::Stored> SlabFile::find(size_t matrix) const {
  Stored stored;
  try {
    Sha256Bytes digest;
    file_->read(digests_ + matrix * kDigestBytes, digest.data(), digest.size());
    if (digest == Sha256Bytes{}) return std::nullopt;
    stored.bytes = file_->map(places_[matrix], places_[matrix + 1] - places_[matrix]);
    if (sha256_of(stored.bytes.data(), stored.bytes.size()) != digest) {
      throw UserError(str(file_->path(), ": ", matrices_[matrix].name, " differs from its SHA-256"));
    }
  } catch (const UserError& error) {
    cache_.found_damaged(error.what());
    return std::nullopt;
  }
  const uint8_t* bytes = stored.bytes.data();
  for (const PackedPart& part : matrices_[matrix].shape.parts()) {
    stored.parts.push_back(part_at(bytes, part));
    bytes += part.bytes();
    // What was packed before non-finite weights were refused: read again from the checkpoint, which names the tensor.
    if (part.dtype != at::kByte && find_non_finite(stored.parts.back())) {
      cache_.found_damaged(str(file_->path(), ": ", matrices_[matrix].name, " holds values that are NaN or infinite"));
      return std::nullopt;
    }
  }
  cache_.found_bytes_ += static_cast<int64_t>(stored.bytes.size());
  return stored;
}

void SlabFile::put(size_t matrix, const std::vector<at::Tensor>& parts) {
  if (!cache_.writes_ || !file_->fills()) return;
  std::vector<uint8_t> bytes;
  bytes.reserve(places_[matrix + 1] - places_[matrix]);
  for (const at::Tensor& part : parts) {
    const at::Tensor on_host = part.to(at::kCPU).contiguous();
    const auto* first = static_cast<const uint8_t*>(on_host.data_ptr());
    bytes.insert(bytes.end(), first, first + on_host.nbytes());
  }
  MT_CHECK(places_[matrix] + bytes.size() == places_[matrix + 1], matrices_[matrix].name, " has ", bytes.size(),
           " packed bytes");
  const Sha256Bytes digest = sha256_of(bytes.data(), bytes.size());
  try {
    // The digest comes last: until it stands there the matrix is not there.
    file_->write(places_[matrix], bytes.data(), bytes.size());
    file_->write(digests_ + matrix * kDigestBytes, digest.data(), digest.size());
    cache_.written_bytes_ += static_cast<int64_t>(bytes.size());
  } catch (const UserError& error) {
    cache_.stop_writing(error.what());
  }
}

SlabCache::SlabCache(std::filesystem::path folder) : folder_(std::move(folder)) {
  std::error_code error;
  std::filesystem::create_directories(folder_, error);
  if (error) stop_writing(str(folder_.string(), ": cannot make the folder: ", error.message()));
}

std::unique_ptr<SlabFile> SlabCache::open(const std::string& slab, std::vector<SlabMatrix> matrices) {
  const std::string path = (folder_ / (slab + ".safetensors")).string();
  if (!writes_ && !std::filesystem::exists(path)) return nullptr;
  try {
    return std::unique_ptr<SlabFile>(new SlabFile(*this, path, std::move(matrices)));
  } catch (const UserError& error) {
    stop_writing(error.what());
    return nullptr;
  }
}

void SlabCache::stop_writing(const std::string& reason) {
  const std::lock_guard lock(saying_);
  writes_ = false;
  if (not_written_.empty()) not_written_ = reason;
}

void SlabCache::found_damaged(const std::string& what) {
  const std::lock_guard lock(saying_);
  if (damaged_matrices_++ == 0) first_damage_ = what;
}

std::string SlabCache::complaints() const {
  const std::lock_guard lock(saying_);
  std::string text;
  if (!not_written_.empty()) text += not_written_ + "; what is not in the cache stays out of it\n";
  if (!first_damage_.empty()) text += first_damage_ + "; it is packed anew\n";
  return text;
}

std::optional<SlabFileState> slab_file_state(const std::filesystem::path& path) {
  const std::string name = path.filename().string();
  SlabFileState state;
  if (std::sscanf(name.c_str(), "layer-%ld-", &state.layer) != 1) return std::nullopt;
  try {
    const SafetensorsFile file(path.string(), Links::kRefuse);
    if (file.metadata().count("packing") == 0 || file.find(kDigests) == nullptr) return std::nullopt;
    const at::Tensor present = read_tensor(file, kDigests).any(1);
    state.matrices = present.sum().item<int64_t>();
    state.all_matrices = present.numel();
  } catch (const UserError&) {
    return std::nullopt;
  }
  struct stat status;
  if (::stat(path.c_str(), &status) == 0) state.bytes_on_disk = static_cast<int64_t>(status.st_blocks) * 512;
  return state;
}

}  // namespace moetune
