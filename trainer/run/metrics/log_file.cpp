#include "trainer/run/metrics/log_file.h"

#include <filesystem>
#include <fstream>
#include <limits>
#include <string_view>

#include "parallel/base/error.h"

namespace moetune {
namespace {

// Bytes of the complete lines before the first one whose step is after `last_step`.
std::uintmax_t bytes_to_keep(const std::string& path, std::int64_t last_step) {
  std::ifstream in(path, std::ios::binary);
  if (!in) throw UserError(path + " cannot be read");
  std::uintmax_t kept = 0;
  std::string line;
  for (std::int64_t number = 1; std::getline(in, line) && !in.eof(); ++number) {  // eof: no newline, an unfinished line
    const auto object = nlohmann::json::parse(line, nullptr, false);
    if (!object.is_object()) {
      throw UserError(str(path, ":", number, ": not a JSON object; repair or remove the line to go on with this log"));
    }
    const auto step = object.find("step");
    if (step != object.end() && step->is_number() && step->get<std::int64_t>() > last_step) break;
    kept += line.size() + 1;
  }
  return kept;
}

// Makes the file ready for what comes next and says how to open it.
AppendFile::Mode prepare(const std::string& path, std::optional<std::int64_t> resumed_step) {
  const bool exists = std::filesystem::exists(path);
  if (!resumed_step) {
    if (exists) {
      throw UserError(
          path + " exists: it belongs to an earlier run. Go on with that run (--resume) or choose another run.dir");
    }
    return AppendFile::Mode::kCreate;
  }
  if (exists) std::filesystem::resize_file(path, bytes_to_keep(path, *resumed_step));
  return AppendFile::Mode::kContinue;
}

}  // namespace

bool is_own_log(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) throw UserError(path + " cannot be read");
  std::string first;
  if (!std::getline(in, first)) return true;
  constexpr std::string_view kFirst = R"({"kind":"start",)";
  // A run that was killed may have left a part of its first line.
  const bool ours = first.starts_with(kFirst) || (in.eof() && kFirst.starts_with(first));
  if (ours) bytes_to_keep(path, std::numeric_limits<std::int64_t>::max());
  return ours;
}

LogFile::LogFile(const std::string& path, std::optional<std::int64_t> resumed_step)
    : file_(path, prepare(path, resumed_step)) {}

void LogFile::append(const nlohmann::ordered_json& object) {
  // Bytes that are no UTF-8 (a path, say) are replaced: they must not end a run.
  file_.append(object.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
}

}  // namespace moetune
