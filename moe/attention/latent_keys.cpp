#include "moe/attention/latent_keys.h"

#include <torch/csrc/autograd/custom_function.h>

#include "moe/attention/rotary_kernels.h"
#include "parallel/device/row_kernels.h"

namespace moetune {
namespace {

LatentHeads kernel_heads(const at::Tensor& kv_UHA, int64_t nope, const RopeAngles& angles) {
  LatentHeads heads;
  heads.rows = kv_UHA.size(0);
  heads.heads = kv_UHA.size(1);
  heads.nope = nope;
  heads.value = kv_UHA.size(2) - nope;
  heads.half = angles.cos_TA.size(1);
  heads.pairs = angles.layout == RotarySpec::Layout::kPairs;
  return heads;
}

at::Tensor keys_of(const at::Tensor& kv_UHA, const at::Tensor& key_UA, int64_t nope, const RopeAngles& angles) {
  if (!has_row_kernels(kv_UHA)) {
    const at::Tensor rotated = rotate(key_UA.unsqueeze(1), angles).expand({-1, kv_UHA.size(1), -1});
    return at::cat({kv_UHA.narrow(2, 0, nope), rotated}, -1);
  }
  const at::Tensor k_UHA = at::empty({kv_UHA.size(0), kv_UHA.size(1), nope + key_UA.size(1)}, kv_UHA.options());
  launch_rows(kv_UHA, [&](auto number, cudaStream_t stream) {
    using Number = decltype(number);
    LatentHeads heads = kernel_heads(kv_UHA, nope, angles);
    heads.key_stride = key_UA.stride(0);
    latent_keys_cuda(heads, numbers_of<const Number>(kv_UHA), numbers_of<const Number>(key_UA),
                     numbers_of<const Number>(angles.cos_TA), numbers_of<const Number>(angles.sin_TA),
                     numbers_of<Number>(k_UHA), stream);
  });
  return k_UHA;
}

struct KeyGradients {
  at::Tensor kv_UHA, key_UA;
};

KeyGradients gradients_of(const at::Tensor& d_k_UHA, const at::Tensor& d_v_UHA, int64_t nope,
                          const RopeAngles& angles) {
  const int64_t rotary = d_k_UHA.size(2) - nope;
  if (!has_row_kernels(d_k_UHA)) {
    return {at::cat({d_k_UHA.narrow(2, 0, nope), d_v_UHA}, -1),
            rotate_back(d_k_UHA.narrow(2, nope, rotary).sum(1, /*keepdim=*/true), angles).squeeze(1)};
  }
  const at::Tensor d_k = d_k_UHA.contiguous(), d_v = d_v_UHA.stride(2) == 1 ? d_v_UHA : d_v_UHA.contiguous();
  const int64_t rows = d_k.size(0);
  const KeyGradients d{at::empty({rows, d_k.size(1), nope + d_v.size(2)}, d_k.options()),
                       at::empty({rows, rotary}, d_k.options())};
  launch_rows(d_k, [&](auto number, cudaStream_t stream) {
    using Number = decltype(number);
    latent_keys_backward_cuda(kernel_heads(d.kv_UHA, nope, angles), numbers_of<const Number>(d_k),
                              numbers_of<const Number>(d_v), d_v.stride(0), d_v.stride(1),
                              numbers_of<const Number>(angles.cos_TA), numbers_of<const Number>(angles.sin_TA),
                              numbers_of<Number>(d.kv_UHA), numbers_of<Number>(d.key_UA), stream);
  });
  return d;
}

struct AssembleKeys : torch::autograd::Function<AssembleKeys> {
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* context, const at::Tensor& kv_UC,
                                                const at::Tensor& key_UA, const at::Tensor& cos, const at::Tensor& sin,
                                                int64_t heads, int64_t nope, RotarySpec::Layout layout) {
    context->save_for_backward({cos, sin});
    context->saved_data["nope"] = nope;
    context->saved_data["layout"] = static_cast<int64_t>(layout);
    const at::Tensor kv_UHA = kv_UC.view({kv_UC.size(0), heads, kv_UC.size(1) / heads});
    return {keys_of(kv_UHA, key_UA, nope, {cos, sin, layout}), kv_UHA.narrow(2, nope, kv_UHA.size(2) - nope)};
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list d) {
    const auto saved = context->get_saved_variables();
    const auto layout = static_cast<RotarySpec::Layout>(context->saved_data["layout"].toInt());
    const KeyGradients found =
        gradients_of(d[0], d[1], context->saved_data["nope"].toInt(), {saved[0], saved[1], layout});
    return {
        found.kv_UHA.flatten(1), found.key_UA, at::Tensor(), at::Tensor(), at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

}  // namespace

LatentKeys latent_keys(const at::Tensor& kv_UC, const at::Tensor& key_UA, int64_t heads, int64_t nope_dim,
                       const RopeAngles& angles) {
  const int64_t half = angles.cos_TA.size(1);
  MT_CHECK(key_UA.size(1) == 2 * half && half > 0 && half <= kMostRotaryPairs, key_UA.size(1), " features, ", half,
           " angles");
  MT_CHECK(angles.cos_TA.is_contiguous() && angles.sin_TA.is_contiguous() && angles.cos_TA.size(0) == kv_UC.size(0) &&
               angles.cos_TA.scalar_type() == kv_UC.scalar_type(),
           "angles of ", angles.cos_TA.sizes(), " for rows of ", kv_UC.sizes());
  const auto found = AssembleKeys::apply(kv_UC.contiguous(), key_UA.stride(1) == 1 ? key_UA : key_UA.contiguous(),
                                         angles.cos_TA, angles.sin_TA, heads, nope_dim, angles.layout);
  return {found[0], found[1]};
}

}  // namespace moetune
