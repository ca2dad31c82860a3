#include "trainer/bench/bench.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <filesystem>

#include "parallel/base/clock.h"
#include "parallel/base/error.h"
#include "parallel/base/files.h"
#include "parallel/base/host_name.h"
#include "parallel/base/text.h"
#include "parallel/comm/versions.h"
#include "parallel/device/device_memory.h"
#include "parallel/device/device_name.h"
#include "trainer/assemble.h"
#include "trainer/bench/compute_bounds.h"
#include "trainer/bench/optimizer_bounds.h"
#include "trainer/bench/step_bounds.h"
#include "trainer/bench/traffic_bounds.h"

namespace moetune {
namespace {

namespace fs = std::filesystem;

/// "3.12 TFLOP/s": powers of 1000.
std::string rate_text(double rate, const std::string& unit) {
  constexpr std::array kPrefixes = {"", "k", "M", "G", "T", "P"};
  size_t prefix = 0;
  for (; rate >= 999.5 && prefix + 1 < kPrefixes.size(); ++prefix) rate /= 1000.0;
  std::array<char, 64> text;
  std::snprintf(text.data(), text.size(), rate < 9.995 ? "%.2f" : rate < 99.95 ? "%.1f" : "%.0f", rate);
  return str(text.data(), " ", kPrefixes[prefix], unit);
}

void print(const std::string& text) {
  std::fputs(printable(text).c_str(), stdout);
  std::fflush(stdout);
}

void print_figure(const Figure& figure) {
  std::array<char, 200> text;
  std::snprintf(text.data(), text.size(), "%-33s %15s  (%s to %s)", figure.name.c_str(),
                rate_text(figure.value, figure.unit).c_str(), rate_text(figure.min, figure.unit).c_str(),
                rate_text(figure.max, figure.unit).c_str());
  print(str(text.data(), "  ", figure.shape, "\n"));
}

/// Finds out before minutes are spent on what could not be kept.
void require_writable(const std::string& to) {
  std::error_code error;
  if (fs::exists(to, error) && fs::file_size(to, error) != 0 && !is_machine_file(to)) {
    throw UserError(str("--to ", to, ": is there already, and is no file of an earlier bench; name a new one"));
  }
  AtomicFile file(to);  // and away again
}

MeasuredMachine machine_of(const Launch& launch, at::Device device, const std::string& version) {
  MeasuredMachine machine;
  machine.date = utc_now();
  machine.host = host_name();
  machine.ranks = launch.world_size();
  machine.ranks_per_host = launch.local_size();
  machine.device.kind = device.is_cuda() ? "cuda" : "cpu";
  machine.device.name = device_name(device);
  machine.device.count = device.is_cuda() ? launch.world_size() : 1;
  machine.device.memory_bytes = device_memory_bytes(device.type());
  machine.threads = at::get_num_threads();
  const Versions built = versions();
  machine.versions = {version, built.torch, built.cuda, built.driver, built.nccl, built.mpi};
  return machine;
}

}  // namespace

int bench(const BenchOptions& options, Launch& launch) {
  const bool speaks = launch.rank() == 0;
  if (speaks) require_writable(options.to);
  Recipe recipe;  // for its device alone
  const std::vector<std::string> words = choice_words(DeviceChoice::kAuto);
  const auto word = std::find(words.begin(), words.end(), options.device);
  MT_CHECK(word != words.end(), "no device is called ", options.device);
  recipe.run.device = static_cast<DeviceChoice>(word - words.begin());
  set_up_process(recipe, launch);
  MeasuredMachine machine = machine_of(launch, launch.device(), options.version);
  if (speaks) {
    print(str(machine.device.name, ", ", machine.ranks, machine.ranks == 1 ? " rank" : " ranks at once", ", ",
              machine.threads, machine.threads == 1 ? " thread" : " threads", " each, LibTorch ",
              machine.versions.torch, "\n"));
  }
  Meter meter(launch, launch.device(), {.quick = options.quick}, [&](const Figure& figure) {
    if (speaks) print_figure(figure);
  });
  measure_copies(meter);
  measure_products(meter);
  measure_grouped_products(meter);
  measure_attention(meter);
  measure_dequantising(meter);
  measure_small_blocks(meter);
  measure_traffic(meter);
  measure_optimizer(meter);
  if (!speaks) return 0;
  machine.figures = meter.figures();
  write_text_atomically(options.to, to_json(machine));
  print(str(options.to, ": written\n"));
  return 0;
}

}  // namespace moetune
