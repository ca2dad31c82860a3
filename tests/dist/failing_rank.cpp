// A job that fails or stalls as told, for failure_test.py: failing_rank DEVICE WHO KIND, WHO being a rank, `all` or
// `none`. Ranks that do not fail wait for the others in a collective, as they would in training.
#include <ATen/ATen.h>

#include <chrono>
#include <csignal>
#include <iostream>
#include <new>
#include <stdexcept>
#include <thread>

#include "parallel/base/error.h"
#include "parallel/comm/communicator.h"
#include "parallel/comm/launch.h"

using namespace moetune;

namespace {

constexpr std::chrono::seconds kStallTimeout(3);

void fail(const std::string& kind) {
  if (kind == "user") throw UserError("the recipe is wrong");
  if (kind == "fit") throw DoesNotFitError("the model does not fit");
  if (kind == "nonfinite") throw NonFiniteError("the loss is nan");
  if (kind == "lost") throw RankLostError("a rank was lost");
  if (kind == "torch_memory") TORCH_CHECK_WITH(OutOfMemoryError, false, "the GPU is out of memory");
  if (kind == "host_memory") throw std::bad_alloc();
  if (kind == "host_memory_torch") at::empty({int64_t{1} << 56}, at::kByte);
  if (kind == "torch") TORCH_CHECK(false, "a check of torch failed");
  if (kind == "standard") throw std::runtime_error("something broke");
  if (kind == "unknown") throw 7;
  throw UserError("unknown kind " + kind);
}

/// Stands still, as told, for ever or for longer than the watchdog would let a rank stand still.
void stall(const std::string& kind) {
  const auto start = std::chrono::steady_clock::now();
  const auto elapsed = [&] { return std::chrono::steady_clock::now() - start; };
  if (kind == "stop") {
    std::this_thread::sleep_for(std::chrono::seconds(1));  // so that the others were told of the step and its group
    raise(SIGSTOP);
  }
  while (kind == "sleep" || (kind == "nap" && elapsed() < 2 * kStallTimeout)) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  for (volatile int64_t turns = 0; kind == "loop";) turns = turns + 1;
  // Slow but healthy: one operator after the other.
  at::Tensor x = at::ones({64, 64});
  while (kind == "slow" && elapsed() < 3 * kStallTimeout) {
    for (int i = 0; i < 50; ++i) x = x.mm(x).clamp(-1, 1);
    std::this_thread::sleep_for(kStallTimeout / 8);
  }
}

}  // namespace

int main(int argc, char** argv) {
  Launch launch;
  return run_guarded(launch, [&] {
    if (argc != 4) throw UserError("usage: failing_rank cpu|cuda WHO KIND");
    const std::string who = argv[2];
    const std::string kind = argv[3];
    launch.use_device(argv[1]);
    launch.watch(static_cast<double>(kStallTimeout.count()));
    // The group is destroyed while the exception passes: that must not wait for the other ranks.
    const auto world = launch.make_group(0, launch.rank(), "world");
    // In a step, but for those that take a nap: they wait for a disk, say, which is no stall.
    const RankProgress::Place place(&launch.progress(), "step 3",
                                    kind == "nap" ? RankProgress::Pace::kPatient : RankProgress::Pace::kWatched);
    if (who == std::to_string(launch.rank()) &&
        (kind == "stop" || kind == "sleep" || kind == "nap" || kind == "loop" || kind == "slow")) {
      stall(kind);
    } else if (who == "all" || who == std::to_string(launch.rank())) fail(kind);
    // A lost rank is noticed by another rank at once, and must not speak before the rank that has the cause.
    if (kind == "user_then_lost" && launch.rank() == 0) throw RankLostError("rank 1 does not answer");
    if (kind == "user_then_lost" && launch.rank() == 1) throw UserError("the recipe is wrong");
    const at::Tensor num_ranks = at::ones({1}, at::TensorOptions().device(launch.device()));
    world->all_reduce_sum(num_ranks);
    MT_CHECK(num_ranks.item<float>() == static_cast<float>(launch.world_size()), "ranks counted: ", num_ranks);
    std::cout << "rank " << launch.rank() << " is done\n";
    return 0;
  });
}
