// A weight that does not train, in the format it is held in, and its dense form while a layer is in use.
//
//   FrozenWeight w(BaseFormat::kNf4, {O, I}, device, compute);
//   w.set(0, weight_OI);             // quantised at once
//   w.use(scratch);                  // dequantised into the scratch: once for forward, recomputation and input gradient of a pass
//   y_TO = x_TI.matmul(w.dense().t());
//   w.release();                     // dense() is an error from here on
//
// A graph saves the address of the FrozenWeight, never the dense tensor (see linear.h): backward resolves it under the
// use of its own pass, so that nothing dequantised outlives a layer.
#pragma once

#include <torch/types.h>

#include <cstdint>
#include <string>
#include <vector>

#include "lora/nf4.h"
#include "lora/scratch.h"

namespace moetune {

/// How frozen linear weights are held.
enum class BaseFormat { kNf4, kNf4Double, kBf16, kFp32 };

const char* to_string(BaseFormat format);
inline bool is_quantised(BaseFormat format) { return format == BaseFormat::kNf4 || format == BaseFormat::kNf4Double; }

/// Work done on frozen weights, for the economy contract: each element is made dense twice a step, whatever its tokens.
struct DequantCounters {
  int64_t elements = 0;
  int64_t calls = 0;
};

/// A stack of `units` equal matrices [O, I]: one for a plain linear map, one an expert for a grouped one.
class FrozenWeight {
 public:
  FrozenWeight(BaseFormat format, int64_t units, int64_t outputs, int64_t inputs, at::Device device, at::ScalarType compute);

  /// Packs unit `unit` from weight_OI (any float dtype, any device).
  void set(int64_t unit, const at::Tensor& weight_OI);
  /// Dense form of the whole stack for one pass, in `compute`: from `scratch`, or the held tensor itself where it is dense already.
  void use(Scratch& scratch, DequantCounters& counters);
  /// Dense form of units first .. first + count - 1, written to a new place of `scratch`: [count, O, I].
  at::Tensor dense_units(int64_t first, int64_t count, Scratch& scratch, DequantCounters& counters) const;
  void release() { dense_ = at::Tensor(); }
  /// [O, I] for one unit, [units, O, I] for a stack. Throws InternalError outside use() .. release().
  const at::Tensor& dense() const;

  int64_t units() const { return units_; }
  int64_t outputs() const { return outputs_; }
  int64_t inputs() const { return inputs_; }
  /// Elements that use() takes from the scratch: 0 where the held form is dense already.
  int64_t scratch_elements() const;
  /// Bytes held.
  int64_t bytes() const;
  /// Bytes that a weight of this shape will hold: what the planner adds up.
  static int64_t bytes(BaseFormat format, int64_t units, int64_t outputs, int64_t inputs);
  /// Elements that use() of a weight of this shape will take from the scratch.
  static int64_t scratch_elements(BaseFormat format, int64_t units, int64_t outputs, int64_t inputs, at::ScalarType compute);
  /// The held tensors, for digests and traffic.
  std::vector<at::Tensor> packed() const;

 private:
  bool quantised() const { return is_quantised(format_); }

  BaseFormat format_;
  int64_t units_, outputs_, inputs_;
  at::Device device_;
  at::ScalarType compute_;
  Nf4Tensor nf4_;     // the whole stack, unit after unit; each unit has its own statistics
  at::Tensor held_;   // [units, O, I] when not quantised
  at::Tensor dense_;
};

}  // namespace moetune
