// Counter-based random numbers against the same integer operations written out here.
#include "tests/support/catch.h"

#include "lora/adapters/counter_random.h"
#include "tests/support/numbers.h"

using namespace moetune;

namespace {

/// SplitMix64: output number `index` (from 0) of the generator whose state starts at `seed`.
uint64_t splitmix(uint64_t seed, uint64_t index) {
  uint64_t state = seed;
  for (uint64_t i = 0; i <= index; ++i) state += 0x9e3779b97f4a7c15u;
  state ^= state >> 30;
  state *= 0xbf58476d1ce4e5b9u;
  state ^= state >> 27;
  state *= 0x94d049bb133111ebu;
  return state ^ (state >> 31);
}

}  // namespace

TEST_CASE("numbers are the top 24 bits of SplitMix64", "[counter_random]") {
  // The published first output for seed 0.
  REQUIRE(splitmix(0, 0) == 0xe220a8397b1dcdafu);
  for (const uint64_t key : {uint64_t{0}, uint64_t{1234567}, ~uint64_t{0}, uint64_t{1} << 63}) {
    const at::Tensor drawn = counter_uniform(key, 0, 200, at::kCPU);
    for (int64_t i = 0; i < 200; ++i) {
      CHECK(drawn[i].item<double>() == static_cast<double>(splitmix(key, i) >> 40) / (1 << 24));
    }
  }
}

TEST_CASE("where a range is cut does not matter", "[counter_random]") {
  const uint64_t key = stream_key(17, "a");
  const at::Tensor whole = counter_uniform(key, 0, 100, at::kCPU);
  CHECK(at::equal(at::cat({counter_uniform(key, 0, 37, at::kCPU), counter_uniform(key, 37, 63, at::kCPU)}), whole));
  const at::Tensor places = long_tensor({99, 0, 41, 41}).view({2, 2});
  CHECK(at::equal(counter_uniform_at(key, places), whole.index_select(0, places.flatten()).view({2, 2})));
  CHECK(counter_uniform(key, 0, 0, at::kCPU).numel() == 0);
  CHECK(at::equal(places, long_tensor({99, 0, 41, 41}).view({2, 2})));
}

TEST_CASE("numbers are uniform, streams unrelated", "[counter_random]") {
  const int64_t count = 1 << 16;
  const at::Tensor a = counter_uniform(stream_key(17, "a"), 0, count, at::kCPU),
                   b = counter_uniform(stream_key(17, "b"), 0, count, at::kCPU);
  CHECK(a.min().item<double>() >= 0.0);
  CHECK(a.max().item<double>() < 1.0);
  // Each of 64 bins within five standard deviations of its share.
  CHECK(((a.histc(64, 0, 1) - count / 64).abs().max().item<double>()) < 5 * std::sqrt(count / 64.0));
  const double correlation = ((a - 0.5) * (b - 0.5)).mean().item<double>() * 12;
  CHECK(std::abs(correlation) < 5 / std::sqrt(static_cast<double>(count)));
  const std::vector<uint64_t> keys{stream_key(17, "a"),
                                   stream_key(17, "b"),
                                   stream_key(18, "a"),
                                   stream_key(17, "aa"),
                                   stream_key(17, ""),
                                   stream_key(stream_key(17, "a"), 0),
                                   stream_key(stream_key(17, "a"), 1)};
  for (size_t i = 0; i < keys.size(); ++i) {
    for (size_t j = 0; j < i; ++j) CHECK(keys[i] != keys[j]);
  }
}
