#include "lora/formats/mxfp4.h"

#include "parallel/base/error.h"

namespace moetune {

at::Tensor mxfp4_dequantise(const at::Tensor& blocks, const at::Tensor& scales, at::ScalarType dtype,
                            const std::string& place) {
  if (blocks.scalar_type() != at::kByte || scales.scalar_type() != at::kByte || blocks.dim() < 2 ||
      blocks.size(-1) != 16 || blocks.sizes().slice(0, blocks.dim() - 1) != scales.sizes()) {
    throw UserError(::moetune::str(place, ": blocks of ", blocks.toString(), " ", blocks.sizes(), " with scales of ",
                                   scales.toString(), " ", scales.sizes(),
                                   "; want uint8 [..., I / 32, 16] and uint8 [..., I / 32]"));
  }
  if (scales.eq(255).any().item<bool>()) throw UserError(str(place, ": a scale is NaN (255)"));
  const at::Tensor value_of_code =
      at::tensor({0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0}, at::kFloat)
          .to(blocks.device());
  const auto values = [&](const at::Tensor& codes) {
    return value_of_code.index_select(0, codes.flatten().to(at::kInt)).view(codes.sizes());
  };
  const at::Tensor pairs = at::stack({values(blocks.bitwise_and(15)), values(blocks.bitwise_right_shift(4))}, -1);
  const at::Tensor scale = at::exp2(scales.to(at::kFloat) - 127).unsqueeze(-1);
  return pairs.flatten(-2).mul_(scale).flatten(-2).to(dtype);
}

}  // namespace moetune
