#include "lora/formats/fp8.h"

#include <limits>

#include "parallel/base/ceil_div.h"
#include "parallel/base/error.h"
#include "parallel/bytes/finite.h"

namespace moetune {
namespace {

constexpr int64_t kBlock = 128;
constexpr double kLargest = 448.0;  // of e4m3fn

}  // namespace

at::Tensor fp8_scales(const at::Tensor& stored, const std::string& place) {
  at::Tensor scales;
  switch (stored.scalar_type()) {
    case at::kFloat:
    case at::kDouble:
    case at::kBFloat16:
    case at::kHalf: scales = stored.to(at::kFloat); break;
    case at::kByte:
    case at::kFloat8_e8m0fnu: {
      // 2^(u - 127) is made in fp64 and is exact in fp32; 255 becomes 2^128 there, infinite, and is refused below.
      scales = at::exp2(stored.view(at::kByte).to(at::kDouble).sub_(127)).to(at::kFloat);
      break;
    }
    default:
      throw UserError(::moetune::str(place, " is of dtype ", c10::toString(stored.scalar_type()),
                                     ", which is no scale of FP8 blocks; want F32, F64, F16, BF16, or powers of two as "
                                     "F8_E8M0 or its bits in U8"));
  }
  require_finite(scales, place);
  return scales;
}

at::Tensor fp8_blocks_dequantise(const at::Tensor& weight, const at::Tensor& scale_inv, at::ScalarType dtype,
                                 int64_t first_row) {
  MT_CHECK(weight.scalar_type() == at::kFloat8_e4m3fn && weight.dim() == 2, "weight is ", weight.toString(), " ",
           weight.sizes(), ", not e4m3fn [O, I]");
  MT_CHECK(first_row >= 0, "first_row ", first_row);
  const int64_t num_rows = weight.size(0), num_columns = weight.size(1);
  const int64_t end_row = first_row + num_rows;
  if (scale_inv.scalar_type() != at::kFloat || scale_inv.dim() != 2 || scale_inv.size(0) * kBlock < end_row ||
      scale_inv.size(1) != ceil_div(num_columns, kBlock)) {
    throw UserError(::moetune::str(
        "FP8 weight: scale_inv is ", scale_inv.toString(), " ", scale_inv.sizes(), ", but rows up to ", end_row, " of ",
        num_columns, " columns need fp32 [", ceil_div(end_row, kBlock), " or more, ", ceil_div(num_columns, kBlock),
        "]: one scale for 128 x 128 weights. Do weight and weight_scale_inv belong together?"));
  }
  if (const auto nan = find_non_finite(weight.contiguous())) {
    throw UserError(::moetune::str("FP8 weight: ", nan->count, " of ", weight.numel(),
                                   " weights are NaN (e4m3 codes 0x7f, 0xff). Is the checkpoint damaged?"));
  }
  const int64_t num_bad_scales = scale_inv.isfinite().logical_not().sum().item<int64_t>();
  if (num_bad_scales > 0) {
    throw UserError(::moetune::str("FP8 weight: ", num_bad_scales, " of ", scale_inv.numel(),
                                   " scales in scale_inv are NaN or infinite. Is the checkpoint damaged?"));
  }
  // One scale for every row and block column, then the rows of the weight as [O', blocks, 128] but for the ragged end.
  const at::Tensor scale_rows =
      scale_inv.to(weight.device())
          .index_select(0, at::arange(first_row, end_row, weight.options().dtype(at::kLong)).div_(kBlock, "floor"));
  at::Tensor values = weight.to(at::kFloat);
  const int64_t whole = num_columns / kBlock;
  values.slice(1, 0, whole * kBlock).unflatten(1, {whole, kBlock}).mul_(scale_rows.slice(1, 0, whole).unsqueeze(-1));
  if (whole * kBlock < num_columns) values.slice(1, whole * kBlock).mul_(scale_rows.slice(1, whole));
  return values.to(dtype);
}

Fp8Blocks fp8_blocks_quantise(const at::Tensor& weight, bool powers_of_two) {
  MT_CHECK(weight.dim() == 2, "weight is ", weight.sizes(), ", not [O, I]");
  const int64_t O = weight.size(0), I = weight.size(1);
  const int64_t rows = ceil_div(O, kBlock), columns = ceil_div(I, kBlock);
  at::Tensor padded = at::zeros({rows * kBlock, columns * kBlock}, weight.options().dtype(at::kFloat));
  padded.narrow(0, 0, O).narrow(1, 0, I).copy_(weight);
  const at::Tensor blocks = padded.view({rows, kBlock, columns, kBlock});
  at::Tensor scales = blocks.abs().amax({1, 3}).to(at::kDouble).div_(kLargest);
  // In fp32 a scale below its smallest normal number would be rounded roughly.
  scales.masked_fill_(scales.eq(0), 1.0).clamp_min_(std::numeric_limits<float>::min());
  scales = (powers_of_two ? at::exp2(at::ceil(at::log2(scales))) : scales).to(at::kFloat);
  // A scale that was rounded down would lift the largest weight above e4m3's largest number, which is NaN.
  blocks.div_(scales.view({rows, 1, columns, 1})).clamp_(-kLargest, kLargest);
  return {padded.narrow(0, 0, O).narrow(1, 0, I).to(at::kFloat8_e4m3fn).contiguous(), scales};
}

}  // namespace moetune
