// Amounts as a person reads them.
#pragma once

#include <concepts>
#include <cstdint>
#include <string>

namespace moetune {

/// "812 B", "1.50 KiB", "12.3 GiB": powers of 1024, three figures.
std::string bytes_text(std::int64_t bytes);
/// "8", "950", "8.90k", "1.80M", "671B": powers of 1000, three figures.
std::string count_text(double count);
template <std::integral Count>
std::string count_text(Count count) {
  return count_text(static_cast<double>(count));
}
/// "0:07", "12:34", "3:00:05", "2d 03:04:05". Negative or not finite: "--".
std::string duration_text(double seconds);

}  // namespace moetune
