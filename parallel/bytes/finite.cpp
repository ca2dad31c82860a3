#include "parallel/bytes/finite.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <limits>

#include "parallel/base/error.h"

namespace moetune {
namespace {

constexpr int64_t kRun = 4096;  // of a fixed length, so that compilers make vectors of it
constexpr int64_t kGrain = 1 << 18;

// The magnitude of the least bad value: without its sign a float orders like the integer of its bits.
constexpr uint8_t kE4m3Nan = 0x7f;
constexpr uint16_t kFp16Infinity = 0x7c00;
constexpr uint16_t kBf16Infinity = 0x7f80;
constexpr uint32_t kRoundsToInfinity = 0x7f7f8000;  // halfway between bf16's largest and infinity; ties go up
constexpr auto kWideRoundsToInfinity =
    std::bit_cast<uint64_t>(static_cast<double>(std::bit_cast<float>(kRoundsToInfinity)));

template <typename Bits>
constexpr Bits kSign = static_cast<Bits>(Bits{1} << (std::numeric_limits<Bits>::digits - 1));

/// The sum carries into the sign's bit exactly where a magnitude reaches `least_bad`.
template <typename Bits>
Bits carry(Bits bits, Bits least_bad) {
  return static_cast<Bits>((bits & static_cast<Bits>(~kSign<Bits>)) + (kSign<Bits> - least_bad));
}

template <typename Bits>
bool any_bad(const Bits* values, int64_t count, Bits least_bad) {
  Bits seen = 0;
  int64_t i = 0;
  for (; i + kRun <= count; i += kRun) {
    const Bits* run = values + i;
    for (int64_t k = 0; k < kRun; ++k) seen |= carry(run[k], least_bad);
    if (seen & kSign<Bits>) return true;
  }
  for (; i < count; ++i) seen |= carry(values[i], least_bad);
  return seen & kSign<Bits>;
}

template <typename Bits>
std::optional<NonFinite> scan(const at::Tensor& tensor, Bits least_bad) {
  const auto* values = static_cast<const Bits*>(tensor.const_data_ptr());
  const int64_t count = tensor.numel();
  std::atomic<bool> bad = false;
  at::parallel_for(0, count, kGrain, [&](int64_t begin, int64_t end) {
    if (any_bad(values + begin, end - begin, least_bad)) bad = true;
  });
  if (!bad) return std::nullopt;
  NonFinite found{0, -1};
  for (int64_t i = 0; i < count; ++i) {
    if ((carry(values[i], least_bad) & kSign<Bits>) == 0) continue;
    if (found.count++ == 0) found.first = i;
  }
  return found;
}

std::string place_text(int64_t element, at::IntArrayRef shape) {
  std::string text;
  for (size_t i = shape.size(); i > 0; --i) {
    text = ::moetune::str(element % shape[i - 1], text.empty() ? "" : ", ", text);
    element /= shape[i - 1];
  }
  return "[" + text + "]";
}

}  // namespace

std::optional<NonFinite> find_non_finite(const at::Tensor& tensor) {
  MT_CHECK(tensor.is_contiguous(), "only contiguous tensors are looked through");
  const at::Tensor here = tensor.is_cpu() ? tensor : tensor.cpu();
  switch (here.scalar_type()) {
    case at::kDouble: return scan<uint64_t>(here, kWideRoundsToInfinity);
    case at::kFloat: return scan<uint32_t>(here, kRoundsToInfinity);
    case at::kBFloat16: return scan<uint16_t>(here, kBf16Infinity);
    case at::kHalf: return scan<uint16_t>(here, kFp16Infinity);
    case at::kFloat8_e4m3fn: return scan<uint8_t>(here, kE4m3Nan);
    default: MT_CHECK(false, "a tensor of ", here.toString(), " holds no floats of a kind that is looked through");
  }
}

void require_finite(const at::Tensor& tensor, const std::string& place) {
  const std::optional<NonFinite> found = find_non_finite(tensor);
  if (!found) return;
  throw UserError(::moetune::str(place, " holds values that are NaN or infinite in bf16: ", found->count, " of ",
                                 tensor.numel(), ", the first at ", place_text(found->first, tensor.sizes()),
                                 ". The file is damaged, or was saved by a run that diverged; take another copy"));
}

}  // namespace moetune
