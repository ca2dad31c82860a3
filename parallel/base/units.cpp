#include "parallel/base/units.h"

#include <array>
#include <cmath>
#include <cstdio>

namespace moetune {
namespace {

template <typename... Arguments>
std::string print(const char* format, Arguments... arguments) {
  std::array<char, 64> text;
  std::snprintf(text.data(), text.size(), format, arguments...);
  return text.data();
}

// `amount` in the largest of `units` that leaves at least one, each `base` times the one before.
template <size_t N>
std::string scaled(double amount, double base, const std::array<const char*, N>& units) {
  size_t unit = 0;
  // What would print as the base belongs to the next unit already.
  for (; std::fabs(amount) >= base - 0.5 && unit + 1 < N; ++unit) amount /= base;
  if (unit == 0) return print("%.0f%s", amount, units[0]);
  const int decimals = std::fabs(amount) < 9.995 ? 2 : std::fabs(amount) < 99.95 ? 1 : 0;
  return print("%.*f%s", decimals, amount, units[unit]);
}

}  // namespace

std::string bytes_text(std::int64_t bytes) {
  return scaled(static_cast<double>(bytes), 1024, std::array{" B", " KiB", " MiB", " GiB", " TiB", " PiB"});
}

std::string count_text(double count) { return scaled(count, 1000, std::array{"", "k", "M", "B", "T"}); }

std::string duration_text(double seconds) {
  if (!std::isfinite(seconds) || seconds < 0) return "--";
  const auto whole = static_cast<long long>(std::llround(seconds));
  const int s = static_cast<int>(whole % 60), m = static_cast<int>(whole / 60 % 60),
            h = static_cast<int>(whole / 3600 % 24);
  if (whole >= 86400) return print("%lldd %02d:%02d:%02d", whole / 86400, h, m, s);
  return whole >= 3600 ? print("%d:%02d:%02d", h, m, s) : print("%d:%02d", m, s);
}

}  // namespace moetune
