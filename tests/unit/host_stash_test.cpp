// What is stashed in host memory comes back, whatever became of a pass before.
#include "parallel/bytes/host_stash.h"

#include "tests/support/catch.h"
#include "tests/support/numbers.h"

using namespace moetune;

TEST_CASE("a stashed tensor comes back, once, and of several the last one", "[host_stash]") {
  HostStash stash(at::kCPU);
  const at::Tensor first = random_normal({5, 3}, 1), second = random_normal({2, 4}, 2);
  stash.put(7, first.clone());
  CHECK(at::equal(stash.take(7), first));
  stash.put(7, first.clone());
  stash.put(8, second.clone());
  stash.fetch(8);
  CHECK(at::equal(stash.take(8), second));
  CHECK(at::equal(stash.take(7), first));
  // A pass that failed had fetched it.
  stash.put(7, first.clone());
  stash.fetch(7);
  stash.put(7, second.clone());
  stash.fetch(7);
  CHECK(at::equal(stash.take(7), second));
}
