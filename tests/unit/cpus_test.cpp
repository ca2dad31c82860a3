#include "parallel/base/cpus.h"

#include <sched.h>

#include "tests/support/catch.h"

using namespace moetune;

namespace {

CpuSet cpus(size_t first, size_t count) {
  CpuSet set;
  for (size_t cpu = first; cpu < first + count; ++cpu) set[cpu] = true;
  return set;
}

}  // namespace

TEST_CASE("ranks share the CPUs that they may all use, and keep those of their own") {
  // mpirun --bind-to none: both may use all 96.
  CHECK(cpu_share({cpus(0, 96), cpus(0, 96)}, 1, 0.0) == Approx(48));
  // --map-by ppr:2:node:PE=12 --bind-to core: 12 each.
  CHECK(cpu_share({cpus(0, 12), cpus(12, 12)}, 1, 0.0) == Approx(12));
  // --bind-to socket: two ranks on a socket of 40, one on the other.
  CHECK(cpu_share({cpus(0, 40), cpus(0, 40), cpus(40, 40)}, 0, 0.0) == Approx(20));
  CHECK(cpu_share({cpus(0, 40), cpus(0, 40), cpus(40, 40)}, 2, 0.0) == Approx(40));
  // More ranks than CPUs.
  CHECK(cpu_share({cpus(0, 2), cpus(0, 2), cpus(0, 2), cpus(0, 2)}, 3, 0.0) == Approx(1));
}

TEST_CASE("a control group's limit is shared by the ranks") {
  CHECK(cpu_share({cpus(0, 96), cpus(0, 96)}, 0, 16.0) == Approx(8));
  CHECK(cpu_share({cpus(0, 4), cpus(4, 4)}, 0, 16.0) == Approx(4));
  CHECK(cpu_share({cpus(0, 96)}, 0, 0.5) == Approx(1));
}

TEST_CASE("the process's own CPUs are those that the kernel lets it run on") {
  cpu_set_t before;
  REQUIRE(sched_getaffinity(0, sizeof before, &before) == 0);
  CHECK(allowed_cpus().count() == static_cast<size_t>(CPU_COUNT(&before)));
  size_t last = 0;
  for (size_t cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &before)) last = cpu;
  }
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(last, &one);
  REQUIRE(sched_setaffinity(0, sizeof one, &one) == 0);
  CHECK(allowed_cpus() == cpus(last, 1));
  sched_setaffinity(0, sizeof before, &before);
}
