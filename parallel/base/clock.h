// Seconds: of the steady clock, which no one sets, for reports and limits of time; of the calendar, for what other
// processes and hosts read.
//
//   const auto start = std::chrono::steady_clock::now();
//   report.step_s = seconds_since(start);
//   lock.since = seconds_since_1970();
//   machine.date = utc_now();
#pragma once

#include <chrono>
#include <ctime>
#include <string>

namespace moetune {

inline double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

inline double seconds_since_1970() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

/// Now in UTC, as files have it: "2026-11-29T03:00:00Z".
inline std::string utc_now() {
  const std::time_t time = std::time(nullptr);
  std::tm utc{};
  ::gmtime_r(&time, &utc);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &utc);
  return text;
}

}  // namespace moetune
