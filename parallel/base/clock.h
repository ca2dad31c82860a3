// Seconds: of the steady clock, which no one sets, for reports and limits of time; of the calendar, for what other
// processes and hosts read.
//
//   const auto start = std::chrono::steady_clock::now();
//   report.step_s = seconds_since(start);
//   lock.since = seconds_since_1970();
#pragma once

#include <chrono>

namespace moetune {

inline double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

inline double seconds_since_1970() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

}  // namespace moetune
