#include "trainer/bench/meter.h"

#include <algorithm>
#include <cmath>

#include "parallel/base/error.h"
#include "parallel/base/median.h"
#include "parallel/device/stream_timer.h"

namespace moetune {
namespace {

/// What a figure may take in all: beyond it there are fewer repeats, so that a slow or a busy machine ends too.
constexpr double kLongest_s = 1.8;
constexpr size_t kFewestRepeats = 3;

void require_computed(const at::Tensor& result, const std::vector<Rate>& rates) {
  const at::Tensor some = result.flatten().narrow(0, 0, std::min<int64_t>(result.numel(), 1 << 20));
  const double sum = some.to(at::kDouble).abs().sum().item<double>();
  MT_CHECK(std::isfinite(sum) && sum > 0.0, rates.front().name, ": the work gave numbers whose magnitudes add to ",
           sum);
}

}  // namespace

std::vector<double> Meter::repeated(Where where, const Work& work) {
  const at::Device device = where == Where::kDevice ? device_ : at::Device(at::kCPU);
  StreamTimer timer(device);
  double spent_s = 0.0;
  auto seconds_of = [&](int64_t calls) {
    {
      StreamTimer::Piece piece(timer);
      for (int64_t i = 0; i < calls; ++i) work();
    }
    const int64_t own_ns = std::max<int64_t>(1, std::llround(1e9 * timer.take_s()));
    // All ranks go on with the same number, which decides how often the work, a collective maybe, is done.
    const double slowest_s = 1e-9 * static_cast<double>(launch_.max_over_world(own_ns));
    spent_s += slowest_s;
    return slowest_s;
  };
  const double target_s = (options_.quick ? 0.25 : 1.0) * (device.is_cuda() ? 0.02 : 0.1);
  const auto calls = static_cast<int64_t>(std::clamp(std::ceil(target_s / seconds_of(1)), 1.0, 1000.0));
  if (calls > 1) seconds_of(calls);
  const size_t wanted = options_.quick ? kFewestRepeats : device.is_cuda() ? 11 : 7;
  std::vector<double> seconds;
  do {
    seconds.push_back(seconds_of(calls) / static_cast<double>(calls));
  } while (seconds.size() < kFewestRepeats || seconds.size() % 2 == 0 ||
           (seconds.size() < wanted && spent_s < kLongest_s));
  return seconds;
}

void Meter::measure(const std::vector<Rate>& rates, Where where, const Work& work) {
  require_computed(work(), rates);
  const std::vector<double> seconds = repeated(where, work);
  const auto [fastest, slowest] = std::minmax_element(seconds.begin(), seconds.end());
  for (const Rate& rate : rates) {
    figures_.push_back({.name = rate.name,
                        .unit = rate.unit,
                        .value = rate.amount / median(seconds),
                        .min = rate.amount / *slowest,
                        .max = rate.amount / *fastest,
                        .repeats = static_cast<int64_t>(seconds.size()),
                        .shape = rate.shape});
    take_(figures_.back());
  }
}

}  // namespace moetune
