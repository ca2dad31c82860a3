// Grouped-query attention whose heads are spread over a tensor axis against the whole of it on one rank.
#include "moe/attention/grouped_query_attention.h"

#include <torch/csrc/autograd/autograd.h>

#include "parallel/comm/communicator.h"
#include "tests/support/catch.h"
#include "tests/support/dist.h"
#include "tests/support/numbers.h"

using namespace moetune;

namespace {

using HeadNorm = AttentionSpec::HeadNorm;

constexpr int64_t D = 10, A = 6;

/// A layer's attention with the heads of place `index` of `size`.
struct Layer {
  AttentionSpec spec;
  ParameterSet parameters{test_launch().device(), at::kDouble};
  std::vector<at::Tensor> weights, vectors;  // q, k, v, o; their biases, norms and sinks
  std::vector<MatrixCut::Dim> vector_cuts;

  explicit Layer(const AttentionSpec& layer_spec) : spec(layer_spec) {}

  at::Tensor part(const at::Tensor& whole, int64_t dim, int64_t index, int64_t size) const {
    return whole.chunk(size, dim)[index];
  }

  GroupedQueryWeights make(int64_t index, int64_t size) {
    const int64_t H = spec.heads, G = spec.kv_heads;
    // Of a key head that several places have, all that trains is whole at each.
    const int64_t copies = std::max<int64_t>(1, size / G);
    const OutputRange used = copies > 1 ? OutputRange{index / copies * A, A} : OutputRange{};
    uint64_t seed = 0;
    const auto numbers = [&](at::IntArrayRef shape) { return random_normal(shape, ++seed).to(test_launch().device()); };
    const auto vector = [&](int64_t width) {
      return vectors.emplace_back(leaf(part(numbers({width}), 0, index, size)));
    };
    const auto map = [&](int64_t outputs, int64_t inputs, bool cut_outputs) {
      const at::Tensor weight = part(numbers({outputs, inputs}) * 0.4, cut_outputs ? 0 : 1, index, size);
      Parameter& parameter = parameters.add({}, weight);
      weights.push_back(parameter.working);
      if (cut_outputs) return std::make_unique<Linear>(parameter, vector(outputs));
      const at::Tensor bias = leaf(numbers({outputs}));
      return index == 0 ? std::make_unique<Linear>(parameter, vectors.emplace_back(bias))
                        : std::make_unique<Linear>(parameter);
    };
    const auto keys_or_values = [&] {
      if (copies == 1) return map(G * A, D, true);
      Parameter& parameter = parameters.add({}, numbers({G * A, D}) * 0.4);
      weights.push_back(parameter.working);
      return std::make_unique<Linear>(parameter, vectors.emplace_back(leaf(numbers({G * A}))), used);
    };
    GroupedQueryWeights w;
    w.q = map(H * A, D, true);
    w.k = keys_or_values();
    w.v = keys_or_values();
    w.sinks = vector(H);
    if (spec.head_norm == HeadNorm::kAllHeads) {
      w.q_norm = vector(H * A);
      w.k_norm = copies == 1 ? vector(G * A) : vectors.emplace_back(leaf(numbers({G * A})));
    } else if (spec.head_norm == HeadNorm::kPerHead) {
      // Every rank holds it whole: its gradient here is that of its own heads.
      w.q_norm = leaf(numbers({A}));
      w.k_norm = leaf(numbers({A}));
    }
    w.o = map(D, H * A, false);
    return w;
  }
};

struct Result {
  at::Tensor y, d_x, d_q_norm;
  std::vector<at::Tensor> d_weights, d_vectors;
};

Result run(const AttentionSpec& spec, const TensorAxis& axis, const std::vector<int64_t>& lengths) {
  Layer layer(spec);
  GroupedQueryWeights weights = layer.make(axis.index(), axis.size());
  const at::Tensor q_norm = weights.q_norm;
  std::vector<int64_t> positions;
  for (const int64_t length : lengths) {
    for (int64_t t = 0; t < length; ++t) positions.push_back(t);
  }
  const int64_t U = static_cast<int64_t>(positions.size());
  const Slice slice =
      make_slices(lengths, positions, std::vector<int64_t>(U, 0), 1000, test_launch().device(), axis).at(0);
  const auto own_rows = [&](uint64_t seed) {
    const at::Tensor padded = at::zeros({axis.size() * slice.num_rows, D}, test_options(at::kDouble));
    padded.narrow(0, 0, U).copy_(random_normal({U, D}, seed));
    return padded.narrow(0, axis.index() * slice.num_rows, slice.num_rows).clone();
  };
  RotarySpec rotary;
  rotary.layout = RotarySpec::Layout::kHalves;
  rotary.dim = spec.rotary_dim;
  const RopeAngles angles = Rope(rotary, test_launch().device()).angles(slice.position_U, at::kDouble);
  const GroupedQueryAttention attention(spec, std::move(weights), axis);
  const at::Tensor x = leaf(own_rows(50));
  Result result;
  result.y = attention.forward(x, slice, angles, StepRandom{}, nullptr, Wanted::kNumbers);
  std::vector<at::Tensor> inputs{x};
  inputs.insert(inputs.end(), layer.weights.begin(), layer.weights.end());
  inputs.insert(inputs.end(), layer.vectors.begin(), layer.vectors.end());
  if (spec.head_norm == HeadNorm::kPerHead) inputs.push_back(q_norm);
  std::vector<at::Tensor> found = torch::autograd::grad({result.y}, inputs, {own_rows(51)}, {}, false,
                                                        /*allow_unused=*/U == 0);
  result.d_x = found[0];
  result.d_weights = {found.begin() + 1, found.begin() + 5};
  result.d_vectors = {found.begin() + 5, found.begin() + 5 + static_cast<int64_t>(layer.vectors.size())};
  if (spec.head_norm == HeadNorm::kPerHead) result.d_q_norm = found.back();
  return result;
}

}  // namespace

