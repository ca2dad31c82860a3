#include "trainer/data/token_source.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "parallel/base/error.h"
#include "parallel/bytes/safetensors.h"

namespace moetune {

/// What the views of a source point into.
struct TokenSource::Memory {
  void* mapped = nullptr;
  size_t mapped_bytes = 0;
  std::vector<std::int32_t> tokens, labels;
  std::vector<std::int64_t> offsets, lines;
  std::vector<float> weights;

  ~Memory() {
    if (mapped != nullptr) ::munmap(mapped, mapped_bytes);
  }
};

namespace {

constexpr const char* kWriteAgain = ". Write it again with moetune prepare";

/// The bytes of a file that does not change, as long as the process lives or until unmapped.
void* map_file(const SafetensorsFile& file) {
  const int descriptor = ::open(file.path().c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) throw UserError(str(file.path(), ": cannot be opened: ", std::strerror(errno)));
  void* mapped = ::mmap(nullptr, file.identity().size, PROT_READ, MAP_SHARED, descriptor, 0);
  const int reason = errno;
  ::close(descriptor);
  if (mapped == MAP_FAILED) throw UserError(str(file.path(), ": cannot be mapped: ", std::strerror(reason)));
  return mapped;
}

/// The one-dimensional tensor `name`, which must have this dtype: where it is mapped, or copied into `own` where a
/// foreign writer has put it at a place that its numbers cannot be read from.
template <typename Number>
std::span<const Number> view(const SafetensorsFile& file, const void* mapped, const char* name, DType dtype,
                             std::vector<Number>& own) {
  const TensorInfo& info = file.at(name);
  if (info.dtype != dtype || info.shape.size() != 1) {
    throw UserError(str(file.path(), ": tensor '", name, "' is ", dtype_name(info.dtype), " with ", info.shape.size(),
                        " dims; a token file has ", dtype_name(dtype), " with 1 there", kWriteAgain));
  }
  const auto count = static_cast<size_t>(info.numel());
  if (info.begin % alignof(Number) == 0) {
    return {reinterpret_cast<const Number*>(static_cast<const char*>(mapped) + info.begin), count};
  }
  own.resize(count);
  file.read(info, 0, info.bytes, own.data());
  return own;
}

}  // namespace

TokenSource::TokenSource(std::string source_name) : name(std::move(source_name)), memory_(std::make_shared<Memory>()) {}

std::shared_ptr<const TokenSource> TokenSource::of_cache(const std::string& path, std::string name) {
  const SafetensorsFile file(path);
  std::shared_ptr<TokenSource> source(new TokenSource(std::move(name)));
  Memory& memory = *source->memory_;
  memory.mapped = map_file(file);
  memory.mapped_bytes = file.identity().size;
  source->tokens = view(file, memory.mapped, "tokens", DType::kI32, memory.tokens);
  source->labels = view(file, memory.mapped, "labels", DType::kI32, memory.labels);
  source->offsets = view(file, memory.mapped, "offsets", DType::kI64, memory.offsets);
  if (file.find("weights") != nullptr) {
    source->weights = view(file, memory.mapped, "weights", DType::kF32, memory.weights);
    if (source->weights.size() != source->tokens.size()) {
      throw UserError(str(path, ": ", source->tokens.size(), " tokens but ", source->weights.size(),
                          " weights; each token has one", kWriteAgain));
    }
  }
  source->require_sound();
  return source;
}

std::shared_ptr<const TokenSource> TokenSource::of_vectors(std::string name, std::vector<std::int32_t> tokens,
                                                           std::vector<std::int32_t> labels,
                                                           std::vector<std::int64_t> offsets,
                                                           std::vector<std::int64_t> lines,
                                                           std::vector<float> weights) {
  std::shared_ptr<TokenSource> source(new TokenSource(std::move(name)));
  Memory& memory = *source->memory_;
  source->tokens = memory.tokens = std::move(tokens);
  source->labels = memory.labels = std::move(labels);
  source->offsets = memory.offsets = std::move(offsets);
  source->lines = memory.lines = std::move(lines);
  source->weights = memory.weights = std::move(weights);
  source->require_sound();
  MT_CHECK(source->lines.empty() || static_cast<std::int64_t>(source->lines.size()) == source->size(),
           source->lines.size(), " lines, ", source->size(), " documents");
  MT_CHECK(source->weights.empty() || source->weights.size() == source->tokens.size(), source->weights.size(),
           " weights, ", source->tokens.size(), " tokens");
  return source;
}

void TokenSource::require_sound() const {
  if (labels.size() != tokens.size()) {
    throw UserError(str(name, ": ", tokens.size(), " tokens but ", labels.size(), " labels; each token has one label"));
  }
  if (offsets.size() < 2) throw UserError(name + ": holds no documents; at least one is needed");
  if (offsets.front() != 0 || offsets.back() != static_cast<std::int64_t>(tokens.size()) ||
      !std::is_sorted(offsets.begin(), offsets.end())) {
    throw UserError(str(name, ": the offsets of the documents must rise from 0 to the number of tokens, ",
                        tokens.size(), "; they begin with ", offsets.front(), " and end with ", offsets.back(),
                        ". The file is damaged: make it anew"));
  }
}

void TokenSource::let_go() const {
  // The mapping is read only and shared, so this drops this process' page table entries and no data.
  if (memory_->mapped != nullptr) ::madvise(memory_->mapped, memory_->mapped_bytes, MADV_DONTNEED);
}

}  // namespace moetune
