// A job that fails as told, for failure_test.py: failing_rank DEVICE WHO KIND, WHO being a rank, `all` or `none`. Ranks that
// do not fail wait for the others in a collective, as they would in training.
#include <ATen/ATen.h>

#include <iostream>
#include <new>
#include <stdexcept>

#include "parallel/base/error.h"
#include "parallel/communicator.h"
#include "parallel/launch.h"

using namespace moetune;

namespace {

void fail(const std::string& kind) {
  if (kind == "user") throw UserError("the recipe is wrong");
  if (kind == "fit") throw DoesNotFitError("the model does not fit");
  if (kind == "nonfinite") throw NonFiniteError("the loss is nan");
  if (kind == "lost") throw RankLostError("a rank was lost");
  if (kind == "torch_memory") TORCH_CHECK_WITH(OutOfMemoryError, false, "the GPU is out of memory");
  if (kind == "host_memory") throw std::bad_alloc();
  if (kind == "torch") TORCH_CHECK(false, "a check of torch failed");
  if (kind == "standard") throw std::runtime_error("something broke");
  if (kind == "unknown") throw 7;
  throw UserError("unknown kind " + kind);
}

}  // namespace

int main(int argc, char** argv) {
  Launch launch;
  return run_guarded(launch, [&] {
    if (argc != 4) throw UserError("usage: failing_rank cpu|cuda WHO KIND");
    const std::string who = argv[2];
    const std::string kind = argv[3];
    launch.use_device(argv[1]);
    // The group is destroyed while the exception passes: that must not wait for the other ranks.
    const auto world = launch.make_group(0, launch.rank(), "world");
    if (who == "all" || who == std::to_string(launch.rank())) fail(kind);
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
