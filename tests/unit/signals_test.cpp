// Signals that a run obeys.
#include "trainer/run/signals.h"

#include <csignal>

#include "tests/support/catch.h"

using namespace moetune;

TEST_CASE("a request to save ends no run, whenever it comes", "[signals]") {
  ignore_save_requests();
  std::raise(SIGUSR1);  // while weights are read
  {
    SignalWatch watch;
    CHECK_FALSE(watch.take_save_request());
    std::raise(SIGUSR1);
    CHECK(watch.take_save_request());
    CHECK_FALSE(watch.take_save_request());
    CHECK(watch.stop_signal() == 0);
    std::raise(SIGTERM);
    CHECK(watch.stop_signal() == SIGTERM);
  }
  std::raise(SIGUSR1);  // while the receipt is written
  std::signal(SIGUSR1, SIG_DFL);
}
