// Seconds of the steady clock, which no one sets: for reports and limits of time.
//
//   const auto start = std::chrono::steady_clock::now();
//   report.step_s = seconds_since(start);
#pragma once

#include <chrono>

namespace moetune {

inline double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace moetune
