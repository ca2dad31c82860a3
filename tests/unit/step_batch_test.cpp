// A rank's part of a step as the sweep takes it, on a case worked out by hand.
#include "tests/support/catch.h"

#include "tests/support/stand_in_group.h"
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

bool holds(const at::Tensor& tensor, const std::vector<int64_t>& values) {
  return at::equal(tensor, long_tensor(values));
}

}  // namespace

TEST_CASE("targets are the rows that have one; the MTP stream is one row shorter a document", "[step_batch]") {
  const TinyModel plain(tiny_blueprint(2), {}), with_mtp(tiny_blueprint(2), {.with_mtp = true});
  const StepBatch batch = make_step_batch(three_documents(), *with_mtp.model, 1000, at::kCPU, at::kFloat);
  CHECK(holds(batch.input_U, {10, 11, 12, 13, 14, 15, 16}));
  CHECK(batch.main.num_rows == 7);
  CHECK(holds(batch.main.target_row, {0, 2, 5}));
  CHECK(holds(batch.main.target, {11, 13, 16}));
  CHECK(batch.main.divisor == 9);
  CHECK(holds(batch.main.token_T, {100, 101, 102, 103, 200, 300, 301}));

  // Rows 10 11 12 | 15 with the tokens after them; 10 -> 12 is masked, 11 -> 13 is learnt.
  CHECK(batch.mtp.num_rows == 4);
  CHECK(holds(batch.mtp_row, {0, 1, 2, 5}));
  CHECK(holds(batch.mtp_next_token, {11, 12, 13, 16}));
  CHECK(holds(batch.mtp.target_row, {1}));
  CHECK(holds(batch.mtp.target, {13}));
  CHECK(batch.mtp.divisor == 4);
  CHECK(holds(batch.mtp.token_T, {100, 101, 102, 300}));
  REQUIRE(batch.mtp.slices.size() == 1);
  CHECK(holds(batch.mtp.slices[0].position_U, {0, 1, 2, 0}));
  CHECK(holds(batch.mtp.slices[0].document_length, {3, 1}));

  CHECK(make_step_batch(three_documents(), *plain.model, 1000, at::kCPU, at::kFloat).mtp.num_rows == 0);
}

TEST_CASE("weights go with their targets, in both streams", "[step_batch]") {
  const TinyModel tiny(tiny_blueprint(2), {.with_mtp = true});
  RankBatch local = three_documents();
  local.target_weights = {0.5F, 9.0F, 2.0F, 0.0F, 0.0F, 0.25F, 0.0F};
  local.global.target_weight = 6.5;
  local.global.mtp_target_weight = 3.5;
  const StepBatch batch = make_step_batch(local, *tiny.model, 1000, at::kCPU, at::kFloat);
  CHECK(holds(batch.main.target, {11, 13, 16}));
  CHECK(at::equal(batch.main.target_weight, at::tensor({0.5F, 2.0F, 0.25F})));
  CHECK(batch.main.divisor == 6.5);
  CHECK(holds(batch.mtp.target, {13}));
  CHECK(at::equal(batch.mtp.target_weight, at::tensor({2.0F})));
  CHECK(batch.mtp.divisor == 3.5);
  CHECK(!make_step_batch(three_documents(), *tiny.model, 1000, at::kCPU, at::kFloat).main.target_weight.defined());
}

TEST_CASE("the ranks of a tensor axis agree where each row of the documents is", "[step_batch]") {
  for (int rank = 0; rank < 2; ++rank) {
    INFO("rank " << rank);
    StandInGroup group(rank, 2);
    const TinyModel tiny(tiny_blueprint(2), {.base = BaseFormat::kFp32, .with_mtp = true, .axis = TensorAxis(group)});
    const StepBatch batch = make_step_batch(three_documents(), *tiny.model, 4, at::kCPU, at::kFloat);
    // Slices 10 11 12 13 and 14 15 16 with one row of padding; rank 0 holds 10 11 14 15, rank 1 12 13 16 and the
    // padding.
    CHECK(batch.main.num_rows == 7);
    CHECK(batch.main.num_gathered_rows == 8);
    CHECK(holds(batch.main.place, {0, 1, 4, 5, 2, 3, 6}));
    CHECK(holds(batch.input_U, {10, 11, 14, 15, 12, 13, 16, -1}));
    CHECK(holds(batch.main.target_row, {0, 4, 3}));
    CHECK(holds(batch.main.target, {11, 13, 16}));
    CHECK(holds(batch.main.token_T,
                rank == 0 ? std::vector<int64_t>{100, 101, 200, 300} : std::vector<int64_t>{102, 103, 301, 0}));
    CHECK(batch.main.angles[1].cos_TA.size(0) == 3);
    // Rows 10 11 | 12 15 of the MTP stream.
    CHECK(batch.mtp.num_gathered_rows == 4);
    CHECK(holds(batch.mtp_row, rank == 0 ? std::vector<int64_t>{0, 1} : std::vector<int64_t>{4, 3}));
    CHECK(holds(batch.mtp_next_token, {11, 12, 13, 16}));
    CHECK(holds(batch.mtp.target_row, {1}));
  }
}

TEST_CASE("a rank without documents has one empty slice", "[step_batch]") {
  const TinyModel tiny(tiny_blueprint(2), {});
  RankBatch nothing;
  nothing.document_begins = {0};
  const StepBatch batch = make_step_batch(nothing, *tiny.model, 8, at::kCPU, at::kFloat);
  REQUIRE(batch.main.slices.size() == 1);
  CHECK(batch.main.slices[0].num_rows == 0);
  CHECK(batch.main.target_row.numel() == 0);
}
