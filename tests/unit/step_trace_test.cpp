// Which steps a trace has in it, and which files are traces.
#include "trainer/run/step_trace.h"
#include "tests/support/catch.h"

using namespace moetune;

namespace {

void check(int64_t count, int64_t begin, int64_t end, int64_t first, int64_t last) {
  INFO(count << " steps of a run from " << begin << " to " << end);
  const TracedSteps steps = traced_steps(count, begin, end);
  CHECK(steps.first == first);
  CHECK(steps.end == last);
}

}  // namespace

TEST_CASE("a trace begins with the third step of a run, or with the first where there are too few", "[step_trace]") {
  check(2, 0, 100, 2, 4);
  check(2, 0, 4, 2, 4);
  check(2, 0, 3, 0, 2);
  check(4, 0, 2, 0, 2);
  check(1, 6, 9, 8, 9);  // a resumed run's third
  check(3, 6, 9, 6, 9);
  check(1, 5, 5, 5, 5);  // nothing is left to do
}

TEST_CASE("traces are known by their names", "[step_trace]") {
  CHECK(trace_name(12) == "rank-12.json");
  CHECK(is_trace_name("rank-0.json"));
  CHECK(is_trace_name(trace_name(511)));
  for (const char* name : {"rank-.json", "rank-1", "rank-1.json.tmp-3", "rank-a.json", "my-rank-1.json", ""}) {
    INFO(name);
    CHECK_FALSE(is_trace_name(name));
  }
}
