// What a frozen weight will look like in memory, from its sizes alone: the packed parts of each unit and the bytes they
// take.
//
//   const FrozenShape shape{BaseFormat::kNf4, /*units=*/32, /*outputs=*/2048, /*inputs=*/7168};
//   shape.unit_bytes();  // of one expert's map; what slabs, planner and traffic formulas add up
//
// A unit is one matrix [O, I]: a plain linear map has one, a grouped one an expert each. A rank of a tensor-parallel
// group holds a part of each matrix: some of its outputs (rows) or some of its inputs (columns). The matrix is
// quantised whole and then cut, so that what the ranks hold together is the same on every mesh. Where the cut would
// fall into NF4 blocks, each rank holds the packed matrix whole and takes its part of the dense one.
#pragma once

#include <torch/types.h>

#include <cstdint>
#include <vector>

#include "lora/formats/base_format.h"
#include "lora/formats/matrix_cut.h"

namespace moetune {

/// Of the bytes that FrozenWeight::pack makes of the tensors of a checkpoint or a seed. Raised whenever anything on
/// that way changes them, so that a cache of the old ones is passed over (slab_cache.h).
inline constexpr int kPackingVersion = 1;

/// One tensor of a packed unit.
struct PackedPart {
  const char* name;  ///< as digests call it: "codes", "absmax", ...
  at::ScalarType dtype;
  int64_t elements = 0;   ///< of a unit
  int64_t numbers = 1;    ///< neighbours in a row of the matrix that an element stands for
  int64_t offset = 0;     ///< bytes from the unit's first
  bool of_whole = false;  ///< the same on every rank of a cut: statistics of the whole matrix, or all of it
  int64_t bytes() const { return elements * static_cast<int64_t>(c10::elementSize(dtype)); }
};

struct FrozenShape {
  BaseFormat format = BaseFormat::kNf4;
  int64_t units = 1;
  int64_t outputs = 0, inputs = 0;  ///< of the whole matrix
  MatrixCut cut = {};

  int64_t held_outputs() const { return cut.outputs(outputs); }
  int64_t held_inputs() const { return cut.inputs(inputs); }
  int64_t held_elements() const { return held_outputs() * held_inputs(); }
  /// Whether a border of the cut falls into an NF4 block: then what is packed is the whole matrix.
  bool packs_whole() const;
  /// One unit, uncut.
  FrozenShape whole() const { return {format, 1, outputs, inputs, {}}; }
  /// The tensors of a unit, each at a multiple of 16 bytes.
  std::vector<PackedPart> parts() const;
  /// Bytes of a unit, a multiple of 16.
  int64_t unit_bytes() const;
  /// Elements that use() of a weight of this shape takes from the scratch: 0 where the held form is dense already.
  int64_t scratch_elements(at::ScalarType compute) const;
  /// Throws UserError where the matrix cannot be cut so, or units do not divide into NF4 blocks.
  void check() const;
};

/// The granule in which the features of an MLP, `width` of them, are dealt out to `parts` ranks: blocks of inputs where
/// weights are held in blocks, which suits every map of the MLP; else equal parts where they divide the width, and
/// otherwise what products on a GPU want of a row.
int64_t cut_granule(BaseFormat format, int64_t width, int64_t parts);

}  // namespace moetune
