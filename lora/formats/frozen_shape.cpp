#include "lora/formats/frozen_shape.h"

#include "lora/formats/nf4_blocks.h"
#include "parallel/base/ceil_div.h"
#include "parallel/base/error.h"

namespace moetune {
namespace {

constexpr int64_t kAlignment = 16;  // what the widest access of a kernel wants

int64_t aligned(int64_t bytes) { return ceil_div(bytes, kAlignment) * kAlignment; }

}  // namespace

std::vector<PackedPart> FrozenShape::parts() const {
  const int64_t elements = held_elements(), blocks = ceil_div(elements, kNf4Block);
  std::vector<PackedPart> parts;
  int64_t offset = 0;
  auto add = [&](const char* name, at::ScalarType dtype, int64_t count, bool of_whole) {
    parts.push_back({name, dtype, count, offset, of_whole});
    offset += aligned(parts.back().bytes());
  };
  switch (format) {
    case BaseFormat::kNf4:
      add("codes", at::kByte, ceil_div(elements, 2), false);
      add("absmax", at::kFloat, blocks, false);
      break;
    case BaseFormat::kNf4Double:
      add("codes", at::kByte, ceil_div(elements, 2), false);
      add("absmax_codes", at::kByte, blocks, false);
      add("nested_absmax", at::kFloat, ceil_div(ceil_div(outputs * inputs, kNf4Block), kNf4NestedBlock), true);
      add("offset", at::kFloat, 1, true);
      break;
    case BaseFormat::kBf16: add("weight", at::kBFloat16, elements, false); break;
    case BaseFormat::kFp32: add("weight", at::kFloat, elements, false); break;
  }
  return parts;
}

int64_t FrozenShape::unit_bytes() const {
  const PackedPart last = parts().back();
  return last.offset + aligned(last.bytes());
}

int64_t FrozenShape::scratch_elements(at::ScalarType compute) const {
  const bool held_as_computed =
      !is_quantised(format) && compute == (format == BaseFormat::kBf16 ? at::kBFloat16 : at::kFloat);
  return held_as_computed ? 0 : units * held_elements();
}

void FrozenShape::check() const {
  const bool by_outputs = cut.dim == MatrixCut::Dim::kOutputs;
  if (cut.dim != MatrixCut::Dim::kNone && (by_outputs ? outputs : inputs) % cut.parts != 0) {
    throw UserError(::moetune::str("a matrix of ", outputs, " x ", inputs, " numbers cannot be cut into ", cut.parts,
                                   " equal parts by its ", by_outputs ? "outputs" : "inputs"));
  }
  if (!is_quantised(format)) return;
  if (units > 1 && held_elements() % kNf4Block != 0) {
    throw UserError(::moetune::str("experts of ", outputs, " x ", inputs, " numbers do not divide into NF4 blocks of ",
                                   kNf4Block, "; use base: bf16"));
  }
  const bool at_borders =
      by_outputs ? held_elements() % kNf4Block == 0 : inputs % kNf4Block == 0 && held_inputs() % kNf4Block == 0;
  if (cut.dim != MatrixCut::Dim::kNone && cut.parts > 1 && !at_borders) {
    throw UserError(::moetune::str("a matrix of ", outputs, " x ", inputs, " numbers cut into ", cut.parts,
                                   " parts by its ", by_outputs ? "outputs" : "inputs", " would cut NF4 blocks of ",
                                   kNf4Block, " numbers; use base: bf16, or fewer parts"));
  }
}

}  // namespace moetune
