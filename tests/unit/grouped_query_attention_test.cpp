// Grouped-query attention against its equations written out for each document and head.
#include "moe/attention/grouped_query_attention.h"

#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <numeric>

#include "tests/support/catch.h"
#include "tests/support/numbers.h"

using namespace moetune;

namespace {

using HeadNorm = AttentionSpec::HeadNorm;

constexpr int64_t D = 10, H = 4, G = 2;
const std::vector<int64_t> kLengths{5, 3, 11, 1};

AttentionSpec plain_spec() {
  AttentionSpec spec;
  spec.kind = AttentionSpec::Kind::kGroupedQuery;
  spec.heads = H;
  spec.kv_heads = G;
  spec.rotary_dim = 6;
  spec.value_dim = 6;
  spec.softmax_scale = 0.5;
  spec.head_norm_eps = 1e-2;  // large enough to be seen
  return spec;
}

RotarySpec rotary_of(const AttentionSpec& spec, RotarySpec::Layout layout) {
  RotarySpec rotary;
  rotary.layout = layout;
  rotary.dim = spec.rotary_dim;
  rotary.theta = 100.0;
  return rotary;
}

std::vector<int64_t> positions_of(const std::vector<int64_t>& lengths) {
  std::vector<int64_t> positions;
  for (const int64_t length : lengths) {
    for (int64_t t = 0; t < length; ++t) positions.push_back(t);
  }
  return positions;
}

/// A layer's numbers, all of them leaves, and the module that holds them.
struct Layer {
  AttentionSpec spec;
  RotarySpec rotary;
  ParameterSet parameters{at::kCPU, at::kDouble};
  at::Tensor w_q, w_k, w_v, w_o, b_q, b_k, b_v, b_o, q_norm, k_norm, sinks;

  Layer(const AttentionSpec& layer_spec, RotarySpec::Layout layout)
      : spec(layer_spec), rotary(rotary_of(spec, layout)) {
    const int64_t A = spec.key_dim();
    const auto weight = [&](int64_t outputs, int64_t inputs, uint64_t seed) {
      return parameters.add({}, random_normal({outputs, inputs}, seed) * 0.5).working;
    };
    w_q = weight(H * A, D, 1);
    w_k = weight(G * A, D, 2);
    w_v = weight(G * spec.value_dim, D, 3);
    w_o = weight(D, H * spec.value_dim, 4);
    const auto vector = [&](int64_t size, uint64_t seed) { return leaf(random_normal({size}, seed)); };
    if (spec.qkv_bias) {
      b_q = vector(H * A, 5);
      b_k = vector(G * A, 6);
      b_v = vector(G * spec.value_dim, 7);
    }
    if (spec.o_bias) b_o = vector(D, 8);
    if (spec.head_norm == HeadNorm::kPerHead || spec.head_norm == HeadNorm::kAllHeads) {
      const bool all = spec.head_norm == HeadNorm::kAllHeads;
      q_norm = vector(all ? H * A : A, 9);
      k_norm = vector(all ? G * A : A, 10);
    }
    if (spec.sinks) sinks = vector(H, 11);
  }

  std::vector<at::Tensor> leaves() const {
    std::vector<at::Tensor> found;
    for (const at::Tensor& x : {w_q, w_k, w_v, w_o, b_q, b_k, b_v, b_o, q_norm, k_norm, sinks}) {
      if (x.defined()) found.push_back(x);
    }
    return found;
  }

  at::Tensor forward(const at::Tensor& x_TD, const std::vector<int64_t>& lengths) {
    GroupedQueryWeights w;
    const auto map = [&](size_t i, const at::Tensor& bias) {
      return std::make_unique<Linear>(parameters.all()[i], bias);
    };
    w.q = map(0, b_q);
    w.k = map(1, b_k);
    w.v = map(2, b_v);
    w.o = map(3, b_o);
    w.q_norm = q_norm;
    w.k_norm = k_norm;
    w.sinks = sinks;
    const std::vector<int64_t> positions = positions_of(lengths);
    const Slice slice =
        make_slices(lengths, positions, std::vector<int64_t>(positions.size(), 0), 1000, at::kCPU).at(0);
    RopeAngles angles;
    if (spec.rotary_dim > 0) angles = Rope(rotary, at::kCPU).angles(slice.position_U, at::kDouble);
    const GroupedQueryAttention attention(spec, std::move(w), TensorAxis());
    CHECK(attention.linears().size() == 4);
    return attention.forward(x_TD, slice, angles, StepRandom{}, nullptr, Wanted::kNumbers);
  }

