#include "moe/attention/packed_attention.h"

#include <torch/csrc/autograd/custom_function.h>

#include "moe/attention/dense_attention.h"

namespace moetune {
namespace {

// Rows into bucket places. Each real row has exactly one place, so the transpose is a gather too, not a scatter with
// atomics.
struct ToBuckets : torch::autograd::Function<ToBuckets> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& rows, const at::Tensor& gather,
                            const at::Tensor& inverse) {
    context->save_for_backward({inverse});
    return rows.index_select(0, gather);
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list d) {
    return {d[0].index_select(0, context->get_saved_variables()[0]), at::Tensor(), at::Tensor()};
  }
};

// Bucket places back into rows. Padding places get a zero gradient: their queries were read by nobody.
struct FromBuckets : torch::autograd::Function<FromBuckets> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& places,
                            const at::Tensor& gather, const at::Tensor& inverse, const at::Tensor& padding) {
    context->save_for_backward({gather, padding});
    return places.index_select(0, inverse);
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list d) {
    auto saved = context->get_saved_variables();
    return {d[0].index_select(0, saved[0]).index_fill_(0, saved[1], 0), at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

}  // namespace

at::Tensor packed_attention(const at::Tensor& q_UHA, const at::Tensor& k_UGA, const at::Tensor& v_UGA,
                            const Slice& slice, const AttentionSpec& spec, const at::Tensor& sinks_H) {
  if (slice.num_all_rows == 0) {
    const int64_t readers = q_UHA.size(1) / v_UGA.size(1);
    return v_UGA.unsqueeze(2).expand({-1, -1, readers, -1}).flatten(1, 2);
  }
  at::Tensor q = q_UHA, k = k_UGA, v = v_UGA;
  if (!slice.in_order) {
    q = ToBuckets::apply(q, slice.gather_M, slice.inverse_U);
    k = ToBuckets::apply(k, slice.gather_M, slice.inverse_U);
    v = ToBuckets::apply(v, slice.gather_M, slice.inverse_U);
  }
  std::vector<at::Tensor> outputs;
  int64_t place = 0;
  for (const AttentionBucket& bucket : slice.buckets) {
    const int64_t places = bucket.batch * bucket.length;
    auto dense = [&](const at::Tensor& rows) {
      return rows.narrow(0, place, places).unflatten(0, {bucket.batch, bucket.length});
    };
    outputs.push_back(
        dense_attention(dense(q), dense(k), dense(v), spec.mask, spec.softmax_scale, sinks_H).flatten(0, 1));
    place += places;
  }
  at::Tensor out = outputs.size() == 1 ? outputs[0] : at::cat(outputs);
  return slice.in_order ? out : FromBuckets::apply(out, slice.gather_M, slice.inverse_U, slice.padding_places);
}

}  // namespace moetune
