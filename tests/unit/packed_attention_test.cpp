// Attention under every mask, with grouped heads and sinks, against each document alone and its scores written out.
#include "tests/support/catch.h"

#include <torch/csrc/autograd/autograd.h>

#include <numeric>

#include "moe/attention/packed_attention.h"
#include "parallel/base/error.h"
#include "tests/support/message_of.h"
#include "tests/support/numbers.h"

using namespace moetune;

namespace {

constexpr double kScale = 0.4;

Slice slice_of(const std::vector<int64_t>& lengths) {
  std::vector<int64_t> positions;
  for (const int64_t length : lengths) {
    for (int64_t t = 0; t < length; ++t) positions.push_back(t);
  }
  return make_slices(lengths, positions, std::vector<int64_t>(positions.size(), 0), 1000000, at::kCPU).at(0);
}

bool sees(const MaskSpec& mask, int64_t query, int64_t key) {
  if (key > query) return false;
  if (mask.kind == MaskSpec::Kind::kWindow) return query - key < mask.size;
  return mask.kind == MaskSpec::Kind::kCausal || query / mask.size == key / mask.size;
}

/// One document [L, ...]: a softmax over the scores of all keys and the sink's logit, the sink's share dropped.
at::Tensor document_attention(const at::Tensor& q_LHA, const at::Tensor& k_LGA, const at::Tensor& v_LGA,
                              const MaskSpec& mask, const at::Tensor& sinks_H) {
  const int64_t length = q_LHA.size(0), heads = q_LHA.size(1), readers = heads / k_LGA.size(1);
  at::Tensor hidden = at::zeros({length, length}, at::kBool);
  for (int64_t i = 0; i < length; ++i) {
    for (int64_t j = 0; j < length; ++j) hidden[i][j] = !sees(mask, i, j);
  }
  std::vector<at::Tensor> outputs;
  for (int64_t h = 0; h < heads; ++h) {
    at::Tensor score = q_LHA.select(1, h).matmul(k_LGA.select(1, h / readers).t()) * kScale;
    score = score.masked_fill(hidden, -INFINITY);
    if (sinks_H.defined()) score = at::cat({score, sinks_H[h].expand({length, 1})}, 1);
    outputs.push_back(score.softmax(-1).narrow(1, 0, length).matmul(v_LGA.select(1, h / readers)));
  }
  return at::stack(outputs, 1);
}

struct Inputs {
  std::vector<int64_t> lengths;
  at::Tensor q, k, v, sinks, d;
  Inputs(const std::vector<int64_t>& document_lengths, int64_t heads, int64_t kv_heads, int64_t value_width,
         bool with_sinks)
      : lengths(document_lengths) {
    const int64_t rows = std::accumulate(lengths.begin(), lengths.end(), int64_t{0}), width = 6;
    q = leaf(random_normal({rows, heads, width}, 1) * 1.5);
    k = leaf(random_normal({rows, kv_heads, width}, 2));
    v = leaf(random_normal({rows, kv_heads, value_width}, 3));
    d = random_normal({rows, heads, value_width}, 4);
    if (with_sinks) sinks = leaf(random_normal({heads}, 5));
  }
  std::vector<at::Tensor> leaves() const {
    return sinks.defined() ? std::vector<at::Tensor>{q, k, v, sinks} : std::vector<at::Tensor>{q, k, v};
  }
  at::Tensor packed(const MaskSpec& mask, at::ScalarType dtype = at::kDouble) const {
    AttentionSpec spec;
    spec.mask = mask;
    spec.softmax_scale = kScale;
    const auto cast = [&](const at::Tensor& x) { return x.defined() ? x.to(dtype) : x; };
    return packed_attention(cast(q), cast(k), cast(v), slice_of(lengths), spec, cast(sinks));
  }
  at::Tensor alone(const MaskSpec& mask) const {
    std::vector<at::Tensor> documents;
    int64_t begin = 0;
    for (const int64_t length : lengths) {
      const auto rows = [&](const at::Tensor& x) { return x.narrow(0, begin, length); };
      documents.push_back(document_attention(rows(q), rows(k), rows(v), mask, sinks));
      begin += length;
    }
    return at::cat(documents);
  }
};

const std::vector<MaskSpec> kMasks{{MaskSpec::Kind::kCausal, 0}, {MaskSpec::Kind::kWindow, 1},
                                   {MaskSpec::Kind::kWindow, 5}, {MaskSpec::Kind::kWindow, 16},
                                   {MaskSpec::Kind::kChunk, 1},  {MaskSpec::Kind::kChunk, 5},
                                   {MaskSpec::Kind::kChunk, 16}};

std::string text(const MaskSpec& mask) {
  const char* kinds[] = {"causal", "window", "chunk"};
  return kinds[static_cast<int>(mask.kind)] + std::string(" ") + std::to_string(mask.size);
}

}  // namespace

