#include "parallel/base/log.h"

#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include "parallel/base/error.h"
#include "parallel/base/text.h"

namespace moetune {
namespace {

struct Sinks {
  std::shared_ptr<spdlog::logger> out =
      std::make_shared<spdlog::logger>("out", std::make_shared<spdlog::sinks::stdout_sink_mt>());
  std::shared_ptr<spdlog::logger> err =
      std::make_shared<spdlog::logger>("err", std::make_shared<spdlog::sinks::stderr_sink_mt>());
  Sinks() {
    out->set_pattern("%v");
    err->set_pattern("%v");
    out->flush_on(spdlog::level::info);
    err->flush_on(spdlog::level::info);
  }
};

// spdlog keeps a registry of its own; this is its one instance here.
Sinks& sinks() {
  static Sinks instance;
  return instance;
}

}  // namespace

void log_init(int rank, int world_size) {
  if (rank != 0) sinks().out->set_level(spdlog::level::off);
  if (world_size > 1) sinks().err->set_pattern(str("[rank ", rank, "] %v"));
}
// A message may hold what a file said; here it is made safe to print.
void log_info(const std::string& message) { sinks().out->info("{}", printable(message)); }
void log_warn(const std::string& message) { sinks().err->warn("warning: {}", printable(message)); }
void log_error(const std::string& message) { sinks().err->error("error: {}", printable(message)); }

}  // namespace moetune
