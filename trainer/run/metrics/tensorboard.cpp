#include "trainer/run/metrics/tensorboard.h"

#include <unistd.h>

#include <bit>
#include <filesystem>
#include <system_error>

#include "parallel/base/clock.h"
#include "parallel/base/error.h"
#include "parallel/base/host_name.h"
#include "trainer/run/metrics/crc32c.h"

namespace moetune {
namespace {

static_assert(std::endian::native == std::endian::little, "records and protobuf's fixed fields are little-endian");

template <typename Number>
std::string bytes_of(Number number) {
  return std::string(reinterpret_cast<const char*>(&number), sizeof(number));
}

// Protobuf's wire format: a key is (field number << 3) | type, and integers are varints, 7 bits a byte, low bits first.
std::string varint(std::uint64_t value) {
  std::string out;
  for (; value >= 0x80; value >>= 7) out += static_cast<char>(value | 0x80);
  return out + static_cast<char>(value);
}
std::string integer_field(int field, std::int64_t value) {
  return varint(static_cast<std::uint64_t>(field) << 3) + varint(static_cast<std::uint64_t>(value));
}
std::string double_field(int field, double value) {
  return varint(static_cast<std::uint64_t>(field) << 3 | 1) + bytes_of(value);
}
std::string float_field(int field, float value) {
  return varint(static_cast<std::uint64_t>(field) << 3 | 5) + bytes_of(value);
}
std::string bytes_field(int field, std::string_view value) {  // text and nested messages too
  return varint(static_cast<std::uint64_t>(field) << 3 | 2) + varint(value.size()) + std::string(value);
}

// Event: wall_time = 1, step = 2, then one of file_version = 3, summary = 5, session_log = 7.
std::string event(std::int64_t step, int field, std::string_view content) {
  return double_field(1, seconds_since_1970()) + integer_field(2, step) + bytes_field(field, content);
}

// Readers take the files of a folder in the order of their names, so a later run's name must be greater.
std::string new_path(const std::string& folder) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) throw UserError(str(folder, " cannot be made: ", error.message()));
  const std::string stem =
      str(folder, "/events.out.tfevents.", static_cast<std::int64_t>(seconds_since_1970()), ".", host_name(), ".");
  int n = 0;
  while (std::filesystem::exists(str(stem, n))) ++n;
  return str(stem, n);
}

}  // namespace

std::string tensorboard_record(std::string_view data) {
  const auto masked = [](std::string_view bytes) { return bytes_of(std::rotr(crc32c(bytes), 15) + 0xa282ead8u); };
  const std::string length = bytes_of(static_cast<std::uint64_t>(data.size()));
  return length + masked(length) + std::string(data) + masked(data);
}

TensorBoard::TensorBoard(const std::string& folder, std::optional<std::int64_t> resumed_step)
    : file_(new_path(folder), AppendFile::Mode::kCreate) {
  file_.append(tensorboard_record(event(0, 3, "brain.Event:2")));
  if (resumed_step) {
    const std::string start = integer_field(1, 1);  // SessionLog: status = START
    file_.append(tensorboard_record(event(*resumed_step + 1, 7, start)));
  }
}

void TensorBoard::write(std::int64_t step, const std::vector<std::pair<std::string, float>>& scalars) {
  std::string summary;  // repeated value = 1, each with tag = 1 and simple_value = 2
  for (const auto& [tag, value] : scalars) summary += bytes_field(1, bytes_field(1, tag) + float_field(2, value));
  file_.append(tensorboard_record(event(step, 5, summary)));
}

}  // namespace moetune
