#include "lora/scratch.h"

#include <limits>

#include "parallel/base/error.h"

namespace moetune {
namespace {

// Every piece starts at a multiple of 128 bytes (64 elements of two bytes), as grouped matrix products want.
int64_t rounded(int64_t elements) { return (elements + 63) / 64 * 64; }
constexpr int64_t kRounding = 64 * 64;  // room for the rounding of up to 64 pieces

}  // namespace

void Scratch::reserve(int64_t elements) {
  MT_CHECK(used_ == 0, "scratch is in use");
  elements += kRounding;
  if (!buffer_.defined() || buffer_.numel() < elements) {
    buffer_ = at::empty({elements}, at::TensorOptions(dtype_).device(device_));
  }
}

int64_t Scratch::bytes(int64_t elements, at::ScalarType dtype) {
  return (elements + kRounding) * static_cast<int64_t>(c10::elementSize(dtype));
}

at::Tensor Scratch::take(at::IntArrayRef shape) {
  const int64_t elements = c10::multiply_integers(shape);
  MT_CHECK(buffer_.defined() && used_ + elements <= buffer_.numel(), "scratch of ",
           buffer_.defined() ? buffer_.numel() : 0, " elements, ", used_, " used, cannot give ", elements);
  at::Tensor piece = buffer_.narrow(0, used_, elements).view(shape);
  used_ += rounded(elements);
  return piece;
}

void Scratch::release_to(int64_t mark) {
  if (poison_ && used_ > mark) {
    const int64_t end = std::min(used_, buffer_.numel());
    buffer_.narrow(0, mark, end - mark).fill_(std::numeric_limits<double>::quiet_NaN());
  }
  used_ = mark;
}

}  // namespace moetune
