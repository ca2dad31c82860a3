// Runs the distributed tests on every rank: mpirun -np N dist_tests --ranks N --device cpu|cuda [Catch2's arguments].
// --ranks must be the size of the job: a missing rank is a failure, not a smaller test.
#define CATCH_CONFIG_RUNNER
#include "tests/support/catch.h"

#include <chrono>
#include <cstdlib>
#include <iostream>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "parallel/base/error.h"
#include "tests/support/dist.h"

namespace moetune {
namespace {

Launch* the_launch = nullptr;

struct Arguments {
  std::string device;
  int ranks = 0;
  std::vector<char*> catch_arguments;
};

Arguments parse(int argc, char** argv) {
  Arguments arguments;
  arguments.catch_arguments.push_back(argv[0]);
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--device" && i + 1 < argc) {
      arguments.device = argv[++i];
    } else if (argument == "--ranks" && i + 1 < argc) {
      arguments.ranks = std::atoi(argv[++i]);
    } else {
      arguments.catch_arguments.push_back(argv[i]);
    }
  }
  if ((arguments.device != "cpu" && arguments.device != "cuda") || arguments.ranks < 1) {
    throw UserError("usage: mpirun -np N dist_tests --ranks N --device cpu|cuda [Catch2's arguments]");
  }
  return arguments;
}

/// Runs the tests up to the first failure. Rank 0 writes as it goes; what others have to say matters where they fail.
int run_tests(Launch& launch, Arguments arguments) {
  std::ostringstream report;
  std::streambuf* terminal = std::cout.rdbuf();
  if (launch.rank() != 0) std::cout.rdbuf(report.rdbuf());
  Catch::Session session;
  int failed =
      session.applyCommandLine(static_cast<int>(arguments.catch_arguments.size()), arguments.catch_arguments.data());
  session.configData().abortAfter = 1;
  if (failed == 0) failed = session.run();
  std::cout.rdbuf(terminal);
  if (failed != 0) {
    // What fails on all ranks alike is told by rank 0 alone: it ends the job before the others speak.
    if (launch.rank() != 0) {
      std::this_thread::sleep_for(std::chrono::seconds(1));
      std::cout << "rank " << launch.rank() << " of " << launch.world_size() << ":\n" << report.str() << std::flush;
    }
    launch.abort(1);
  }
  return static_cast<int>(launch.max_over_world(failed));
}

}  // namespace

Launch& test_launch() { return *the_launch; }

}  // namespace moetune

int main(int argc, char** argv) {
  using namespace moetune;
  Launch launch;
  the_launch = &launch;
  return run_guarded(launch, [&] {
    const Arguments arguments = parse(argc, argv);
    if (launch.world_size() != arguments.ranks) {
      throw UserError(str("dist_tests --ranks ", arguments.ranks, ": the job has ", launch.world_size(),
                          "; start it with mpirun -np ", arguments.ranks));
    }
    launch.use_device(arguments.device);
    return run_tests(launch, arguments);
  });
}
