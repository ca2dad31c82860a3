#include "lora/frozen_weight.h"

#include "parallel/base/error.h"

namespace moetune {
namespace {

constexpr int64_t kNf4Block = 64;
int64_t groups_of(int64_t blocks) { return (blocks + 255) / 256; }

}  // namespace

const char* to_string(BaseFormat format) {
  switch (format) {
    case BaseFormat::kNf4: return "nf4";
    case BaseFormat::kNf4Double: return "nf4_double";
    case BaseFormat::kBf16: return "bf16";
    case BaseFormat::kFp32: return "fp32";
  }
  return "?";
}

FrozenWeight::FrozenWeight(BaseFormat format, int64_t units, int64_t outputs, int64_t inputs, at::Device device, at::ScalarType compute)
    : format_(format), units_(units), outputs_(outputs), inputs_(inputs), device_(device), compute_(compute) {
  const auto options = at::TensorOptions(at::kByte).device(device);
  if (!quantised()) {
    held_ = at::zeros({units, outputs, inputs}, options.dtype(format == BaseFormat::kBf16 ? at::kBFloat16 : at::kFloat));
    return;
  }
  const int64_t elements = outputs * inputs;
  if (units > 1 && elements % kNf4Block != 0) {
    throw UserError(str("experts of ", outputs, " x ", inputs, " numbers do not divide into NF4 blocks of ", kNf4Block, "; use base: bf16"));
  }
  const int64_t blocks = units * ((elements + kNf4Block - 1) / kNf4Block);
  nf4_.shape = {units, outputs, inputs};
  nf4_.codes = at::empty({units * ((elements + 1) / 2)}, options);
  if (format == BaseFormat::kNf4) {
    nf4_.absmax = at::empty({blocks}, options.dtype(at::kFloat));
  } else {
    nf4_.double_absmax = DoubleQuantisedAbsmax{at::empty({blocks}, options), at::empty({units * groups_of(blocks / units)}, options.dtype(at::kFloat)),
                                               at::empty({units}, options.dtype(at::kFloat))};
  }
}

void FrozenWeight::set(int64_t unit, const at::Tensor& weight_OI) {
  MT_CHECK(unit >= 0 && unit < units_, "unit ", unit, " of ", units_);
  MT_CHECK(weight_OI.dim() == 2 && weight_OI.size(0) == outputs_ && weight_OI.size(1) == inputs_, "weight is ", weight_OI.sizes(),
           ", want [", outputs_, ", ", inputs_, "]");
  if (!quantised()) {
    held_[unit].copy_(weight_OI);
    return;
  }
  const Nf4Tensor packed = nf4_quantise(weight_OI.to(device_).contiguous(), format_ == BaseFormat::kNf4Double);
  auto place = [&](const at::Tensor& stack, const at::Tensor& part) { stack.narrow(0, unit * part.numel(), part.numel()).copy_(part); };
  place(nf4_.codes, packed.codes);
  if (packed.double_absmax) {
    place(nf4_.double_absmax->codes, packed.double_absmax->codes);
    place(nf4_.double_absmax->nested_absmax, packed.double_absmax->nested_absmax);
    place(nf4_.double_absmax->offset, packed.double_absmax->offset);
  } else {
    place(nf4_.absmax, packed.absmax);
  }
}

int64_t FrozenWeight::scratch_elements() const { return scratch_elements(format_, units_, outputs_, inputs_, compute_); }

int64_t FrozenWeight::scratch_elements(BaseFormat format, int64_t units, int64_t outputs, int64_t inputs, at::ScalarType compute) {
  const bool held_as_computed = !is_quantised(format) && compute == (format == BaseFormat::kBf16 ? at::kBFloat16 : at::kFloat);
  return held_as_computed ? 0 : units * outputs * inputs;
}

at::Tensor FrozenWeight::dense_units(int64_t first, int64_t count, Scratch& scratch, DequantCounters& counters) const {
  at::NoGradGuard no_grad;
  if (scratch_elements() == 0) return held_.narrow(0, first, count);
  at::Tensor out = scratch.take({count, outputs_, inputs_});
  counters.elements += count * outputs_ * inputs_;
  counters.calls += 1;
  if (quantised()) {
    const int64_t elements = outputs_ * inputs_;
    nf4_dequantise_rows_into(nf4_, first * elements, count * elements, out);
  } else {
    out.copy_(held_.narrow(0, first, count));
  }
  return out;
}

void FrozenWeight::use(Scratch& scratch, DequantCounters& counters) {
  at::Tensor stack = dense_units(0, units_, scratch, counters);
  dense_ = units_ == 1 ? stack[0] : stack;
}

const at::Tensor& FrozenWeight::dense() const {
  MT_CHECK(dense_.defined(), "a frozen weight [", outputs_, ", ", inputs_, "] was read while its layer was not in use");
  return dense_;
}

std::vector<at::Tensor> FrozenWeight::packed() const {
  if (!quantised()) return {held_};
  if (!nf4_.double_absmax) return {nf4_.codes, nf4_.absmax};
  return {nf4_.codes, nf4_.double_absmax->codes, nf4_.double_absmax->nested_absmax, nf4_.double_absmax->offset};
}

int64_t FrozenWeight::bytes() const { return bytes(format_, units_, outputs_, inputs_); }

int64_t FrozenWeight::bytes(BaseFormat format, int64_t units, int64_t outputs, int64_t inputs) {
  const int64_t elements = outputs * inputs;
  const int64_t blocks = (elements + 63) / 64;
  switch (format) {
    case BaseFormat::kNf4: return units * ((elements + 1) / 2 + 4 * blocks);
    case BaseFormat::kNf4Double: return units * ((elements + 1) / 2 + blocks + 4 * ((blocks + 255) / 256) + 4);
    case BaseFormat::kBf16: return units * 2 * elements;
    case BaseFormat::kFp32: return units * 4 * elements;
  }
  return 0;
}

}  // namespace moetune
