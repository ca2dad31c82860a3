#include "parallel/watch/start_guard.h"

#include <cstdlib>

#include "parallel/base/error.h"
#include "tests/support/catch.h"
#include "tests/support/message_of.h"

using namespace moetune;

TEST_CASE("a start that does not end names the rank that is missing", "[start_guard]") {
  struct Row {
    LaunchedAs own;
    std::vector<HostRank> seen;
    bool blames;
    std::vector<std::string> says;
  };
  const Row rows[] = {
      {{0, 3, 3},
       {{1, 12, 'T'}, {0, 11, 'S'}, {2, 13, 'R'}},
       true,
       {"rank 1 of 3 (host h, process 12) is stopped", "rank 0 waits for it in MPI's start for 60 s"}},
      {{1, 3, 3},
       {{2, 13, 't'}, {0, 11, 'Z'}, {1, 12, 'S'}},
       true,
       {"rank 0 of 3 (host h, process 11) has ended; rank 2 of 3 (host h, process 13) is stopped by a debugger"}},
      {{0, 4, 4}, {{0, 11, 'S'}, {3, 13, 'R'}}, true, {"ranks 1 and 2 of 4 of host h have no process"}},
      // Other hosts' ranks have numbers that this one does not know.
      {{0, 4, 3}, {{0, 11, 'S'}, {1, 12, 'S'}}, true, {"1 of the 3 ranks of host h has no process"}},
      {{0, 4, 2},
       {{0, 11, 'S'}, {1, 12, 'D'}},
       false,
       {"do not come together; on host h rank 0 (process 11) sleeps, rank 1 (process 12) waits for a disk",
        "look at the other hosts"}},
      // A /proc that hides others hides no rank.
      {{0, 2, 2}, {{0, 11, 'S'}}, false, {"do not come together; look at"}},
      {{0, 2, 2}, {}, false, {"do not come together; look at"}},
      // srun tells no number of local ranks.
      {{1, 0, 0}, {{0, 10, 'T'}, {1, 11, 'S'}}, true, {"rank 0 (host h, process 10) is stopped"}},
  };
  for (const Row& row : rows) {
    const StartVerdict verdict = start_verdict(row.own, row.seen, "h", 60.4, "MPI's start");
    INFO(verdict.message);
    CHECK(verdict.blames == row.blames);
    for (const std::string& part : row.says) CHECK(contains(verdict.message, part));
    CHECK(contains(verdict.message, "MOETUNE_START_TIMEOUT_S"));
  }
}

TEST_CASE("the limit of a start comes from the environment", "[start_guard]") {
  const auto limit = [](const char* text) {
    ::setenv("MOETUNE_START_TIMEOUT_S", text, 1);
    return start_limit_from_environment();
  };
  CHECK(limit("2.5") == 2.5);
  CHECK(limit("0") == 0.0);
  CHECK(limit("") == 60.0);
  for (const char* wrong : {"-1", "soon", "1e9", "nan", "5s", " 5"}) {
    INFO(wrong);
    CHECK(contains(message_of<UserError>([&] { limit(wrong); }), "MOETUNE_START_TIMEOUT_S"));
  }
  ::unsetenv("MOETUNE_START_TIMEOUT_S");
  CHECK(start_limit_from_environment() == 60.0);
}
