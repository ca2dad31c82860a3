// Attention's kernels on a GPU against the CPU's in fp64: every mask, grouped heads, sinks, every dtype.
#include "moe/attention/packed_attention.h"

#include <c10/cuda/CUDACachingAllocator.h>
#include <torch/csrc/autograd/autograd.h>

#include <numeric>
#include <random>

#include "moe/attention/ragged_attention.h"
#include "moe/attention/ragged_pieces.h"
#include "tests/support/catch.h"
#include "tests/support/gpu_numbers.h"

using namespace moetune;

namespace {

struct Shape {
  std::vector<int64_t> lengths;
  int64_t heads, kv_heads, width, value_width;
  bool sinks;
};

Slice slice_of(const std::vector<int64_t>& lengths, at::Device device) {
  std::vector<int64_t> positions;
  for (const int64_t length : lengths) {
    for (int64_t t = 0; t < length; ++t) positions.push_back(t);
  }
  return make_slices(lengths, positions, std::vector<int64_t>(positions.size(), 0), 1000000, device).at(0);
}

/// Attention of one shape: its inputs, drawn, and what it computes of them.
struct Attended {
  Attended(const Shape& shape, const MaskSpec& mask, double softmax_scale, at::Device device, at::ScalarType dtype)
      : options(at::device(device).dtype(dtype)), slice(slice_of(shape.lengths, device)) {
    const int64_t rows = std::accumulate(shape.lengths.begin(), shape.lengths.end(), int64_t{0});
    inputs = {leaf(numbers({rows, shape.heads, shape.width})), leaf(numbers({rows, shape.kv_heads, shape.width})),
              leaf(numbers({rows, shape.kv_heads, shape.value_width}))};
    if (shape.sinks) inputs.push_back(leaf(numbers({shape.heads})));
    spec.mask = mask;
    spec.softmax_scale = softmax_scale;
  }
  /// Rounded to bf16 first: all dtypes compute with the same numbers.
  at::Tensor numbers(at::IntArrayRef sizes) { return random_normal(sizes, ++seed).to(at::kBFloat16).to(options); }
  at::Tensor forward(KeptAttention* kept = nullptr) const {
    const at::Tensor sinks = inputs.size() > 3 ? inputs[3] : at::Tensor();
    return packed_attention(inputs[0], inputs[1], inputs[2], slice, spec, sinks, kept);
  }

  at::TensorOptions options;
  Slice slice;
  AttentionSpec spec;
  std::vector<at::Tensor> inputs;  ///< q, k, v and sinks
  uint64_t seed = 0;
};

/// Output and the gradients of q, k, v and sinks, on the CPU.
std::vector<at::Tensor> run(const Shape& shape, const MaskSpec& mask, at::Device device, at::ScalarType dtype) {
  Attended attended(shape, mask, 0.3, device, dtype);
  const at::Tensor y = attended.forward();
  std::vector<at::Tensor> found = torch::autograd::grad({y}, attended.inputs, {attended.numbers(y.sizes())});
  found.insert(found.begin(), y.detach());
  for (at::Tensor& x : found) x = x.cpu();
  return found;
}

const std::vector<MaskSpec> kMasks{{MaskSpec::Kind::kCausal, 0},
                                   {MaskSpec::Kind::kWindow, 1},
                                   {MaskSpec::Kind::kWindow, 24},
                                   {MaskSpec::Kind::kChunk, 24}};

}  // namespace

TEST_CASE("a GPU attends as the CPU does", "[packed_attention]") {
  const std::vector<Shape> shapes{{{5, 3, 170, 1, 30, 5}, 4, 2, 64, 64, true},
                                  {{5, 3, 170, 1, 30, 5}, 4, 2, 64, 64, false},
                                  {{200}, 4, 1, 128, 128, true},
                                  {{40, 40}, 4, 4, 20, 12, true},
                                  {{40, 40}, 4, 4, 20, 12, false},
                                  {{40, 7}, 4, 2, 20, 20, false},
                                  {{1, 1, 1}, 4, 2, 64, 64, true},
                                  {{90, 7}, 2, 2, 192, 128, true}};
  for (size_t i = 0; i < shapes.size(); ++i) {
    for (const MaskSpec& mask : kMasks) {
      const std::vector<at::Tensor> wanted = run(shapes[i], mask, at::kCPU, at::kDouble);
      for (const auto& [dtype, bound] :
           {std::pair{at::kDouble, 1e-12}, std::pair{at::kFloat, 1e-5}, std::pair{at::kBFloat16, 1e-2}}) {
        const std::vector<at::Tensor> got = run(shapes[i], mask, at::kCUDA, dtype);
        for (size_t k = 0; k < wanted.size(); ++k) {
          INFO("shape " << i << ", mask " << static_cast<int>(mask.kind) << " of " << mask.size << ", "
                        << at::toString(dtype) << ", tensor " << k);
          const double error = (got[k].to(at::kDouble) - wanted[k]).norm().item<double>();
          // Gradients of scores are differences that may vanish: their rounding is that of what they come from.
          CHECK(error < bound * (wanted[0].norm() + wanted[k].norm()).item<double>());
        }
      }
    }
  }
}