  static at::Tensor mapped(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
    const at::Tensor y = x.matmul(weight.t());
    return bias.defined() ? y + bias : y;
  }
  at::Tensor normed(const at::Tensor& x_LC) const {
    return x_LC / (x_LC.square().mean(-1, true) + spec.head_norm_eps).sqrt();
  }

  /// One head [L, A] of one document with everything that happens to it before the scores.
  at::Tensor head(const at::Tensor& x_LA, const at::Tensor& norm) const {
    at::Tensor x = spec.head_norm == HeadNorm::kPerHead ? normed(x_LA) * norm : x_LA;
    const int64_t length = x.size(0), half = spec.rotary_dim / 2;
    std::vector<at::Tensor> features(spec.key_dim());
    for (int64_t c = 0; c < spec.key_dim(); ++c) features[c] = x.select(1, c);
    const at::Tensor position = at::arange(length, at::kFloat);
    for (int64_t i = 0; i < half; ++i) {
      const bool pairs = rotary.layout == RotarySpec::Layout::kPairs;
      const int64_t a = pairs ? 2 * i : i, b = pairs ? 2 * i + 1 : i + half;
      const at::Tensor angle =
          position.to(at::kDouble) * std::pow(rotary.theta, -static_cast<double>(i) / static_cast<double>(half));
      const at::Tensor first = features[a] * angle.cos() - features[b] * angle.sin();
      features[b] = features[b] * angle.cos() + features[a] * angle.sin();
      features[a] = first;
    }
    x = at::stack(features, 1);
    return spec.head_norm == HeadNorm::kWeightlessAfterwards && half > 0 ? normed(x) : x;
  }

  at::Tensor document(const at::Tensor& x_LD) const {
    const int64_t length = x_LD.size(0), A = spec.key_dim();
    at::Tensor q = mapped(x_LD, w_q, b_q), k = mapped(x_LD, w_k, b_k), v = mapped(x_LD, w_v, b_v);
    if (spec.head_norm == HeadNorm::kAllHeads) {
      q = normed(q) * q_norm;
      k = normed(k) * k_norm;
    }
    std::vector<at::Tensor> outputs;
    for (int64_t h = 0; h < H; ++h) {
      const int64_t g = h / (H / G);
      at::Tensor q_LA = head(q.narrow(1, h * A, A), q_norm), k_LA = head(k.narrow(1, g * A, A), k_norm);
      if (spec.rotary_dim == 0 && spec.temperature_scale > 0) {
        std::vector<double> factor;
        for (int64_t t = 0; t < length; ++t) {
          factor.push_back(1 + spec.temperature_scale *
                                   std::log(1 + std::floor(static_cast<double>(t + 1) / spec.temperature_floor)));
        }
        q_LA = q_LA * at::tensor(factor, at::kDouble).unsqueeze(1);
      }
      at::Tensor score = q_LA.matmul(k_LA.t()) * spec.softmax_scale;
      for (int64_t i = 0; i < length; ++i) {
        for (int64_t j = 0; j < length; ++j) {
          if (j > i || (spec.mask.kind == MaskSpec::Kind::kWindow && i - j >= spec.mask.size)) {
            score.index_put_({at::scalar_tensor(i, at::kLong), at::scalar_tensor(j, at::kLong)},
                             at::scalar_tensor(-INFINITY, at::kDouble));
          }
        }
      }
      if (spec.sinks) score = at::cat({score, sinks[h].expand({length, 1})}, 1);
      outputs.push_back(score.softmax(-1).narrow(1, 0, length).matmul(v.narrow(1, g * spec.value_dim, spec.value_dim)));
    }
    return mapped(at::cat(outputs, 1), w_o, b_o);
  }
};

/// `bound`: angles are computed in fp32.
void check(const AttentionSpec& spec, RotarySpec::Layout layout = RotarySpec::Layout::kHalves, double bound = 1e-6) {
  Layer layer(spec, layout);
  const at::Tensor x = leaf(random_normal({std::accumulate(kLengths.begin(), kLengths.end(), int64_t{0}), D}, 20));
  const at::Tensor d = random_normal(x.sizes(), 21);
  const at::Tensor y = layer.forward(x, kLengths);
  std::vector<at::Tensor> documents;
  int64_t begin = 0;
  for (const int64_t length : kLengths) {
    documents.push_back(layer.document(x.narrow(0, begin, length)));
    begin += length;
  }
  const at::Tensor expected = at::cat(documents);
  CHECK(distance(y, expected) < bound);
  std::vector<at::Tensor> inputs = layer.leaves();
  inputs.push_back(x);
  const auto got = torch::autograd::grad({y}, inputs, {d}), wanted = torch::autograd::grad({expected}, inputs, {d});
  for (size_t i = 0; i < inputs.size(); ++i) {
    INFO("input " << i);
    CHECK((got[i] - wanted[i]).norm().item<double>() < bound * (1 + wanted[i].norm().item<double>()));
  }
}

}  // namespace

