// Which rows of packed documents a GPU's attention kernels take at a time. Two kernels share them:
//
//   ragged   any number of documents as they lie, told apart by where each begins. Nothing is padded and no shape has
//            to be prepared; at 192 features a head it has half the rate of the other.
//   dense    one long document. The library compiles a program for each length that it sees, which takes as long as
//            many steps, so lengths are rounded up to a few.
//
//   for (const RaggedPiece& piece : ragged_pieces(slice.lengths, spec.mask, /*dense=*/true)) ...
//
// A chunk of a chunked mask is a document of its own here.
#pragma once

#include <cstdint>
#include <set>
#include <vector>

#include "moe/blueprint.h"

namespace moetune {

/// Neighbouring rows that one kernel call computes.
struct RaggedPiece {
  bool dense = false;
  int64_t first_row = 0;
  int64_t num_rows = 0;
  /// of the dense kernel's call: the first num_rows of them are the document
  int64_t padded_rows = 0;
  int64_t longest = 0;          ///< document
  std::vector<int32_t> begins;  ///< of the ragged kernel: row of each document counted from first_row, and the end

  int64_t num_documents() const { return static_cast<int64_t>(begins.size()) - 1; }
};

/// Covers all rows of documents of these lengths, in order. `dense`: the dense kernel is there to be used.
std::vector<RaggedPiece> ragged_pieces(const std::vector<int64_t>& lengths, const MaskSpec& mask, bool dense);

/// Adds the padded_rows of every dense piece that a document of this length makes, wherever it lies.
void add_dense_rows(int64_t document_length, const MaskSpec& mask, std::set<int64_t>& padded_rows);

}  // namespace moetune