namespace {

void require_same_as_on_one_rank(int64_t places_of_a_key_head) {
  const auto group = test_launch().make_group(0, test_launch().rank(), "axis");
  const TensorAxis axis(*group);
  const int64_t P = axis.size(), me = axis.index();
  AttentionSpec spec;
  spec.kind = AttentionSpec::Kind::kGroupedQuery;
  spec.heads = 2 * P;
  spec.kv_heads = P / places_of_a_key_head;
  spec.rotary_dim = 4;
  spec.nope_dim = 2;
  spec.value_dim = A;
  spec.qkv_bias = spec.o_bias = spec.sinks = true;
  spec.softmax_scale = 0.5;
  spec.head_norm_eps = 1e-2;
  spec.mask = {MaskSpec::Kind::kWindow, 3};
  for (const HeadNorm norm :
       {HeadNorm::kNone, HeadNorm::kPerHead, HeadNorm::kAllHeads, HeadNorm::kWeightlessAfterwards}) {
    INFO("norm " << static_cast<int>(norm));
    spec.head_norm = norm;
    const Result whole = run(spec, TensorAxis(), {5, 3, 6}), part = run(spec, axis, {5, 3, 6});
    const int64_t T = part.y.size(0), real = std::max(int64_t{0}, std::min(T, 14 - me * T));
    const auto own = [&](const at::Tensor& all) { return all.narrow(0, std::min(me * T, int64_t{14}), real); };
    CHECK(distance(part.y.narrow(0, 0, real), own(whole.y)) < 1e-12);
    CHECK(distance(part.d_x.narrow(0, 0, real), own(whole.d_x)) < 1e-12);
    const auto check = [&](const at::Tensor& found, const at::Tensor& expected, int64_t dim) {
      if (found.sizes() == expected.sizes()) {
        // Whole at each place: each adds what its own heads give.
        const at::Tensor sum = found.clone();
        axis.sum(sum);
        CHECK(distance(sum, expected) < 1e-11);
      } else {
        CHECK(distance(found, expected.chunk(P, dim)[me]) < 1e-11);
      }
    };
    for (size_t i = 0; i < 4; ++i) check(part.d_weights[i], whole.d_weights[i], i < 3 ? 0 : 1);
    for (size_t i = 0; i + 1 < whole.d_vectors.size(); ++i) check(part.d_vectors[i], whole.d_vectors[i], 0);
    if (me == 0) CHECK(distance(part.d_vectors.back(), whole.d_vectors.back()) < 1e-11);
    CHECK(part.d_vectors.size() == whole.d_vectors.size() - (me == 0 ? 0 : 1));
    if (norm == HeadNorm::kPerHead) {
      const at::Tensor sum = part.d_q_norm.clone();
      axis.sum(sum);
      CHECK(distance(sum, whole.d_q_norm) < 1e-11);
    }
    CHECK(run(spec, axis, {}).y.size(0) == 0);
  }
}

}  // namespace

TEST_CASE("heads spread over a tensor axis attend as all of them on one rank", "[grouped_query]") {
  require_same_as_on_one_rank(1);
}

TEST_CASE("so they do where several ranks have the same key head", "[grouped_query]") {
  const int64_t P = test_launch().world_size();
  for (const int64_t places : {int64_t{2}, P}) {
    if (P % places == 0 && P > 1) require_same_as_on_one_rank(places);
  }
}
