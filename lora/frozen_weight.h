// A weight that does not train, in the format it is held in, and its dense form while a layer is in use.
//
//   FrozenWeight w({BaseFormat::kNf4, 1, O, I}, device, compute);
//   w.set(0, weight_OI);  // quantised at once
//   // dequantised into the scratch: once for forward, recomputation and input gradient of a pass
//   w.use(scratch, counters);
//   y_TO = x_TI.matmul(w.dense().t());
//   w.release();          // dense() is an error from here on
//
// A graph saves the address of the FrozenWeight, never the dense tensor (see linear.h): backward resolves it under the
// use of its own pass, so that nothing dequantised outlives a layer. The packed bytes lie where bind() says, in a slab
// that comes and goes (frozen_slab.h); a weight that was never bound holds its own.
#pragma once

#include <torch/types.h>

#include <cstdint>
#include <vector>

#include "lora/formats/frozen_shape.h"
#include "lora/formats/nf4.h"
#include "lora/scratch.h"

namespace moetune {

/// Work done on frozen weights, for the economy contract: each element is made dense twice a step, whatever its tokens.
struct DequantCounters {
  int64_t elements = 0;
};

/// A stack of equal matrices, or of equal parts of them.
class FrozenWeight {
 public:
  FrozenWeight(const FrozenShape& shape, at::Device device, at::ScalarType compute);

  /// The packed parts (shape().whole().parts(), in order) of a whole matrix [O, I] of any float dtype, on the device.
  std::vector<at::Tensor> pack(const at::Tensor& weight_OI) const;
  /// Of the packed parts of a whole matrix, on any device, what is held: shape().parts(), in order.
  std::vector<at::Tensor> held(const std::vector<at::Tensor>& whole) const;
  /// From here on unit u's packed bytes begin at bytes[first + u * stride] (uint8, one-dimensional, on the device).
  void bind(const at::Tensor& bytes, int64_t first, int64_t stride);
  /// The bytes are gone.
  void unbind();
  /// Packs a whole matrix into unit `unit` of the bytes at hand; a weight without any makes its own.
  void set(int64_t unit, const at::Tensor& weight_OI);

  /// Dense form of the whole stack for one pass, in `compute`: from `scratch`, or the held tensor itself where it is
  /// dense already.
  void use(Scratch& scratch, DequantCounters& counters);
  /// Dense form of units first .. first + count - 1, written to a new place of `scratch`: [count, O, I].
  at::Tensor dense_units(int64_t first, int64_t count, Scratch& scratch, DequantCounters& counters) const;
  /// The same written to out_eOI [count, O, I], whose units and rows may lie apart by multiples of 16 bytes; `scratch`
  /// gives what is needed besides.
  void dense_units_into(int64_t first, int64_t count, at::Tensor out_eOI, Scratch& scratch,
                        DequantCounters& counters) const;
  void release() { dense_ = at::Tensor(); }
  /// [O, I] for one unit, [units, O, I] for a stack, O and I as held. Throws InternalError outside use() .. release().
  const at::Tensor& dense() const;

  const FrozenShape& shape() const { return shape_; }
  at::Device device() const { return device_; }
  at::ScalarType compute() const { return compute_; }
  /// Elements that use() takes from the scratch: 0 where the held form is dense already.
  int64_t scratch_elements() const { return shape_.scratch_elements(compute_); }
  /// The packed parts where they are bound, [units, elements] each, for tests.
  std::vector<at::Tensor> packed() const;

 private:
  void check_bound() const;
  /// Units of a weight that is not quantised, as they are held.
  at::Tensor held_units(int64_t first, int64_t count) const;

  FrozenShape shape_;
  at::Device device_;
  at::ScalarType compute_;
  std::vector<at::Tensor> packed_;  // views of the bound bytes
  at::Tensor dense_;
};

}  // namespace moetune
