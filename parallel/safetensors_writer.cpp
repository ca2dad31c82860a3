#include <nlohmann/json.hpp>
#include <utility>

#include "parallel/base/error.h"
#include "parallel/base/text.h"
#include "parallel/safetensors.h"

namespace moetune {

SafetensorsWriter::SafetensorsWriter(const std::string& path, const std::vector<Spec>& specs, StringMap metadata) : file_(path) {
  using nlohmann::ordered_json;
  metadata["format"] = "pt";
  ordered_json header;
  header["__metadata__"] = metadata;
  std::map<std::string_view, const Spec*> seen;  // ordered_json looks keys up one by one: too slow to ask it
  ordered_json::object_t& entries = header.get_ref<ordered_json::object_t&>();
  std::uint64_t begin = 0;
  for (const Spec& spec : specs) {
    MT_CHECK(spec.name != "__metadata__" && seen.emplace(spec.name, &spec).second, path, ": tensor ", in_quotes(spec.name),
             " is declared twice or under the reserved name");
    const std::optional<std::uint64_t> bytes = size_in_bytes(spec.dtype, spec.shape);
    MT_CHECK(bytes, path, ": tensor ", in_quotes(spec.name), " has a shape that overflows or does not fill whole bytes");
    ordered_json entry;
    entry["dtype"] = dtype_name(spec.dtype);
    entry["shape"] = spec.shape;
    entry["data_offsets"] = {begin, begin + *bytes};
    static_cast<std::vector<ordered_json::object_t::value_type>&>(entries).emplace_back(spec.name, std::move(entry));
    pending_.push_back({spec.name, *bytes});
    begin += *bytes;
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');  // the tensors begin at a multiple of 8
  const std::uint64_t length = text.size();
  file_.write(&length, sizeof(length));
  file_.write(text.data(), text.size());
  skip_complete();
}

void SafetensorsWriter::skip_complete() {
  while (next_ < pending_.size() && pending_[next_].missing == 0) ++next_;
}

void SafetensorsWriter::append(std::string_view name, const void* data, std::uint64_t size) {
  if (size == 0) return;
  MT_CHECK(next_ < pending_.size(), file_.path(), ": ", size, " bytes of ", in_quotes(name), ", but all tensors are complete");
  Pending& due = pending_[next_];
  MT_CHECK(name == due.name, file_.path(), ": bytes of ", in_quotes(name), " where ", in_quotes(due.name), " is due");
  MT_CHECK(size <= due.missing, file_.path(), ": ", size, " bytes of ", in_quotes(name), ", which misses only ", due.missing);
  file_.write(data, size);
  due.missing -= size;
  skip_complete();
}

void SafetensorsWriter::commit() {
  MT_CHECK(next_ == pending_.size(), file_.path(), ": tensor ", in_quotes(pending_[next_].name), " misses ", pending_[next_].missing,
           " bytes");
  file_.commit();
}

}  // namespace moetune
