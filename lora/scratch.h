// One reusable buffer for what a layer needs while it is in use: dense weights, freed all at once.
//
//   at::Tensor w = scratch.take({O, I});
//   ... use it for every slice of the pass ...
//   scratch.reset();                        // everything taken is gone; in tests it is poisoned with NaN
#pragma once

#include <torch/types.h>

#include <vector>

namespace moetune {

class Scratch {
 public:
  Scratch(at::Device device, at::ScalarType dtype) : device_(device), dtype_(dtype) {}

  /// Makes room for `elements` in all. Call before the first take(); a larger demand later is an InternalError.
  void reserve(int64_t elements);
  /// An uninitialised contiguous tensor that aliases the buffer until reset() or release_to().
  at::Tensor take(at::IntArrayRef shape);
  /// A mark for release_to(): what was taken after it can be given back alone.
  int64_t mark() const { return used_; }
  void release_to(int64_t mark);
  void reset() { release_to(0); }
  /// Fills what is given back with NaN, so that a read after release shows.
  void poison_released(bool poison) { poison_ = poison; }
  /// Bytes of the buffer that reserve(elements) allocates.
  static int64_t bytes(int64_t elements, at::ScalarType dtype);
  int64_t bytes() const { return buffer_.defined() ? static_cast<int64_t>(buffer_.nbytes()) : 0; }

 private:
  at::Device device_;
  at::ScalarType dtype_;
  at::Tensor buffer_;
  int64_t used_ = 0;
  bool poison_ = false;
};

}  // namespace moetune