TEST_CASE("what attention kept serves its backward pass on a GPU", "[packed_attention]") {
  // Short documents, long ones beside them, sinks, windows, values narrower than keys, one document alone.
  const std::vector<Shape> shapes{{{5, 3, 170, 1, 30, 5}, 4, 2, 64, 64, true},
                                  {{40, 3000, 7}, 4, 2, 64, 64, false},
                                  {{90, 7}, 2, 2, 192, 128, false},
                                  {{3000}, 2, 2, 192, 128, false}};
  for (size_t i = 0; i < shapes.size(); ++i) {
    for (const MaskSpec& mask : kMasks) {
      Attended attended(shapes[i], mask, 0.1, at::kCUDA, at::kBFloat16);
      const std::vector<at::Tensor>& inputs = attended.inputs;
      KeptAttention kept;
      {
        const at::NoGradGuard no_grad;
        attended.forward(&kept);
      }
      REQUIRE(kept.y_UHA.defined());
      const at::Tensor first = kept.y_UHA, plain = attended.forward(), again = attended.forward(&kept);
      INFO("shape " << i << ", mask " << static_cast<int>(mask.kind) << " of " << mask.size);
      CHECK(at::equal(plain, again));
      CHECK(again.data_ptr() == first.data_ptr());
      const at::Tensor d_y = attended.numbers(plain.sizes());
      const auto wanted = torch::autograd::grad({plain}, inputs, {d_y}),
                 got = torch::autograd::grad({again}, inputs, {d_y});
      // Kernels add the gradients of queries in any order.
      for (size_t k = 0; k < inputs.size(); ++k) {
        const at::Tensor exact = wanted[k].to(at::kDouble);
        CHECK((got[k].to(at::kDouble) - exact).norm().item<double>() < 2e-3 * exact.norm().item<double>());
      }
    }
  }
}

TEST_CASE("a window or a chunk in a long document takes no memory that grows with its square", "[packed_attention]") {
  using c10::cuda::CUDACachingAllocator::getDeviceStats;
  const auto peak = [&](int64_t length, const MaskSpec& mask, at::ScalarType dtype) {
    c10::cuda::CUDACachingAllocator::resetPeakStats(0);
    const int64_t before = getDeviceStats(0).allocated_bytes[0].current;
    run({{length}, 4, 2, 64, 64, true}, mask, at::kCUDA, dtype);
    return getDeviceStats(0).allocated_bytes[0].peak - before;
  };
  for (const at::ScalarType dtype : {at::kBFloat16, at::kFloat}) {
    for (const MaskSpec& mask : {MaskSpec{MaskSpec::Kind::kWindow, 128}, MaskSpec{MaskSpec::Kind::kChunk, 1024}}) {
      INFO(at::toString(dtype) << ", mask " << static_cast<int>(mask.kind));
      CHECK(peak(32768, mask, dtype) < 2.2 * static_cast<double>(peak(16384, mask, dtype)));
    }
  }
}

namespace {

/// Numbers of a slice on the GPU in bf16, and what they give in fp64, document by document, scores written out.
struct LongTask {
  std::vector<int64_t> lengths;
  int64_t heads, kv_heads, width, value_width;
  bool sinks = false;
  MaskSpec mask = {};
  bool joint = false;  ///< values lie behind other features of their head, as latent attention has them

  static constexpr double kScale = 0.1;
  at::Tensor q = {}, k = {}, kv = {}, sinks_H = {}, d = {};

