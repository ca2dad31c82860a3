// log.jsonl of a run folder: what happened, one JSON object a line, each line on disk as soon as it is written.
//
//   LogFile log(run_dir + "/log.jsonl", std::nullopt);              // a fresh run
//   log.append({{"kind", "step"}, {"step", 1}, {"loss", 2.31}});
//   LogFile log(run_dir + "/log.jsonl", 100);                       // resumed from the checkpoint of step 100
//
// A number that is not finite is written as null: JSON has no other word for it.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "trainer/run/metrics/append_file.h"

namespace moetune {

class LogFile {
 public:
  /// Without `resumed_step` the file must not exist yet. With it, an existing file is first cut off before the first
  /// line whose "step" is greater, since those steps are run again; a last line that a killed run left unfinished goes
  /// too. Lines without "step" stay where they stand before the cut. Throws UserError when a complete line is no JSON
  /// object, or when the file cannot be opened or written.
  LogFile(const std::string& path, std::optional<std::int64_t> resumed_step);

  /// Writes one line. Throws UserError when it cannot be written.
  void append(const nlohmann::ordered_json& object);

 private:
  AppendFile file_;
};

/// Whether the file is a log of a run, which begins with a line of kind "start", or is empty. UserError naming a whole
/// line that is no JSON object.
bool is_own_log(const std::string& path);

}  // namespace moetune
