#include <nlohmann/json.hpp>
#include <utility>

#include "parallel/base/error.h"
#include "parallel/base/text.h"
#include "parallel/bytes/safetensors.h"

namespace moetune {

std::string safetensors_header(const std::string& path, const std::vector<TensorToWrite>& specs, StringMap metadata) {
  metadata["format"] = "pt";
  nlohmann::json header = {{"__metadata__", std::move(metadata)}};
  std::uint64_t begin = 0;
  for (const TensorToWrite& spec : specs) {
    MT_CHECK(!header.contains(spec.name), path, ": tensor ", in_quotes(spec.name),
             " is declared twice or has the reserved name");
    const std::optional<std::uint64_t> bytes = size_in_bytes(spec.dtype, spec.shape);
    MT_CHECK(bytes, path, ": the shape of tensor ", in_quotes(spec.name), " overflows or does not fill whole bytes");
    header[spec.name] = {
        {"dtype", dtype_name(spec.dtype)}, {"shape", spec.shape}, {"data_offsets", {begin, begin + *bytes}}};
    begin += *bytes;
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');  // the tensors begin at a multiple of 8
  const std::uint64_t length = text.size();
  MT_CHECK(length <= kMaxHeaderBytes, path, ": header of ", length, " bytes; readers accept ", kMaxHeaderBytes);
  return std::string(reinterpret_cast<const char*>(&length), sizeof(length)) + text;
}

SafetensorsWriter::SafetensorsWriter(const std::string& path, const std::vector<Spec>& specs, StringMap metadata)
    : file_(path) {
  const std::string header = safetensors_header(path, specs, std::move(metadata));
  for (const Spec& spec : specs) pending_.push_back({spec.name, *size_in_bytes(spec.dtype, spec.shape)});
  file_.write(header.data(), header.size());
  skip_complete();
}

void SafetensorsWriter::skip_complete() {
  while (next_ < pending_.size() && pending_[next_].missing == 0) ++next_;
}

void SafetensorsWriter::append(std::string_view name, const void* data, std::uint64_t size) {
  if (size == 0) return;
  MT_CHECK(next_ < pending_.size(), file_.path(), ": ", size, " bytes of ", in_quotes(name),
           ", but all tensors are complete");
  Pending& due = pending_[next_];
  MT_CHECK(name == due.name, file_.path(), ": bytes of ", in_quotes(name), " where ", in_quotes(due.name), " is due");
  MT_CHECK(size <= due.missing, file_.path(), ": ", size, " bytes of ", in_quotes(name), ", which misses only ",
           due.missing);
  file_.write(data, size);
  due.missing -= size;
  skip_complete();
}

void SafetensorsWriter::commit() {
  MT_CHECK(next_ == pending_.size(), file_.path(), ": tensor ", in_quotes(pending_[next_].name), " misses ",
           pending_[next_].missing, " bytes");
  file_.commit();
}

}  // namespace moetune
