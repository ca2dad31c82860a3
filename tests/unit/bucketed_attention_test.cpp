// Documents of similar length in dense batches; what they compute, packed_attention_test.cpp says.
#include "moe/attention/bucketed_attention.h"

#include "tests/support/catch.h"
#include "tests/support/numbers.h"

using namespace moetune;

TEST_CASE("every row has one place in a bucket, every other place is padding", "[bucketed_attention]") {
  const AttentionBuckets plan({5, 3, 9, 1, 130, 20, 128, 8}, at::kCPU);
  constexpr int64_t kRows = 304;
  CHECK(!plan.in_order);
  int64_t places = 0;
  for (const AttentionBucket& bucket : plan.buckets) places += bucket.batch * bucket.length;
  CHECK(plan.gather_M.numel() == places);
  CHECK(at::equal(plan.gather_M.index_select(0, plan.inverse_U), at::arange(kRows, at::kLong)));
  at::Tensor visits = at::zeros({places}, at::kLong);
  visits.index_add_(0, plan.inverse_U, at::ones({kRows}, at::kLong));
  visits.index_add_(0, plan.padding_places, at::ones({plan.padding_places.numel()}, at::kLong));
  CHECK(visits.eq(1).all().item<bool>());
  // Documents of one length need no gathering.
  CHECK(AttentionBuckets({6, 6, 6}, at::kCPU).in_order);
}
