// Multi-head latent attention, with and without a query latent and biases, against its equations written out.
#include "moe/attention/latent_attention.h"

#include <torch/csrc/autograd/autograd.h>

#include <numeric>

#include "tests/support/catch.h"
#include "tests/support/numbers.h"

using namespace moetune;

namespace {

constexpr int64_t D = 10, H = 3, kNope = 4, kRope = 2, kValue = 5, kQLatent = 7, kKvLatent = 6;
const std::vector<int64_t> kLengths{5, 3, 9};

struct Layer {
  ParameterSet parameters{at::kCPU, at::kDouble};
  at::Tensor q, q_a, q_b, kv_a, kv_b, o, q_a_bias, kv_a_bias, o_bias, q_a_norm, kv_a_norm;

  Layer(bool query_latent, bool biases) {
    const auto weight = [&](int64_t outputs, int64_t inputs, uint64_t seed) {
      return parameters.add({}, random_normal({outputs, inputs}, seed) * 0.5).working;
    };
    if (query_latent) {
      q_a = weight(kQLatent, D, 1);
      q_b = weight(H * (kNope + kRope), kQLatent, 2);
      q_a_norm = leaf(random_normal({kQLatent}, 3));
    } else {
      q = weight(H * (kNope + kRope), D, 4);
    }
    kv_a = weight(kKvLatent + kRope, D, 5);
    kv_b = weight(H * (kNope + kValue), kKvLatent, 6);
    kv_a_norm = leaf(random_normal({kKvLatent}, 7));
    o = weight(D, H * kValue, 8);
    if (!biases) return;
    if (query_latent) q_a_bias = leaf(random_normal({kQLatent}, 9));
    kv_a_bias = leaf(random_normal({kKvLatent + kRope}, 10));
    o_bias = leaf(random_normal({D}, 11));
  }

  std::vector<at::Tensor> leaves() const {
    std::vector<at::Tensor> found;
    for (const at::Tensor& x : {q, q_a, q_b, kv_a, kv_b, o, q_a_bias, kv_a_bias, o_bias, q_a_norm, kv_a_norm}) {
      if (x.defined()) found.push_back(x);
    }
    return found;
  }

  std::unique_ptr<LatentAttention> make(const AttentionSpec& spec) {
    LatentWeights w;
    const auto map = [&](const at::Tensor& weight, const at::Tensor& bias = {}) {
      for (Parameter& parameter : parameters.all()) {
        if (parameter.working.is_same(weight)) return std::make_unique<Linear>(parameter, bias);
      }
      return std::unique_ptr<Linear>();
    };
    w.q = map(q);
    w.q_a = map(q_a, q_a_bias);
    w.q_b = map(q_b);
    w.kv_a = map(kv_a, kv_a_bias);
    w.kv_b = map(kv_b);
    w.o = map(o, o_bias);
    w.q_a_norm = q_a_norm;
    w.kv_a_norm = kv_a_norm;
    return std::make_unique<LatentAttention>(spec, std::move(w), TensorAxis());
  }

  static at::Tensor mapped(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias = {}) {
    const at::Tensor y = x.matmul(weight.t());
    return bias.defined() ? y + bias : y;
  }
  static at::Tensor normed(const at::Tensor& x, const at::Tensor& weight) {
    return x / (x.square().mean(-1, true) + 1e-6).sqrt() * weight;
  }
  // The two rotary features, by one radian a position.
  static at::Tensor turned(const at::Tensor& x_L2) {
    const at::Tensor angle = at::arange(x_L2.size(0), at::kDouble);
    const at::Tensor a = x_L2.select(1, 0), b = x_L2.select(1, 1);
    return at::stack({a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()}, 1);
  }

  at::Tensor document(const at::Tensor& x_LD, double scale) const {
    const int64_t length = x_LD.size(0);
    const at::Tensor queries =
        q.defined() ? mapped(x_LD, q) : mapped(normed(mapped(x_LD, q_a, q_a_bias), q_a_norm), q_b);
    const at::Tensor latent = mapped(x_LD, kv_a, kv_a_bias);
    const at::Tensor kv = mapped(normed(latent.narrow(1, 0, kKvLatent), kv_a_norm), kv_b);
    const at::Tensor future = at::ones({length, length}, at::kBool).triu(1);
    std::vector<at::Tensor> outputs;
    for (int64_t h = 0; h < H; ++h) {
      const at::Tensor q_h = queries.narrow(1, h * (kNope + kRope), kNope + kRope);
      const at::Tensor kv_h = kv.narrow(1, h * (kNope + kValue), kNope + kValue);
      const at::Tensor query = at::cat({q_h.narrow(1, 0, kNope), turned(q_h.narrow(1, kNope, kRope))}, 1);
      const at::Tensor key = at::cat({kv_h.narrow(1, 0, kNope), turned(latent.narrow(1, kKvLatent, kRope))}, 1);
      const at::Tensor score = (query.matmul(key.t()) * scale).masked_fill(future, -INFINITY);
      outputs.push_back(score.softmax(-1).matmul(kv_h.narrow(1, kNope, kValue)));
    }
    return mapped(at::cat(outputs, 1), o, o_bias);
  }
};

}  // namespace

TEST_CASE("latent attention is its equations, document by document", "[latent_attention]") {
  AttentionSpec spec;
  spec.heads = spec.kv_heads = H;
  spec.nope_dim = kNope;
  spec.rotary_dim = kRope;
  spec.value_dim = kValue;
  spec.kv_lora = kKvLatent;
  spec.softmax_scale = 0.6;
  RotarySpec rotary;
  rotary.dim = kRope;
  std::vector<int64_t> positions;
  for (const int64_t length : kLengths) {
    for (int64_t t = 0; t < length; ++t) positions.push_back(t);
  }
  const int64_t rows = static_cast<int64_t>(positions.size());
  const Slice slice = make_slices(kLengths, positions, std::vector<int64_t>(rows, 0), 1000, at::kCPU).at(0);
  const RopeAngles angles = Rope(rotary, at::kCPU).angles(slice.position_U, at::kDouble);
  for (const bool query_latent : {false, true}) {
    for (const bool biases : {false, true}) {
      INFO((query_latent ? "query latent" : "plain queries") << (biases ? ", biases" : ""));
      spec.q_lora = query_latent ? std::optional(kQLatent) : std::nullopt;
      Layer layer(query_latent, biases);
      const std::unique_ptr<Attention> attention = layer.make(spec);
      CHECK(attention->linears().size() == (query_latent ? 5 : 4));
      const at::Tensor x = leaf(random_normal({rows, D}, 20)), d = random_normal({rows, D}, 21);
      const at::Tensor y = attention->forward(x, slice, angles, StepRandom{}, nullptr, Wanted::kNumbers);
      std::vector<at::Tensor> documents;
      int64_t begin = 0;
      for (const int64_t length : kLengths) {
        documents.push_back(layer.document(x.narrow(0, begin, length), spec.softmax_scale));
        begin += length;
      }
      const at::Tensor expected = at::cat(documents);
      CHECK(distance(y, expected) < 1e-6);  // angles are computed in fp32
      std::vector<at::Tensor> inputs = layer.leaves();
      inputs.push_back(x);
      const auto got = torch::autograd::grad({y}, inputs, {d}), wanted = torch::autograd::grad({expected}, inputs, {d});
      for (size_t i = 0; i < inputs.size(); ++i) CHECK(distance(got[i], wanted[i]) < 1e-6);
    }
  }
}