  at::Tensor values(const at::Tensor& of) const { return of.narrow(2, of.size(2) - value_width, value_width); }
  std::vector<at::Tensor> leaves() const {
    return sinks ? std::vector<at::Tensor>{q, k, kv, sinks_H} : std::vector<at::Tensor>{q, k, kv};
  }
  void draw(uint64_t seed) {
    const int64_t rows = std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
    const at::TensorOptions bf16 = at::device(at::kCUDA).dtype(at::kBFloat16);
    const auto numbers = [&](at::IntArrayRef sizes) { return random_normal(sizes, ++seed, at::kFloat).to(bf16); };
    q = leaf(numbers({rows, heads, width}));
    k = leaf(numbers({rows, kv_heads, width}));
    kv = leaf(numbers({rows, kv_heads, value_width + (joint ? width : 0)}));
    if (sinks) sinks_H = leaf(numbers({heads}));
    d = numbers({rows, heads, value_width});
  }

  /// Output and gradients as the model computes them.
  std::vector<at::Tensor> packed() const {
    AttentionSpec spec;
    spec.mask = mask;
    spec.softmax_scale = kScale;
    poison_freed_memory(q.sizes(), at::kBFloat16);
    const at::Tensor y = packed_attention(q, k, values(kv), slice_of(lengths, at::kCUDA), spec, sinks_H);
    poison_freed_memory(q.sizes(), at::kBFloat16);
    poison_freed_memory(d.sizes(), at::kBFloat16);
    std::vector<at::Tensor> found =
        torch::autograd::grad({y}, leaves(), {d}, std::nullopt, false, /*allow_unused=*/true);
    found.insert(found.begin(), y.detach());
    return found;
  }

  std::vector<at::Tensor> exact() const {
    std::vector<at::Tensor> inputs, outputs;
    for (const at::Tensor& x : leaves()) inputs.push_back(leaf(x.to(at::kDouble)));
    std::vector<at::Tensor> sums;
    for (const at::Tensor& x : inputs) sums.push_back(at::zeros_like(x));
    int64_t begin = 0;
    for (const int64_t length : lengths) {
      const auto rows = [&](const at::Tensor& x) { return x.narrow(0, begin, length); };
      const at::Tensor y =
          document(rows(inputs[0]), rows(inputs[1]), values(rows(inputs[2])), sinks ? inputs[3] : at::Tensor());
      // One document's graph at a time: its scores are the most that is held.
      const auto d_inputs = torch::autograd::grad({y}, inputs, {rows(d).to(at::kDouble)});
      for (size_t i = 0; i < sums.size(); ++i) sums[i].add_(d_inputs[i]);
      outputs.push_back(y.detach());
      begin += length;
    }
    sums.insert(sums.begin(), at::cat(outputs));
    return sums;
  }

 private:
  at::Tensor document(const at::Tensor& q_LHA, const at::Tensor& k_LGA, const at::Tensor& v_LGA,
                      const at::Tensor& sink) const {
    const int64_t length = q_LHA.size(0), readers = heads / kv_heads;
    const auto heads_first = [&](const at::Tensor& x) { return x.repeat_interleave(readers, 1).transpose(0, 1); };
    at::Tensor score = q_LHA.transpose(0, 1).matmul(heads_first(k_LGA).transpose(1, 2)) * kScale;
    const at::Tensor t = at::arange(length, at::device(at::kCUDA).dtype(at::kLong)), query = t.unsqueeze(1);
    at::Tensor hidden = t > query;
    if (mask.kind == MaskSpec::Kind::kWindow) hidden = hidden.logical_or(query - t >= mask.size);
    if (mask.kind == MaskSpec::Kind::kChunk) {
      hidden = hidden.logical_or(query.div(mask.size, "floor") != t.div(mask.size, "floor"));
    }
    score = score.masked_fill(hidden, -INFINITY);
    if (sink.defined()) score = at::cat({score, sink.view({-1, 1, 1}).expand({-1, length, 1})}, 2);
    return score.softmax(-1).narrow(2, 0, length).matmul(heads_first(v_LGA)).transpose(0, 1);
  }
};

void compare(LongTask task, uint64_t seed) {
  task.draw(seed);
  const std::vector<at::Tensor> got = task.packed(), wanted = task.exact();
  for (size_t i = 0; i < wanted.size(); ++i) {
    INFO("documents of " << task.lengths.front() << " .. " << task.lengths.back() << ", " << task.heads << " on "
                         << task.kv_heads << " heads of " << task.width << " and " << task.value_width << ", mask "
                         << static_cast<int>(task.mask.kind) << " of " << task.mask.size
                         << (task.sinks ? ", sinks" : "") << (task.joint ? ", joint" : "") << ", tensor " << i);
    if (!got[i].defined()) continue;  // without rows
    // Documents of one token have gradients of queries and keys that are zero: what is left is measured by the output.
    const double size = wanted[i].norm().item<double>() + 0.1 * wanted[0].norm().item<double>();
    CHECK((got[i].to(at::kDouble) - wanted[i]).norm().item<double>() < 1.2e-2 * size);
    // Rows that a kernel computed wrongly may be few: each document counts by itself.
    int64_t begin = 0;
    for (const int64_t length : task.lengths) {
      if (i < 4 && wanted[i].size(0) == task.q.size(0)) {
        const auto rows = [&](const at::Tensor& x) { return x.narrow(0, begin, length).to(at::kDouble); };
        const double error = (rows(got[i]) - rows(wanted[i])).norm().item<double>();
        const double scale = rows(wanted[i]).norm().item<double>() + rows(wanted[0]).norm().item<double>();
        INFO("document of " << length << " rows from " << begin);
        CHECK(error < 1.5e-2 * scale);
      }
      begin += length;
    }
  }
}

const LongTask kLatent{{}, 4, 4, 192, 128, false, {}, true}, kGrouped{{}, 8, 2, 128, 128},
    kSinks{{}, 8, 1, 64, 64, true};

}  // namespace

