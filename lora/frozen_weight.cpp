#include "lora/frozen_weight.h"

#include "parallel/base/ceil_div.h"
#include "parallel/base/error.h"

namespace moetune {
namespace {

/// The held part of `values`, each of which belongs to `numbers` neighbouring numbers of a row.
at::Tensor held_part(const at::Tensor& values, const FrozenShape& shape, int64_t numbers) {
  const MatrixCut& cut = shape.cut;
  if (cut.cuts_outputs()) {
    // The last number of the whole may stand alone in the last value.
    return values.narrow(0, ceil_div(cut.first_output(shape.outputs) * shape.inputs, numbers),
                         ceil_div(shape.held_elements(), numbers));
  }
  if (!cut.cuts_inputs()) return values;
  return values.view({shape.outputs, shape.inputs / numbers})
      .narrow(1, cut.first_input(shape.inputs) / numbers, shape.held_inputs() / numbers)
      .flatten();
}

}  // namespace

FrozenWeight::FrozenWeight(const FrozenShape& shape, at::Device device, at::ScalarType compute)
    : shape_(shape), device_(device), compute_(compute) {
  shape.check();
}

std::vector<at::Tensor> FrozenWeight::pack(const at::Tensor& weight_OI) const {
  MT_CHECK(weight_OI.dim() == 2 && weight_OI.size(0) == shape_.outputs && weight_OI.size(1) == shape_.inputs,
           "weight is ", weight_OI.sizes(), ", want [", shape_.outputs, ", ", shape_.inputs, "]");
  const at::Tensor whole = weight_OI.to(device_).contiguous();
  if (!is_quantised(shape_.format)) {
    return {whole.flatten().to(shape_.format == BaseFormat::kBf16 ? at::kBFloat16 : at::kFloat)};
  }
  const Nf4Tensor packed = nf4_quantise(whole, shape_.format == BaseFormat::kNf4Double);
  if (!packed.double_absmax) return {packed.codes, packed.absmax};
  const DoubleQuantisedAbsmax& nested = *packed.double_absmax;
  return {packed.codes, nested.codes, nested.nested_absmax, nested.offset};
}

std::vector<at::Tensor> FrozenWeight::held(const std::vector<at::Tensor>& whole) const {
  const std::vector<PackedPart> parts = shape_.parts();
  std::vector<at::Tensor> held;
  for (size_t i = 0; i < parts.size(); ++i) {
    held.push_back(parts[i].of_whole ? whole.at(i) : held_part(whole.at(i), shape_, parts[i].numbers));
  }
  return held;
}

void FrozenWeight::bind(const at::Tensor& bytes, int64_t first, int64_t stride) {
  MT_CHECK(bytes.scalar_type() == at::kByte && bytes.device().type() == device_.type(), "packed bytes are ",
           bytes.toString(), " on ", bytes.device());
  MT_CHECK(first + (shape_.units - 1) * stride + shape_.unit_bytes() <= bytes.numel(), "a stack of ", shape_.units,
           " units of ", shape_.unit_bytes(), " bytes at ", first, " every ", stride, " bytes does not fit into ",
           bytes.numel());
  packed_.clear();
  for (const PackedPart& part : shape_.parts()) {
    const int64_t size = static_cast<int64_t>(c10::elementSize(part.dtype));
    const at::Tensor run =
        bytes.narrow(0, first + part.offset, (shape_.units - 1) * stride + part.bytes()).view(part.dtype);
    packed_.push_back(run.as_strided({shape_.units, part.elements}, {stride / size, 1}));
  }
}

void FrozenWeight::unbind() {
  release();
  packed_.clear();
}

void FrozenWeight::set(int64_t unit, const at::Tensor& weight_OI) {
  MT_CHECK(unit >= 0 && unit < shape_.units, "unit ", unit, " of ", shape_.units);
  if (packed_.empty()) {
    bind(at::zeros({shape_.units * shape_.unit_bytes()}, at::TensorOptions(at::kByte).device(device_)), 0,
         shape_.unit_bytes());
  }
  const std::vector<at::Tensor> parts = held(pack(weight_OI));
  for (size_t i = 0; i < parts.size(); ++i) packed_[i][unit].copy_(parts[i]);
}

void FrozenWeight::check_bound() const {
  MT_CHECK(!packed_.empty(), "a frozen weight [", shape_.outputs, ", ", shape_.inputs,
           "] was made dense while its bytes were not there");
}

at::Tensor FrozenWeight::held_units(int64_t first, int64_t count) const {
  return packed_[0].narrow(0, first, count).unflatten(1, {shape_.held_outputs(), shape_.held_inputs()});
}

at::Tensor FrozenWeight::dense_units(int64_t first, int64_t count, Scratch& scratch, DequantCounters& counters) const {
  check_bound();
  if (!is_quantised(shape_.format) && scratch_elements() == 0) return held_units(first, count);
  at::Tensor out_eOI = scratch.take({count, shape_.held_outputs(), shape_.held_inputs()});
  dense_units_into(first, count, out_eOI, scratch, counters);
  return out_eOI;
}

void FrozenWeight::dense_units_into(int64_t first, int64_t count, at::Tensor out, Scratch& scratch,
                                    DequantCounters& counters) const {
  at::NoGradGuard no_grad;
  check_bound();
  const int64_t outputs = shape_.held_outputs(), inputs = shape_.held_inputs();
  const bool packs_whole = shape_.packs_whole();
  if (!packs_whole) counters.elements += count * outputs * inputs;
  if (!is_quantised(shape_.format)) {
    out.copy_(held_units(first, count));
    return;
  }
  if (out.numel() == 0) return;

  Nf4View view;
  view.codes = packed_[0].const_data_ptr<uint8_t>();
  view.unit_stride = packed_[0].stride(0);
  if (shape_.format == BaseFormat::kNf4) {
    view.absmax = packed_[1].const_data_ptr<float>();
  } else {
    view.absmax_codes = packed_[1].const_data_ptr<uint8_t>();
    view.nested_absmax = packed_[2].const_data_ptr<float>();
    view.offset = packed_[3].const_data_ptr<float>();
    if (!packs_whole && shape_.cut.cuts_outputs()) {
      view.first_block = shape_.cut.first_output(shape_.outputs) * shape_.inputs / kNf4Block;
    }
    if (!packs_whole && shape_.cut.cuts_inputs()) {
      view.blocks_per_row = inputs / kNf4Block;
      view.whole_blocks_per_row = shape_.inputs / kNf4Block;
      view.first_block = shape_.cut.first_input(shape_.inputs) / kNf4Block;
    }
  }
  if (packs_whole) {
    at::Tensor whole = scratch.take({count, shape_.outputs, shape_.inputs});
    counters.elements += whole.numel();
    nf4_dequantise_units_into(view, shape_.outputs * shape_.inputs, first, count, whole);
    const MatrixCut& cut = shape_.cut;
    out.copy_(
        whole.narrow(1, cut.first_output(shape_.outputs), outputs).narrow(2, cut.first_input(shape_.inputs), inputs));
    return;
  }
  nf4_dequantise_units_into(view, outputs * inputs, first, count, out);
}

void FrozenWeight::use(Scratch& scratch, DequantCounters& counters) {
  at::Tensor stack = dense_units(0, shape_.units, scratch, counters);
  dense_ = shape_.units == 1 ? stack[0] : stack;
}

const at::Tensor& FrozenWeight::dense() const {
  MT_CHECK(dense_.defined(), "a frozen weight [", shape_.outputs, ", ", shape_.inputs,
           "] was read while its layer was not in use");
  return dense_;
}

std::vector<at::Tensor> FrozenWeight::packed() const { return packed_; }

}  // namespace moetune
