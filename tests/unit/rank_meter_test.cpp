// What ranks stood waiting for, of one rank beside the most of any.
#include "trainer/run/rank_meter.h"

#include <ATen/ATen.h>

#include "tests/support/catch.h"

using namespace moetune;

namespace {

/// The table as a maximum over the ranks makes it.
at::Tensor table_of(const std::vector<RankFigures>& ranks) {
  at::Tensor table;
  for (size_t rank = 0; rank < ranks.size(); ++rank) {
    const at::Tensor own = ranks[rank].row_among(static_cast<int64_t>(rank), static_cast<int64_t>(ranks.size()));
    table = table.defined() ? at::maximum(table, own) : own;
  }
  return table;
}

}  // namespace

TEST_CASE("where one rank is slow its waits and its computing make up the step", "[rank_meter]") {
  // Steps of a second, a third rank that computes for 0.9 of it: the first waits for its own optimizer, the second for
  // the first, both for the third.
  RankFigures first, second, third;
  first.optimizer_wait_s = 0.3;
  first.exchange_s = 0.1;
  second.exchange_s = 0.45;
  second.weights_wait_s = 0.05;
  third.stage_wait_s = 0.06;
  third.exchange_s = 0.04;
  first.memory_bytes = int64_t{1} << 40;
  third.memory_bytes = 7;
  const at::Tensor table = table_of({first, second, third});
  const RankFigures most = RankFigures::most(table), one = RankFigures::of_least_waiting(table);
  CHECK(most.exchange_s == Approx(0.45));
  CHECK(most.optimizer_wait_s == Approx(0.3));
  CHECK(most.weights_wait_s == Approx(0.05));
  CHECK(most.stage_wait_s == Approx(0.06));
  CHECK(most.memory_bytes == int64_t{1} << 40);
  // Of no rank: together they leave 0.14 of the second, though one computed for 0.9.
  CHECK(most.waits_s() == Approx(0.86));
  CHECK(one.waits_s() == Approx(0.1));
  CHECK(one.stage_wait_s == Approx(0.06));
  CHECK(one.exchange_s == Approx(0.04));
  CHECK(one.optimizer_wait_s == 0.0);
  CHECK(one.memory_bytes == 7);
}

TEST_CASE("the figures of one rank go through the table as they are", "[rank_meter]") {
  const RankFigures own{1, 2, 3, 4, 5, 6, 0.25, 0.5, 0.75, 1.25, 1.5};
  const at::Tensor table = table_of({own});
  for (const RankFigures& back : {RankFigures::most(table), RankFigures::of_least_waiting(table)}) {
    CHECK(back.memory_bytes == 1);
    CHECK(back.weights_copied_bytes == 2);
    CHECK(back.weights_gathered_bytes == 3);
    CHECK(back.exchange_sent_bytes == 4);
    CHECK(back.tensor_axis_sent_bytes == 5);
    CHECK(back.stage_sent_bytes == 6);
    CHECK(back.weights_wait_s == 0.25);
    CHECK(back.exchange_s == 0.5);
    CHECK(back.tensor_axis_s == 0.75);
    CHECK(back.stage_wait_s == 1.25);
    CHECK(back.optimizer_wait_s == 1.5);
    CHECK(back.waits_s() == 4.25);
  }
}
