#include "moe/attention/bucketed_attention.h"

#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <map>
#include <numeric>

#include "moe/attention/dense_attention.h"

namespace moetune {
namespace {

// Padded lengths: multiples of 1/8 of the length's power of two, and of 8 at least, so that padding stays
// under 1/8 (or 8 rows) and buckets few.
int64_t padded_length(int64_t length) {
  int64_t step = 8;
  while (step * 16 <= length) step *= 2;
  return (length + step - 1) / step * step;
}

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

AttentionBuckets::AttentionBuckets(const std::vector<int64_t>& lengths, at::Device device) {
  if (std::all_of(lengths.begin(), lengths.end(), [&](int64_t n) { return n == lengths.front(); })) {
    buckets.push_back({static_cast<int64_t>(lengths.size()), lengths.front()});
    return;
  }
  in_order = false;
  std::map<int64_t, std::vector<size_t>> documents_of_length;
  for (size_t i = 0; i < lengths.size(); ++i) documents_of_length[padded_length(lengths[i])].push_back(i);
  std::vector<int64_t> begin(lengths.size(), 0);
  std::partial_sum(lengths.begin(), lengths.end() - 1, begin.begin() + 1);
  std::vector<int64_t> gather, padding, inverse(begin.back() + lengths.back());
  for (const auto& [length, documents] : documents_of_length) {
    buckets.push_back({static_cast<int64_t>(documents.size()), length});
    for (size_t document : documents) {
      for (int64_t t = 0; t < length; ++t) {
        const int64_t place = static_cast<int64_t>(gather.size());
        if (t < lengths[document]) {
          inverse[begin[document] + t] = place;
          gather.push_back(begin[document] + t);
        } else {
          padding.push_back(place);
          gather.push_back(0);
        }
      }
    }
  }
  gather_M = at::tensor(gather, at::kLong).to(device);
  inverse_U = at::tensor(inverse, at::kLong).to(device);
  padding_places = at::tensor(padding, at::kLong).to(device);
}

at::Tensor bucketed_attention(const at::Tensor& q_UHA, const at::Tensor& k_UGA, const at::Tensor& v_UGA,
                              const std::vector<int64_t>& lengths, const AttentionSpec& spec,
                              const at::Tensor& sinks_H) {
  const AttentionBuckets plan(lengths, q_UHA.device());
  at::Tensor q = q_UHA, k = k_UGA, v = v_UGA;
  if (!plan.in_order) {
    q = ToBuckets::apply(q, plan.gather_M, plan.inverse_U);
    k = ToBuckets::apply(k, plan.gather_M, plan.inverse_U);
    v = ToBuckets::apply(v, plan.gather_M, plan.inverse_U);
  }
  std::vector<at::Tensor> outputs;
  int64_t place = 0;
  for (const AttentionBucket& bucket : plan.buckets) {
    const int64_t places = bucket.batch * bucket.length;
    auto dense = [&](const at::Tensor& rows) {
      return rows.narrow(0, place, places).unflatten(0, {bucket.batch, bucket.length});
    };
    outputs.push_back(
        dense_attention(dense(q), dense(k), dense(v), spec.mask, spec.softmax_scale, sinks_H).flatten(0, 1));
    place += places;
  }
  at::Tensor out = outputs.size() == 1 ? outputs[0] : at::cat(outputs);
  return plan.in_order ? out : FromBuckets::apply(out, plan.gather_M, plan.inverse_U, plan.padding_places);
}

}  // namespace moetune
