// Rows of tokens by expert and back, against loops over rows.
#include "moe/row_gather.h"

#include "tests/support/catch.h"
#include "tests/support/numbers.h"

using namespace moetune;

namespace {

constexpr int64_t Y = 4, K = 3, D = 5;
// Slots of [Y, K] by expert; slots 4 and 9 .. 11 have no row, so token 3 has none at all.
const std::vector<int64_t> kSlots{7, 0, 3, 8, 1, 5, 2, 6};

}  // namespace

TEST_CASE("each slot knows its place among the routed rows", "[row_gather]") {
  const at::Tensor place_YK = places_of(long_tensor(kSlots), Y, K);
  CHECK(place_YK.scalar_type() == at::kInt);
  CHECK(place_YK.sizes() == at::IntArrayRef({Y, K}));
  const std::vector<int64_t> expected{1, 4, 6, 2, -1, 5, 7, 0, 3, -1, -1, -1};
  CHECK(at::equal(place_YK.flatten().to(at::kLong), long_tensor(expected)));
  CHECK(places_of(long_tensor({}), Y, K).eq(-1).all().item<bool>());
  CHECK(places_of(long_tensor({}), 0, K).numel() == 0);
}

TEST_CASE("rows are copied to their places and summed back run by run", "[row_gather]") {
  const at::Tensor slot_X = long_tensor(kSlots), row_X = slot_X.floor_divide(K), place_YK = places_of(slot_X, Y, K);
  const int64_t X = slot_X.size(0);
  const at::Tensor y_YD = random_normal({Y, D}, 1), rows_XD = random_normal({X, D}, 3);
  const at::Tensor plain_XD = gather_rows(y_YD, row_X), wide_X = gather_rows(y_YD, row_X, D + 2);
  CHECK(wide_X.sizes() == at::IntArrayRef({X, D + 2}));
  CHECK(at::equal(wide_X.narrow(1, 0, D), plain_XD));
  at::Tensor sum_YD = random_normal({Y, D}, 4);
  at::Tensor expected_YD = sum_YD.clone();
  for (int64_t x = 0; x < X; ++x) {
    const int64_t y = kSlots[x] / K;
    CHECK(at::equal(plain_XD[x], y_YD[y]));
    expected_YD[y] += rows_XD[x];
  }
  int64_t first = 0;
  for (const int64_t count : {3, 0, 1, 4}) {
    gather_sum(rows_XD.narrow(0, first, count), {row_X.narrow(0, first, count), place_YK, first}, sum_YD);
    first += count;
  }
  CHECK(first == X);
  CHECK(distance(sum_YD, expected_YD) < 1e-15);
}
