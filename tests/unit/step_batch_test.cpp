// A rank's part of a step as the sweep takes it, on a case worked out by hand.
#include "tests/support/catch.h"

#include "tests/support/tiny_model.h"

using namespace moetune;

namespace {

/// Documents (10 11 12 13), (14), (15 16) of the global tokens 100.., the label of 12 masked.
RankBatch three_documents() {
  RankBatch local;
  local.tokens = {10, 11, 12, 13, 14, 15, 16};
  local.targets = {11, kNotTrained, 13, kNotTrained, kNotTrained, 16, kNotTrained};
  local.positions = {0, 1, 2, 3, 0, 0, 1};
  local.global_tokens = {100, 101, 102, 103, 200, 300, 301};
  local.document_begins = {0, 4, 5, 7};
  local.global.documents = 5;
  local.global.targets = 9;
  local.global.mtp_targets = 4;
  return local;
}

bool holds(const at::Tensor& tensor, const std::vector<int64_t>& values) { return at::equal(tensor, long_tensor(values)); }

}  // namespace

TEST_CASE("targets are the rows that have one; the MTP stream is one row shorter a document", "[step_batch]") {
  const TinyModel plain(tiny_config(2), {}), with_mtp(tiny_config(2), {.with_mtp = true});
  const StepBatch batch = make_step_batch(three_documents(), *with_mtp.model, 1000, at::kCPU, at::kFloat);
  CHECK(holds(batch.input_T, {10, 11, 12, 13, 14, 15, 16}));
  CHECK(batch.main.num_rows == 7);
  CHECK(holds(batch.main.target_row, {0, 2, 5}));
  CHECK(holds(batch.main.target, {11, 13, 16}));
  CHECK(batch.main.global_targets == 9);
  CHECK(holds(batch.main.token_T, {100, 101, 102, 103, 200, 300, 301}));

  // Rows 10 11 12 | 15 with the tokens after them; 10 -> 12 is masked, 11 -> 13 is learnt.
  CHECK(batch.mtp.num_rows == 4);
  CHECK(holds(batch.mtp_row, {0, 1, 2, 5}));
  CHECK(holds(batch.mtp_next_token, {11, 12, 13, 16}));
  CHECK(holds(batch.mtp.target_row, {1}));
  CHECK(holds(batch.mtp.target, {13}));
  CHECK(batch.mtp.global_targets == 4);
  CHECK(holds(batch.mtp.token_T, {100, 101, 102, 300}));
  REQUIRE(batch.mtp.slices.size() == 1);
  CHECK(holds(batch.mtp.slices[0].position_T, {0, 1, 2, 0}));
  CHECK(holds(batch.mtp.slices[0].document_length, {3, 1}));

  CHECK(make_step_batch(three_documents(), *plain.model, 1000, at::kCPU, at::kFloat).mtp.num_rows == 0);
}

TEST_CASE("a rank without documents has one empty slice", "[step_batch]") {
  const TinyModel tiny(tiny_config(2), {});
  RankBatch nothing;
  nothing.document_begins = {0};
  const StepBatch batch = make_step_batch(nothing, *tiny.model, 8, at::kCPU, at::kFloat);
  REQUIRE(batch.main.slices.size() == 1);
  CHECK(batch.main.slices[0].num_rows == 0);
  CHECK(batch.main.target_row.numel() == 0);
}
