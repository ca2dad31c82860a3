#include "trainer/plan/seen_keys.h"

#include "parallel/base/error.h"

namespace moetune {
namespace {

/// 1 + 2 + ... + n
double triangle(double n) { return n * (n + 1.0) / 2.0; }

/// Of all tokens of a document with the keys that they see.
double pairs(const MaskSpec& mask, int64_t length) {
  const auto L = static_cast<double>(length), size = static_cast<double>(mask.size);
  if (mask.is_causal_up_to(length)) return triangle(L);
  switch (mask.kind) {
    case MaskSpec::Kind::kCausal: break;
    case MaskSpec::Kind::kWindow: return triangle(size) + (L - size) * size;
    case MaskSpec::Kind::kChunk:
      return static_cast<double>(length / mask.size) * triangle(size) +
             triangle(static_cast<double>(length % mask.size));
  }
  throw InternalError("a mask of no kind");
}

}  // namespace

double SeenKeys::of(const MaskSpec& mask) const {
  double tokens = 0.0, seen = 0.0;
  for (const LengthCount& of : documents_) {
    const auto count = static_cast<double>(of.documents);
    tokens += count * static_cast<double>(of.length);
    seen += count * pairs(mask, of.length);
  }
  return tokens > 0.0 ? seen / tokens : 0.0;
}

}  // namespace moetune
