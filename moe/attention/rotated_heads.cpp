#include "moe/attention/rotated_heads.h"

#include <torch/csrc/autograd/custom_function.h>

#include "moe/attention/rotary_kernels.h"
#include "parallel/device/row_kernels.h"

namespace moetune {
namespace {

/// Which features of [U, heads, width].
struct Place {
  int64_t heads, first, half;
  bool pairs;
};

RopeAngles angles_of(const at::Tensor& cos, const at::Tensor& sin, bool pairs) {
  return {cos, sin, pairs ? RotarySpec::Layout::kPairs : RotarySpec::Layout::kHalves};
}

/// to = x rotated, or rotated back, with the features beside; may be x itself. All contiguous.
void rotate_into(const at::Tensor& to, const at::Tensor& x, const Place& place, const at::Tensor& cos,
                 const at::Tensor& sin, bool back) {
  const int64_t rows = x.size(0);
  if (x.numel() == 0) return;
  if (has_row_kernels(x)) {
    launch_rows(x, [&](auto number, cudaStream_t stream) {
      using Number = decltype(number);
      const RotaryHeads heads{rows, place.heads, x.numel() / rows / place.heads, place.first, place.half, place.pairs};
      rotate_heads_cuda(heads, numbers_of<const Number>(x), numbers_of<const Number>(cos),
                        numbers_of<const Number>(sin), numbers_of<Number>(to), back, stream);
    });
    return;
  }
  if (!to.is_same(x)) to.copy_(x);
  const at::Tensor part = to.view({rows, place.heads, -1}).narrow(2, place.first, 2 * place.half);
  const RopeAngles angles = angles_of(cos, sin, place.pairs);
  part.copy_(back ? rotate_back(part, angles) : rotate(part, angles));
}

struct RotatedHeads : torch::autograd::Function<RotatedHeads> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x, const at::Tensor& cos,
                            const at::Tensor& sin, const Place& place) {
    context->mark_dirty({x});
    context->save_for_backward({cos, sin});
    context->saved_data["heads"] = place.heads;
    context->saved_data["first"] = place.first;
    context->saved_data["pairs"] = place.pairs;
    rotate_into(x, x, place, cos, sin, /*back=*/false);
    return x;
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list d) {
    const auto saved = context->get_saved_variables();
    const Place place{context->saved_data["heads"].toInt(), context->saved_data["first"].toInt(), saved[0].size(1),
                      context->saved_data["pairs"].toBool()};
    const at::Tensor d_y = d[0].contiguous(), d_x = at::empty_like(d_y);
    rotate_into(d_x, d_y, place, saved[0], saved[1], /*back=*/true);
    return {d_x, at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

}  // namespace

at::Tensor rotated_heads(at::Tensor x_UC, int64_t heads, int64_t first, const RopeAngles& angles) {
  const int64_t half = angles.cos_TA.size(1), rows = x_UC.size(0);
  MT_CHECK(x_UC.is_contiguous() && angles.cos_TA.is_contiguous() && angles.sin_TA.is_contiguous(),
           "rows and angles lie one after the other");
  MT_CHECK(angles.cos_TA.size(0) == rows && angles.cos_TA.scalar_type() == x_UC.scalar_type(), "angles of ",
           angles.cos_TA.sizes(), " ", angles.cos_TA.toString(), " for rows of ", x_UC.sizes(), " ", x_UC.toString());
  MT_CHECK(half <= kMostRotaryPairs && rows * heads < (int64_t{1} << 31), half, " pairs of ", heads, " heads, ", rows,
           " rows");
  return RotatedHeads::apply(x_UC, angles.cos_TA, angles.sin_TA,
                             Place{heads, first, half, angles.layout == RotarySpec::Layout::kPairs});
}

}  // namespace moetune
