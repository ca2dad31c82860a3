#include "lora/formats/frozen_shape.h"

#include <algorithm>

#include "lora/formats/nf4_blocks.h"
#include "parallel/base/ceil_div.h"
#include "parallel/base/error.h"

namespace moetune {
namespace {

constexpr int64_t kAlignment = 16;  // what the widest access of a kernel wants

int64_t aligned(int64_t bytes) { return ceil_div(bytes, kAlignment) * kAlignment; }

}  // namespace

std::vector<PackedPart> FrozenShape::parts() const {
  const bool whole = packs_whole();
  const int64_t elements = whole ? outputs * inputs : held_elements(), blocks = ceil_div(elements, kNf4Block);
  std::vector<PackedPart> parts;
  int64_t offset = 0;
  auto add = [&](const char* name, at::ScalarType dtype, int64_t count, int64_t numbers, bool of_whole) {
    parts.push_back({name, dtype, count, numbers, offset, of_whole});
    offset += aligned(parts.back().bytes());
  };
  switch (format) {
    case BaseFormat::kNf4:
      add("codes", at::kByte, ceil_div(elements, 2), 2, whole);
      add("absmax", at::kFloat, blocks, kNf4Block, whole);
      break;
    case BaseFormat::kNf4Double:
      add("codes", at::kByte, ceil_div(elements, 2), 2, whole);
      add("absmax_codes", at::kByte, blocks, kNf4Block, whole);
      add("nested_absmax", at::kFloat, ceil_div(ceil_div(outputs * inputs, kNf4Block), kNf4NestedBlock),
          kNf4Block * kNf4NestedBlock, true);
      add("offset", at::kFloat, 1, outputs * inputs, true);
      break;
    case BaseFormat::kBf16: add("weight", at::kBFloat16, elements, 1, false); break;
    case BaseFormat::kFp32: add("weight", at::kFloat, elements, 1, false); break;
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
  // The part of a matrix that is packed whole is copied out of it, so that it is as contiguous as any other.
  if (held_as_computed || held_elements() == 0) return 0;
  return units * ((packs_whole() ? outputs * inputs : 0) + held_elements());
}

bool FrozenShape::packs_whole() const {
  if (!is_quantised(format) || !(cut.cuts_outputs() || cut.cuts_inputs())) return false;
  if (cut.cuts_inputs() && inputs % kNf4Block != 0) return true;
  for (int64_t part = 1; part < cut.parts; ++part) {
    const int64_t before = cut.cuts_outputs() ? cut.border(part, outputs) * inputs : cut.border(part, inputs);
    if (before % kNf4Block != 0 && before != outputs * inputs) return true;
  }
  return false;
}

void FrozenShape::check() const {
  const bool by_outputs = cut.cuts_outputs();
  if ((by_outputs || cut.cuts_inputs()) && cut.granule == 0 && (by_outputs ? outputs : inputs) % cut.parts != 0) {
    throw UserError(::moetune::str("a matrix of ", outputs, " x ", inputs, " numbers cannot be cut into ", cut.parts,
                                   " equal parts by its ", by_outputs ? "outputs" : "inputs"));
  }
  if (is_quantised(format) && units > 1 && outputs * inputs % kNf4Block != 0) {
    throw UserError(::moetune::str("experts of ", outputs, " x ", inputs, " numbers do not divide into NF4 blocks of ",
                                   kNf4Block, "; use base: bf16"));
  }
}

int64_t cut_granule(BaseFormat format, int64_t width, int64_t parts) {
  constexpr int64_t kWide = 8;  // bf16 in 16 bytes
  if (is_quantised(format)) return kNf4Block;
  return width % parts == 0 ? std::max<int64_t>(1, width / parts) : kWide;
}

}  // namespace moetune
