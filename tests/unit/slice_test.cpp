// Slices of packed documents.
#include "tests/support/catch.h"

#include <numeric>

#include "moe/attention/slice.h"
#include "tests/support/numbers.h"
#include "tests/support/stand_in_group.h"

using namespace moetune;

namespace {

std::vector<Slice> slices_of(const std::vector<int64_t>& lengths, int64_t slice_tokens) {
  std::vector<int64_t> positions, tokens;
  for (const int64_t length : lengths) {
    for (int64_t t = 0; t < length; ++t) {
      positions.push_back(t);
      tokens.push_back(1000 + static_cast<int64_t>(tokens.size()));
    }
  }
  return make_slices(lengths, positions, tokens, slice_tokens, at::kCPU);
}

}  // namespace

TEST_CASE("slices hold whole documents in order", "[slice]") {
  const std::vector<int64_t> lengths{5, 3, 9, 1, 1, 20, 2};
  const std::vector<Slice> slices = slices_of(lengths, 8);
  std::vector<int64_t> documents;
  int64_t row = 0;
  for (const Slice& slice : slices) {
    CHECK(slice.first_row == row);
    CHECK(slice.token_T[0].item<int64_t>() == 1000 + row);
    CHECK(slice.document_length.sum().item<int64_t>() == slice.num_rows);
    CHECK(slice.num_all_rows == slice.num_rows);
    CHECK(slice.num_padding == 0);
    CHECK(slice.document_T.max().item<int64_t>() == slice.num_documents - 1);
    for (int64_t i = 0; i < slice.num_documents; ++i) documents.push_back(slice.document_length[i].item<int64_t>());
    row += slice.num_rows;
  }
  CHECK(documents == lengths);
  CHECK(slices[2].lengths == std::vector<int64_t>{1, 1});
  CHECK(slices.size() == 5);  // 5+3, 9, 1+1, 20, 2
  const std::vector<Slice> none = slices_of({}, 8);
  REQUIRE(none.size() == 1);
  CHECK(none[0].num_rows == 0);
}

TEST_CASE("each rank of a tensor axis has an equal run of every slice, padded behind the last row", "[slice]") {
  const std::vector<int64_t> lengths{5, 3, 7, 3};  // in slices of 8 rows and of 10
  const std::vector<int64_t> positions{0, 1, 2, 3, 4, 0, 1, 2, 0, 1, 2, 3, 4, 5, 6, 0, 1, 2};
  std::vector<int64_t> tokens(18);
  std::iota(tokens.begin(), tokens.end(), 100);
  struct Rows {
    std::vector<int64_t> token_first, document_first, token_second, document_second;
  };
  const std::vector<Rows> expected = {{{100, 101}, {0, 0}, {108, 109, 110}, {0, 0, 0}},
                                      {{102, 103}, {0, 0}, {111, 112, 113}, {0, 0, 0}},
                                      {{104, 105}, {0, 1}, {114, 115, 116}, {0, 1, 1}},
                                      {{106, 107}, {1, 1}, {117, 0, 0}, {1, 2, 2}}};
  for (int rank = 0; rank < 4; ++rank) {
    INFO("rank " << rank);
    StandInGroup group(rank, 4);
    const TensorAxis axis(group);
    const std::vector<Slice> slices = make_slices(lengths, positions, tokens, 10, at::kCPU, axis);
    REQUIRE(slices.size() == 2);
    CHECK(at::equal(slices[0].token_T, long_tensor(expected[rank].token_first)));
    CHECK(at::equal(slices[0].document_T, long_tensor(expected[rank].document_first)));
    CHECK(at::equal(slices[1].token_T, long_tensor(expected[rank].token_second)));
    CHECK(at::equal(slices[1].document_T, long_tensor(expected[rank].document_second)));
    CHECK(slices[0].num_rows == 2);
    CHECK(slices[1].num_rows == 3);
    CHECK(slices[1].first_row == 2);
    CHECK(slices[0].num_padding == 0);
    CHECK(slices[1].num_padding == (rank == 3 ? 2 : 0));
    CHECK(slices[1].num_all_rows == 10);
    CHECK(at::equal(slices[1].position_U, long_tensor({0, 1, 2, 3, 4, 5, 6, 0, 1, 2})));
    CHECK(slices[1].token_U[9].item<int64_t>() == 117);
    // Five rows a rank: its two of the first slice, its three of the second.
    CHECK(gathered_places(slices) ==
          std::vector<int64_t>{0, 1, 5, 6, 10, 11, 15, 16, 2, 3, 4, 7, 8, 9, 12, 13, 14, 17});
  }
  StandInGroup group(1, 4);
  const Slice none = make_slices({}, {}, {}, 8, at::kCPU, TensorAxis(group)).at(0);
  CHECK(none.num_rows == 0);
  CHECK(gathered_places({none}).empty());
}
