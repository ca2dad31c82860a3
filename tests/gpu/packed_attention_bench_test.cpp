// Time of attention within documents and of its row kernels at DeepSeek-V3's shapes. Hidden: gpu_tests "[.bench]" runs
// it; gpu_tests "[packed_attention][.bench]" this file alone.
#include <c10/cuda/CUDAFunctions.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <functional>
#include <numeric>
#include <random>

#include "moe/attention/latent_keys.h"
#include "moe/attention/packed_attention.h"
#include "moe/attention/ragged_attention.h"
#include "moe/attention/ragged_pieces.h"
#include "moe/attention/rotated_heads.h"
#include "tests/support/catch.h"
#include "tests/support/rotation.h"

using namespace moetune;

namespace {

constexpr int64_t U = 4096, H = 128, kNope = 128, kRotary = 64, kValue = 128, kKey = kNope + kRotary;
const at::TensorOptions kBf16 = at::device(at::kCUDA).dtype(at::kBFloat16);

double ms_of_one(const std::function<void()>& call) {
  c10::cuda::device_synchronize();
  const auto start = std::chrono::steady_clock::now();
  call();
  c10::cuda::device_synchronize();
  return 1e3 * std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// Median of a call's time, five calls at a time.
double ms_of(const std::function<void()>& call) {
  std::vector<double> found;
  call();
  for (int i = 0; i < 11; ++i) {
    found.push_back(ms_of_one([&] {
                      for (int k = 0; k < 5; ++k) call();
                    }) /
                    5);
  }
  std::nth_element(found.begin(), found.begin() + 5, found.end());
  return found[5];
}

void report(const char* name, double bytes, const std::function<void()>& call) {
  const double ms = ms_of(call);
  std::printf("%-44s %8.3f ms %6.2f TB/s\n", name, ms, bytes / ms / 1e9);
  std::fflush(stdout);
}

AttentionSpec deepseek_v3() {
  AttentionSpec spec;
  spec.kind = AttentionSpec::Kind::kLatent;
  spec.heads = spec.kv_heads = H;
  spec.nope_dim = kNope;
  spec.rotary_dim = kRotary;
  spec.value_dim = kValue;
  spec.softmax_scale = 0.1;
  return spec;
}

/// Documents that fill a slice; the last is cut.
std::vector<int64_t> lognormal_lengths(double median, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::lognormal_distribution<double> length(std::log(median), 1.0);
  std::vector<int64_t> lengths;
  for (int64_t left = U; left > 0; left -= lengths.back()) {
    lengths.push_back(std::clamp<int64_t>(static_cast<int64_t>(length(random)), 1, left));
  }
  return lengths;
}

Slice slice_of(const std::vector<int64_t>& lengths) {
  const int64_t rows = std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
  return make_slices(lengths, std::vector<int64_t>(rows, 0), std::vector<int64_t>(rows, 0), 1000000, at::kCUDA).at(0);
}

/// Products of queries and keys, values and probabilities that the documents need, forward.
double flops_of(const std::vector<int64_t>& lengths) {
  double pairs = 0;
  for (const int64_t n : lengths) pairs += 0.5 * static_cast<double>(n) * static_cast<double>(n + 1);
  return pairs * H * 2 * (kKey + kValue);
}

}  // namespace

TEST_CASE("documents of a slice", "[packed_attention][.bench]") {
  const AttentionSpec spec = deepseek_v3();
  struct Case {
    std::string name;
    std::vector<int64_t> lengths;
  };
  std::vector<Case> cases{{"one document of 4096", {U}},
                          {"one document of 4000", {4000}},
                          {"two of 2048", {2048, 2048}},
                          {"four of 1024", {1024, 1024, 1024, 1024}},
                          {"eight of 512", std::vector<int64_t>(8, 512)}};
  for (const double median : {400.0, 180.0}) {
    for (const uint64_t seed : {1, 2, 3}) {
      cases.push_back(
          {"lognormal, median " + std::to_string(static_cast<int>(median)), lognormal_lengths(median, seed)});
    }
  }
  std::set<int64_t> rows;
  for (const Case& c : cases) {
    for (const int64_t length : c.lengths) add_dense_rows(length, spec.mask, rows);
  }
  int64_t made = 0;
  const double warm_ms = ms_of_one([&] { made = warm_up_ragged_attention(spec, H, H, rows, kBf16); });
  std::printf("%lld of %zu programs made in %.0f ms\n", static_cast<long long>(made), rows.size(), warm_ms);
  for (const Case& c : cases) {
    const Slice slice = slice_of(c.lengths);
    const at::Tensor q = at::randn({slice.num_all_rows, H, kKey}, kBf16).requires_grad_(),
                     k = at::randn({slice.num_all_rows, H, kKey}, kBf16).requires_grad_(),
                     kv = at::randn({slice.num_all_rows, H, kNope + kValue}, kBf16);
    const at::Tensor v = kv.narrow(2, kNope, kValue).requires_grad_();
    const at::Tensor d = at::randn({slice.num_all_rows, H, kValue}, kBf16);
    at::Tensor y;
    const double first_ms = ms_of_one([&] {
      y = packed_attention(q, k, v, slice, spec);
      torch::autograd::grad({y}, {q, k, v}, {d}, /*retain_graph=*/true);
    });
    const double forward_ms = ms_of([&] {
      const at::NoGradGuard no_grad;
      packed_attention(q, k, v, slice, spec);
    });
    const double backward_ms = ms_of([&] { torch::autograd::grad({y}, {q, k, v}, {d}, /*retain_graph=*/true); });
    const double flops = flops_of(c.lengths);
    const auto pieces = ragged_pieces(c.lengths, spec.mask, true);
    std::printf(
        "%-24s %3zu documents %2zu pieces  first %7.2f  forward %6.3f ms %4.0f TFLOP/s  backward %6.3f ms %4.0f\n",
        c.name.c_str(), c.lengths.size(), pieces.size(), first_ms, forward_ms, flops / forward_ms / 1e9, backward_ms,
        2.5 * flops / backward_ms / 1e9);
    std::fflush(stdout);
  }
}

TEST_CASE("row kernels of attention", "[packed_attention][.bench]") {
  const auto bytes = [](int64_t numbers) { return 2.0 * static_cast<double>(U * numbers); };
  const RopeAngles angles = angles_as(some_angles(U, kRotary / 2, RotarySpec::Layout::kPairs), kBf16);
  const at::Tensor q = at::randn({U, H * kKey}, kBf16);
  {
    const at::NoGradGuard no_grad;
    report("queries rotated in place", bytes(2 * H * kRotary), [&] { rotated_heads(q, H, kNope, angles); });
    const at::Tensor gq = at::randn({U, 64 * 128}, kBf16);
    const RopeAngles halves = angles_as(some_angles(U, 64, RotarySpec::Layout::kHalves), kBf16);
    report("grouped queries rotated in place", bytes(2 * 64 * 128), [&] { rotated_heads(gq, 64, 0, halves); });
  }
  const at::Tensor x = at::randn({U, H * kKey}, kBf16).requires_grad_();
  const at::Tensor rotated = rotated_heads(x * 1.0, H, kNope, angles), d_q = at::randn({U, H * kKey}, kBf16);
  report("times one and gradient rotated back", bytes(4 * H * kKey),
         [&] { torch::autograd::grad({rotated}, {x}, {d_q}, /*retain_graph=*/true); });
  const at::Tensor kv = at::randn({U, H * (kNope + kValue)}, kBf16).requires_grad_();
  const at::Tensor key = at::randn({U, 512 + kRotary}, kBf16).narrow(1, 512, kRotary).requires_grad_();
  report("latent keys", bytes(H * (kNope + kKey)), [&] { latent_keys(kv, key, H, kNope, angles); });
  const LatentKeys made = latent_keys(kv, key, H, kNope, angles);
  const at::Tensor d_k = at::randn({U, H, kKey}, kBf16), d_v = at::randn({U, H, kValue}, kBf16);
  report("latent keys backward", bytes(H * (kKey + kValue + kNope + kValue)),
         [&] { torch::autograd::grad({made.k_UHA, made.v_UHA}, {kv, key}, {d_k, d_v}, /*retain_graph=*/true); });
}