TEST_CASE("packed attention under every mask is that of each document alone, gradients too", "[packed_attention]") {
  const std::vector<std::vector<int64_t>> cases{{5, 3, 17, 1, 30, 5}, {12, 12}, {16}, {1, 1, 1}};
  struct Heads {
    int64_t heads, kv_heads, value_width;
  };
  for (const std::vector<int64_t>& lengths : cases) {
    for (const Heads& h : {Heads{2, 2, 6}, Heads{4, 2, 6}, Heads{6, 1, 4}, Heads{4, 2, 8}}) {
      for (const bool with_sinks : {false, true}) {
        const Inputs in(lengths, h.heads, h.kv_heads, h.value_width, with_sinks);
        for (const MaskSpec& mask : kMasks) {
          INFO(text(mask) << ", " << lengths.size() << " documents, " << h.heads << " on " << h.kv_heads
                          << " heads, values of " << h.value_width << (with_sinks ? ", sinks" : ""));
          const at::Tensor packed = in.packed(mask), expected = in.alone(mask);
          CHECK(distance(packed, expected) < 1e-13);
          const auto got = torch::autograd::grad({packed}, in.leaves(), {in.d}),
                     wanted = torch::autograd::grad({expected}, in.leaves(), {in.d});
          for (size_t i = 0; i < wanted.size(); ++i) {
            // Queries that see one key have no gradient; there the norms are rounding.
            CHECK((got[i] - wanted[i]).norm().item<double>() < 1e-12 * (1 + wanted[i].norm().item<double>()));
          }
        }
      }
    }
  }
}

TEST_CASE("documents longer than a block of queries see all of their keys", "[packed_attention]") {
  const Inputs in({300, 129, 2}, 2, 1, 6, /*with_sinks=*/true);
  for (const MaskSpec& mask : {MaskSpec{MaskSpec::Kind::kWindow, 7}, MaskSpec{MaskSpec::Kind::kWindow, 200},
                               MaskSpec{MaskSpec::Kind::kChunk, 128}}) {
    INFO(text(mask));
    const at::Tensor packed = in.packed(mask), expected = in.alone(mask);
    CHECK(distance(packed, expected) < 1e-13);
    const auto got = torch::autograd::grad({packed}, in.leaves(), {in.d}),
               wanted = torch::autograd::grad({expected}, in.leaves(), {in.d});
    for (size_t i = 0; i < wanted.size(); ++i) CHECK(distance(got[i], wanted[i]) < 1e-12);
  }
}

TEST_CASE("narrow dtypes lose no more than their rounding", "[packed_attention]") {
  const Inputs in({5, 3, 17, 1, 30, 5}, 4, 2, 6, /*with_sinks=*/true);
  for (const auto& [dtype, bound] : {std::pair{at::kFloat, 1e-6}, std::pair{at::kBFloat16, 1e-2}}) {
    for (const MaskSpec& mask : kMasks) {
      INFO(text(mask) << ", " << at::toString(dtype));
      const at::Tensor packed = in.packed(mask, dtype), expected = in.alone(mask);
      CHECK(packed.scalar_type() == dtype);
      CHECK(distance(packed, expected) < bound);
      const auto got = torch::autograd::grad({packed}, in.leaves(), {in.d.to(dtype)}),
                 wanted = torch::autograd::grad({expected}, in.leaves(), {in.d});
      for (size_t i = 0; i < wanted.size(); ++i) {
        CHECK((got[i] - wanted[i]).norm().item<double>() < bound * (1 + wanted[i].norm().item<double>()));
      }
    }
  }
}

TEST_CASE("where a mask shows all that is before a token, the numbers are those of causal attention",
          "[packed_attention]") {
  for (const bool with_sinks : {false, true}) {
    const Inputs in({5, 3, 9, 9}, 4, 2, 6, with_sinks);  // padded to 16 at the most
    const at::Tensor causal = in.packed({MaskSpec::Kind::kCausal, 0});
    CHECK(at::equal(in.packed({MaskSpec::Kind::kWindow, 16}), causal));
    CHECK(at::equal(in.packed({MaskSpec::Kind::kChunk, 16}), causal));
  }
}

TEST_CASE("a sink far below the scores changes nothing, one far above takes everything", "[packed_attention]") {
  const Inputs in({7, 4}, 2, 2, 6, false);
  Inputs with = in;
  with.sinks = leaf(at::full({2}, -INFINITY, at::kDouble));
  const MaskSpec causal;
  CHECK(distance(with.packed(causal), in.packed(causal)) < 1e-14);
  with.sinks = leaf(at::full({2}, 1e4, at::kDouble));
  const at::Tensor nothing = with.packed(causal);
  CHECK(nothing.abs().max().item<double>() == 0.0);
  for (const at::Tensor& d : torch::autograd::grad({nothing}, with.leaves(), {with.d})) {
    CHECK(d.abs().max().item<double>() == 0.0);
  }
}

TEST_CASE("without rows there is a graph, through the values", "[packed_attention]") {
  for (const MaskSpec& mask : kMasks) {
    const Inputs in({}, 4, 2, 5, true);
    const at::Tensor out = in.packed(mask);
    CHECK(out.sizes() == at::IntArrayRef({0, 4, 5}));
    CHECK(torch::autograd::grad({out}, {in.v}, {in.d})[0].sizes() == in.v.sizes());
  }
}

TEST_CASE("heads that do not divide and windows of nothing are refused", "[packed_attention]") {
  const Inputs uneven({4}, 3, 2, 6, false), in({4}, 2, 2, 6, false);
  CHECK(contains(message_of<InternalError>([&] { uneven.packed({}); }), "3 query heads on 2"));
  CHECK(contains(message_of<InternalError>([&] { in.packed({MaskSpec::Kind::kWindow, 0}); }), "window or chunk of 0"));
}
