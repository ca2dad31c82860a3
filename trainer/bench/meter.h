// Times of work that is repeated, on all ranks at once, as rates.
//
//   Meter meter(launch, device, {.quick = false}, [](const Figure& figure) { print(figure); });
//   meter.measure({"device_copy", "B/s", 2.0 * bytes, "2 x 1 GiB"}, Meter::Where::kDevice,
//                 [&] { return to.copy_(from); });
//
// Work is done once to allocate and to choose kernels, timed, done again for the length of a repeat, and then repeated.
// Before each repeat the ranks wait for each other, and its time is that of the slowest of them: what one rank can
// count on while the others do the same. On a GPU events on the current stream tell the time, on the host a steady
// clock.
#pragma once

#include <torch/types.h>

#include <functional>
#include <string>
#include <vector>

#include "parallel/comm/launch.h"
#include "trainer/plan/measured_machine.h"

namespace moetune {

/// A rate to be found: `amount` of the unit without "/s" is done by one piece of work.
struct Rate {
  std::string name;
  std::string unit;
  double amount = 0.0;
  std::string shape;
};

class Meter {
 public:
  struct Options {
    bool quick = false;  ///< fewer and shorter repeats
  };
  using Taker = std::function<void(const Figure& figure)>;
  /// Returns what it computed, which is looked at: random data give numbers that are finite and not all zero.
  using Work = std::function<at::Tensor()>;
  enum class Where {
    kDevice,  ///< in the order of the device's current stream
    kHost,    ///< done when it returns
  };

  /// Each figure is kept and shown to `take` as it is found.
  Meter(Launch& launch, at::Device device, Options options, Taker take)
      : launch_(launch), device_(device), options_(options), take_(std::move(take)) {}

  /// Collective over the job, as the work may be.
  void measure(const Rate& rate, Where where, const Work& work) { measure(std::vector<Rate>{rate}, where, work); }
  /// Several rates of the same work.
  void measure(const std::vector<Rate>& rates, Where where, const Work& work);

  at::Device device() const { return device_; }
  Launch& launch() const { return launch_; }
  const std::vector<Figure>& figures() const { return figures_; }

 private:
  /// Seconds of one piece of work, by repeat.
  std::vector<double> repeated(Where where, const Work& work);

  Launch& launch_;
  at::Device device_;
  Options options_;
  Taker take_;
  std::vector<Figure> figures_;
};

}  // namespace moetune
