// Which rows of packed documents go to which kernel at a time.
#include "moe/attention/ragged_pieces.h"

#include <algorithm>
#include <numeric>

#include "tests/support/catch.h"

using namespace moetune;

namespace {

const MaskSpec kCausal{MaskSpec::Kind::kCausal, 0};

std::vector<int64_t> first_rows(const std::vector<RaggedPiece>& pieces) {
  std::vector<int64_t> rows;
  for (const RaggedPiece& piece : pieces) rows.push_back(piece.first_row);
  return rows;
}

}  // namespace

TEST_CASE("neighbouring short documents are one piece, each long one is its own", "[ragged_pieces]") {
  const std::vector<RaggedPiece> pieces = ragged_pieces({5, 1023, 1024, 1025, 7, 4096, 2500}, kCausal, true);
  REQUIRE(first_rows(pieces) == std::vector<int64_t>{0, 1028, 2052, 3077, 3084, 7180});
  CHECK(pieces[0].begins == std::vector<int32_t>{0, 5, 1028});
  CHECK(pieces[0].longest == 1023);
  CHECK(pieces[0].num_rows == 1028);
  CHECK(!pieces[0].dense);
  CHECK(pieces[1].dense);
  CHECK(pieces[1].padded_rows == 1024);
  CHECK(pieces[2].num_rows == 1025);
  CHECK(pieces[2].padded_rows == 1152);
  CHECK(pieces[3].begins == std::vector<int32_t>{0, 7});
  CHECK(pieces[4].padded_rows == 4096);
  CHECK(pieces[5].padded_rows == 2560);
  // Without the dense kernel all are the other's.
  const std::vector<RaggedPiece> one = ragged_pieces({5, 1024, 7}, kCausal, false);
  REQUIRE(one.size() == 1);
  CHECK(one[0].begins == std::vector<int32_t>{0, 5, 1029, 1036});
  CHECK(one[0].longest == 1024);
}

TEST_CASE("a piece has so many documents at the most", "[ragged_pieces]") {
  const std::vector<RaggedPiece> pieces = ragged_pieces(std::vector<int64_t>(70, 3), kCausal, true);
  REQUIRE(first_rows(pieces) == std::vector<int64_t>{0, 96, 192});
  CHECK(pieces[1].num_documents() == 32);
  CHECK(pieces[2].num_documents() == 6);
}

TEST_CASE("chunks are documents, windows are the ragged kernel's", "[ragged_pieces]") {
  const std::vector<RaggedPiece> chunks = ragged_pieces({10, 3, 4, 9}, {MaskSpec::Kind::kChunk, 4}, true);
  REQUIRE(chunks.size() == 1);
  CHECK(chunks[0].begins == std::vector<int32_t>{0, 4, 8, 10, 13, 17, 21, 25, 26});
  const std::vector<RaggedPiece> large = ragged_pieces({3000}, {MaskSpec::Kind::kChunk, 1500}, true);
  REQUIRE(first_rows(large) == std::vector<int64_t>{0, 1500});
  CHECK(large[1].dense);
  CHECK(large[1].padded_rows == 1536);
  const MaskSpec window{MaskSpec::Kind::kWindow, 2000};
  const std::vector<RaggedPiece> windows = ragged_pieces({2001, 2000, 20}, window, true);
  REQUIRE(windows.size() == 3);
  CHECK(!windows[0].dense);
  CHECK(windows[1].dense);
  CHECK(!windows[2].dense);
}

TEST_CASE("padded lengths are few, and known from the documents' alone", "[ragged_pieces]") {
  std::set<int64_t> rows;
  for (int64_t length = 1; length <= 16384; ++length) {
    const std::vector<RaggedPiece> pieces = ragged_pieces({length}, kCausal, true);
    REQUIRE(pieces.size() == 1);
    CHECK(pieces[0].dense == (length >= 1024));
    if (!pieces[0].dense) continue;
    CHECK(pieces[0].padded_rows >= length);
    CHECK(pieces[0].padded_rows % 128 == 0);
    CHECK((pieces[0].padded_rows - length < 128 || (pieces[0].padded_rows - length) * 16 < length));
    rows.insert(pieces[0].padded_rows);
  }
  CHECK(rows.size() == 9 + 16 + 16 + 16);
  CHECK(std::count_if(rows.begin(), rows.end(), [](int64_t n) { return n <= 4096; }) == 9 + 16);
  for (const MaskSpec& mask :
       {kCausal, MaskSpec{MaskSpec::Kind::kChunk, 1500}, MaskSpec{MaskSpec::Kind::kWindow, 2048}}) {
    const std::vector<int64_t> lengths{5, 1024, 3500, 2048, 2049, 4500};
    std::set<int64_t> expected, found;
    for (const RaggedPiece& piece : ragged_pieces(lengths, mask, true)) {
      if (piece.dense) expected.insert(piece.padded_rows);
    }
    for (const int64_t length : lengths) add_dense_rows(length, mask, found);
    CHECK(found == expected);
  }
}
