// Which part of a matrix [O, I] a rank holds: one of equal runs of outputs (rows) or of inputs (columns), or of runs of
// whole granules that are as equal as granules allow.
//
//   const MatrixCut cut{MatrixCut::Dim::kOutputs, /*index=*/1, /*parts=*/4};
//   at::Tensor own = cut.part_of(whole_OI);      // rows O/4 .. O/2 - 1, a view
//   MatrixCut{MatrixCut::Dim::kInputs, 0, 2, /*granule=*/64}.inputs(10944);  // 86 of its 171 granules: 5504
//
// Heads are dealt out in equal parts; the features of an MLP need not be. The first parts have a granule more than the
// last, where there are fewer granules than parts the last have nothing.
#pragma once

#include <torch/types.h>

#include <algorithm>
#include <cstdint>

#include "parallel/base/ceil_div.h"

namespace moetune {

struct MatrixCut {
  enum class Dim { kNone, kOutputs, kInputs };
  Dim dim = Dim::kNone;  ///< kNone: each of the `parts` ranks holds it whole
  int64_t index = 0;     ///< of the part held
  int64_t parts = 1;
  int64_t granule = 0;  ///< outputs or inputs that stay together; 0: equal parts, which divide the whole
  int64_t copies = 1;   ///< ranks that hold this part
  int64_t copy = 0;     ///< this rank's among them

  bool cuts_outputs() const { return dim == Dim::kOutputs && parts > 1; }
  bool cuts_inputs() const { return dim == Dim::kInputs && parts > 1; }
  /// Where part `part` of the whole number begins; of `parts`: where the last ends.
  int64_t border(int64_t part, int64_t whole) const {
    if (granule == 0) return part * (whole / parts);
    const int64_t granules = ceil_div(whole, granule);
    return std::min(whole, granule * (part * (granules / parts) + std::min(part, granules % parts)));
  }
  /// Held of the whole number.
  int64_t outputs(int64_t whole) const { return cuts_outputs() ? held(whole) : whole; }
  int64_t inputs(int64_t whole) const { return cuts_inputs() ? held(whole) : whole; }
  int64_t first_output(int64_t whole) const { return cuts_outputs() ? border(index, whole) : 0; }
  int64_t first_input(int64_t whole) const { return cuts_inputs() ? border(index, whole) : 0; }
  at::Tensor part_of(const at::Tensor& whole_OI) const {
    const int64_t O = whole_OI.size(0), I = whole_OI.size(1);
    return whole_OI.narrow(0, first_output(O), outputs(O)).narrow(1, first_input(I), inputs(I));
  }

 private:
  int64_t held(int64_t whole) const { return border(index + 1, whole) - border(index, whole); }
};

}  // namespace moetune