TEST_CASE("documents of every length attend as each alone does in fp64", "[packed_attention]") {
  const std::vector<std::vector<int64_t>> slices{{1, 7, 63, 1023, 1024, 1025, 4096},  // an exact long one last
                                                 {4096, 1025},                        // padding behind the slice's end
                                                 {1025, 1100, 5, 1023},               // padding inside the slice
                                                 {1500},
                                                 {1},
                                                 {1, 1, 1, 1},
                                                 {63, 2048, 64, 65, 3000, 1},
                                                 std::vector<int64_t>(300, 3)};
  uint64_t seed = 1000;
  for (const std::vector<int64_t>& lengths : slices) {
    for (LongTask task : {kLatent, kGrouped, kSinks}) {
      task.lengths = lengths;
      compare(task, seed += 10);
      task.joint = false;
      compare(task, seed += 10);
    }
  }
}

TEST_CASE("packed documents of random lengths attend as each alone does in fp64", "[packed_attention]") {
  std::mt19937_64 random(7);
  std::lognormal_distribution<double> length(std::log(300.0), 1.2);
  uint64_t seed = 5000;
  for (int round = 0; round < 4; ++round) {
    std::vector<int64_t> lengths;
    for (int64_t rows = 0; rows < 4096; rows += lengths.back()) {
      lengths.push_back(std::clamp<int64_t>(static_cast<int64_t>(length(random)), 1, 3000));
    }
    for (LongTask task : {kLatent, kGrouped, kSinks}) {
      task.lengths = lengths;
      for (const MaskSpec& mask :
           {MaskSpec{}, MaskSpec{MaskSpec::Kind::kWindow, 128}, MaskSpec{MaskSpec::Kind::kWindow, 2000},
            MaskSpec{MaskSpec::Kind::kChunk, 100}, MaskSpec{MaskSpec::Kind::kChunk, 1100}}) {
        task.mask = mask;
        compare(task, seed += 10);
      }
    }
  }
}

TEST_CASE("a slice without rows has a graph on a GPU too", "[packed_attention]") {
  LongTask task = kLatent;
  task.draw(1);
  const std::vector<at::Tensor> found = task.packed();
  CHECK(found[0].sizes() == at::IntArrayRef({0, 4, 128}));
}

TEST_CASE("programs for long documents are made for the lengths that come", "[packed_attention]") {
  AttentionSpec spec;
  spec.kind = AttentionSpec::Kind::kLatent;
  spec.heads = spec.kv_heads = 4;
  spec.nope_dim = 128;
  spec.rotary_dim = 64;
  spec.value_dim = 128;
  spec.softmax_scale = 0.1;
  std::set<int64_t> rows;
  for (const int64_t length : {5, 1100, 1151, 2000}) add_dense_rows(length, spec.mask, rows);
  CHECK(rows == std::set<int64_t>{1152, 2048});
  const at::TensorOptions bf16 = at::device(at::kCUDA).dtype(at::kBFloat16);
  CHECK(warm_up_ragged_attention(spec, 4, 4, rows, bf16) == 2);
  CHECK(warm_up_ragged_attention(spec, 4, 4, rows, bf16.dtype(at::kFloat)) == 0);
}