TEST_CASE("grouped queries with rotary features in both layouts are the plain equations", "[grouped_query]") {
  check(plain_spec());
  check(plain_spec(), RotarySpec::Layout::kPairs);
}

TEST_CASE("the first features of a head are rotated, the others are not", "[grouped_query]") {
  AttentionSpec spec = plain_spec();
  spec.rotary_dim = 4;
  spec.nope_dim = 3;
  spec.value_dim = 5;
  check(spec);
  check(spec, RotarySpec::Layout::kPairs);
}

TEST_CASE("heads are normed per head, over all heads, or without a weight behind the rotation", "[grouped_query]") {
  for (const HeadNorm norm : {HeadNorm::kPerHead, HeadNorm::kAllHeads, HeadNorm::kWeightlessAfterwards}) {
    INFO("norm " << static_cast<int>(norm));
    AttentionSpec spec = plain_spec();
    spec.head_norm = norm;
    check(spec);
    spec.rotary_dim = 4;
    spec.nope_dim = 2;
    check(spec);
    check(spec, RotarySpec::Layout::kPairs);
  }
}

TEST_CASE("biases, sinks and a window go together as in gpt-oss", "[grouped_query]") {
  AttentionSpec spec = plain_spec();
  spec.qkv_bias = spec.o_bias = spec.sinks = true;
  check(spec);
  spec.mask = {MaskSpec::Kind::kWindow, 4};
  check(spec);
}

TEST_CASE("a layer without positions rotates nothing, norms nothing and has a temperature", "[grouped_query]") {
  AttentionSpec spec = plain_spec();
  spec.rotary_dim = 0;
  spec.nope_dim = 6;
  check(spec, RotarySpec::Layout::kPairs, 1e-13);
  spec.head_norm = HeadNorm::kWeightlessAfterwards;
  spec.temperature_scale = 0.7;
  spec.temperature_floor = 3;
  check(spec, RotarySpec::Layout::kPairs);
  // With rotary features there is no temperature.
  spec.rotary_dim = 6;
  spec.nope_dim = 0;
  check(spec, RotarySpec::Layout::kPairs);
}

TEST_CASE("grouped-query attention takes no rows", "[grouped_query]") {
  for (const HeadNorm norm : {HeadNorm::kNone, HeadNorm::kPerHead, HeadNorm::kAllHeads}) {
    AttentionSpec spec = plain_spec();
    spec.head_norm = norm;
    spec.sinks = true;
    Layer layer(spec, RotarySpec::Layout::kHalves);
    const at::Tensor x = leaf(at::zeros({0, D}, at::kDouble));
    const at::Tensor y = layer.forward(x, {});
    CHECK(y.sizes() == x.sizes());
    CHECK(torch::autograd::grad({y}, {x}, {at::zeros_like(y)})[0].sizes() == x.sizes());
  }
}
