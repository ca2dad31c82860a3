// Which part of a matrix [O, I] a rank holds: one of equal runs of outputs (rows) or of inputs (columns).
//
//   const MatrixCut cut{MatrixCut::Dim::kOutputs, /*index=*/1, /*parts=*/4};
//   at::Tensor own = cut.part_of(whole_OI);      // rows O/4 .. O/2 - 1, a view
#pragma once

#include <torch/types.h>

#include <cstdint>

namespace moetune {

struct MatrixCut {
  enum class Dim { kNone, kOutputs, kInputs };
  Dim dim = Dim::kNone;  ///< kNone: each of the `parts` ranks holds it whole
  int64_t index = 0;     ///< of the part held
  int64_t parts = 1;

  bool cuts_outputs() const { return dim == Dim::kOutputs && parts > 1; }
  bool cuts_inputs() const { return dim == Dim::kInputs && parts > 1; }
  /// Held of the whole number, which is a multiple of `parts` where it is cut.
  int64_t outputs(int64_t whole) const { return cuts_outputs() ? whole / parts : whole; }
  int64_t inputs(int64_t whole) const { return cuts_inputs() ? whole / parts : whole; }
  int64_t first_output(int64_t whole) const { return cuts_outputs() ? index * (whole / parts) : 0; }
  int64_t first_input(int64_t whole) const { return cuts_inputs() ? index * (whole / parts) : 0; }
  at::Tensor part_of(const at::Tensor& whole_OI) const {
    const int64_t O = whole_OI.size(0), I = whole_OI.size(1);
    return whole_OI.narrow(0, first_output(O), outputs(O)).narrow(1, first_input(I), inputs(I));
  }
};

}  // namespace moetune
