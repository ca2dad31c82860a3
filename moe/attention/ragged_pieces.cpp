#include "moe/attention/ragged_pieces.h"

#include <algorithm>

#include "parallel/base/error.h"

namespace moetune {
namespace {

// From here on the dense kernel's rate outweighs a launch for each document.
constexpr int64_t kDenseFrom = 1024;
// Queries and keys of a kernel's tile: rows up to a multiple of it cost nothing.
constexpr int64_t kTileRows = 128;
// The ragged kernel's backward pass sets aside a tile of fp32 rows for each document: so many at a time bound it.
constexpr int64_t kMostDocuments = 32;

/// Multiples of a tile and of 1/16 of the length's power of two: 8 lengths up to 2,048, 16 in each doubling from there
/// on, less than 1/16 of them padding.
int64_t padded_rows(int64_t length) {
  int64_t step = kTileRows;
  while (step * 32 <= length) step *= 2;
  return (length + step - 1) / step * step;
}

/// Calls visit(rows) for each part of a document that attends within itself alone.
template <typename Visit>
void for_each_part(int64_t document_length, const MaskSpec& mask, const Visit& visit) {
  const bool cut = mask.kind == MaskSpec::Kind::kChunk && !mask.is_causal_up_to(document_length);
  const int64_t most = cut ? mask.size : document_length;
  for (int64_t row = 0; row < document_length; row += most) visit(std::min(most, document_length - row));
}

/// A window that does not show all keys is the ragged kernel's.
bool is_dense(int64_t rows, const MaskSpec& mask) {
  return rows >= kDenseFrom && (mask.kind != MaskSpec::Kind::kWindow || mask.is_causal_up_to(rows));
}

}  // namespace

std::vector<RaggedPiece> ragged_pieces(const std::vector<int64_t>& lengths, const MaskSpec& mask, bool dense) {
  MT_CHECK(mask.kind == MaskSpec::Kind::kCausal || mask.size > 0, "a window or chunk of ", mask.size, " tokens");
  std::vector<RaggedPiece> pieces;
  int64_t row = 0;
  const auto add = [&](int64_t rows) {
    if (dense && is_dense(rows, mask)) {
      pieces.push_back({true, row, rows, padded_rows(rows), rows, {}});
    } else {
      if (pieces.empty() || pieces.back().dense || pieces.back().num_documents() == kMostDocuments) {
        pieces.push_back({false, row, 0, 0, 0, {0}});
      }
      RaggedPiece& piece = pieces.back();
      piece.num_rows += rows;
      piece.longest = std::max(piece.longest, rows);
      piece.begins.push_back(static_cast<int32_t>(piece.num_rows));
    }
    row += rows;
  };
  for (const int64_t length : lengths) for_each_part(length, mask, add);
  return pieces;
}

void add_dense_rows(int64_t document_length, const MaskSpec& mask, std::set<int64_t>& rows) {
  for_each_part(document_length, mask, [&](int64_t part) {
    if (is_dense(part, mask)) rows.insert(padded_rows(part));
  });
}

}  // namespace moetune
