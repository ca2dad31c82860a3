#include "lora/formats/nf4_cpu.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

// One body, compiled once per instruction set. The loops are written so that gcc vectorises them; this file is built
// with
// -O3, and with -ffp-contract=off because a fused multiply-add would round the absmax differently on different CPUs.
#if defined(__x86_64__) && defined(__GNUC__)
#define NF4_EACH_CPU __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#define NF4_BODY inline __attribute__((always_inline))
#else
#define NF4_EACH_CPU
#define NF4_BODY inline
#endif

namespace moetune {
namespace {

constexpr Nf4Code kCode = nf4_code();
constexpr Nf4DynamicMap kMap = nf4_dynamic_map();
constexpr uint32_t kInfinity = 0x7f800000u;

struct Pair {
  float high, low;
};
constexpr std::array<Pair, 256> kPairs = [] {
  std::array<Pair, 256> pairs{};
  for (int byte = 0; byte < 256; ++byte) pairs[byte] = {kCode.values[byte >> 4], kCode.values[byte & 15]};
  return pairs;
}();

NF4_BODY float to_float(float x) { return x; }
NF4_BODY float to_float(Bf16Bits x) { return std::bit_cast<float>(uint32_t{x.bits} << 16); }

NF4_BODY void round_to(float x, float& out) { out = x; }
NF4_BODY void round_to(float x, double& out) { out = x; }
NF4_BODY void round_to(float x, Bf16Bits& out) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  out.bits = static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

/// Codes one block whose missing elements, if it is short, are zeros.
NF4_BODY int64_t quantise_block(const float* x, bool is_short, uint8_t* codes, float* absmax) {
  // The largest |x| as an integer: non-negative floats order like their bits, and NaN comes out on top.
  uint32_t top = 0;
  for (int i = 0; i < kNf4Block; ++i) top = std::max(top, std::bit_cast<uint32_t>(x[i]) & 0x7fffffffu);
  int64_t num_bad = 0;
  if (top >= kInfinity) {
    for (int i = 0; i < kNf4Block; ++i) num_bad += (std::bit_cast<uint32_t>(x[i]) & 0x7fffffffu) >= kInfinity;
  }

  const float divisor = std::max(std::bit_cast<float>(top), kNf4SmallestDivisor);
  float scaled[kNf4Block];
  if (is_short) {
    for (int i = 0; i < kNf4Block; ++i) scaled[i] = x[i] / divisor;
    *absmax = divisor;
  } else {
    const float reciprocal = 1.0f / divisor;
    for (int i = 0; i < kNf4Block; ++i) scaled[i] = x[i] * reciprocal;
    *absmax = std::bit_cast<float>(top);
  }

  int32_t code[kNf4Block];
  for (int i = 0; i < kNf4Block; ++i) {
    int32_t above = 0;
    for (int t = 0; t < 15; ++t) above += scaled[i] > kCode.thresholds[t] ? 1 : 0;
    code[i] = above;
  }
  for (int i = 0; i < kNf4Block / 2; ++i) codes[i] = static_cast<uint8_t>(code[2 * i] << 4 | code[2 * i + 1]);
  return num_bad;
}

template <typename T>
NF4_BODY int64_t quantise(const T* weight, int64_t num_elements, uint8_t* codes, float* absmax) {
  int64_t num_bad = 0;
  float x[kNf4Block];
  const int64_t num_whole = num_elements / kNf4Block;
  for (int64_t b = 0; b < num_whole; ++b) {
    for (int i = 0; i < kNf4Block; ++i) x[i] = to_float(weight[b * kNf4Block + i]);
    num_bad += quantise_block(x, false, codes + b * kNf4Block / 2, absmax + b);
  }
  if (const int64_t rest = num_elements % kNf4Block; rest != 0) {
    uint8_t last[kNf4Block / 2];
    std::fill(x, x + kNf4Block, 0.0f);
    for (int64_t i = 0; i < rest; ++i) x[i] = to_float(weight[num_whole * kNf4Block + i]);
    num_bad += quantise_block(x, true, last, absmax + num_whole);
    std::memcpy(codes + num_whole * kNf4Block / 2, last, (rest + 1) / 2);
  }
  return num_bad;
}

template <typename Part>
NF4_BODY const Part* of_unit(const Part* part, const Nf4View& view, int64_t unit) {
  return reinterpret_cast<const Part*>(reinterpret_cast<const uint8_t*>(part) + unit * view.unit_stride);
}

NF4_BODY float absmax_of(const Nf4View& view, int64_t unit, int64_t block) {
  if (view.absmax != nullptr) return of_unit(view.absmax, view, unit)[block];
  const int64_t whole_block =
      view.first_block + block / view.blocks_per_row * view.whole_blocks_per_row + block % view.blocks_per_row;
  return kMap.values[of_unit(view.absmax_codes, view, unit)[block]] *
             of_unit(view.nested_absmax, view, unit)[whole_block / kNf4NestedBlock] +
         *of_unit(view.offset, view, unit);
}

template <typename T>
NF4_BODY void dequantise(const Nf4View& view, int64_t unit, int64_t first_block, int64_t num_elements, T* out) {
  const uint8_t* codes = of_unit(view.codes, view, unit);
  float values[kNf4Block];
  for (int64_t begin = 0; begin < num_elements; begin += kNf4Block) {
    const int64_t block = first_block + begin / kNf4Block;
    const float absmax = absmax_of(view, unit, block);
    const int64_t count = std::min(kNf4Block, num_elements - begin);
    const uint8_t* bytes = codes + block * kNf4Block / 2;
    for (int64_t i = 0; i < (count + 1) / 2; ++i) std::memcpy(values + 2 * i, &kPairs[bytes[i]], sizeof(Pair));
    if (count == kNf4Block) {
      for (int i = 0; i < kNf4Block; ++i) round_to(values[i] * absmax, out[begin + i]);
    } else {
      for (int64_t i = 0; i < count; ++i) round_to(values[i] * absmax, out[begin + i]);
    }
  }
}

}  // namespace

NF4_EACH_CPU int64_t nf4_quantise_cpu(const float* weight, int64_t num_elements, uint8_t* codes, float* absmax) {
  return quantise(weight, num_elements, codes, absmax);
}
NF4_EACH_CPU int64_t nf4_quantise_cpu(const Bf16Bits* weight, int64_t num_elements, uint8_t* codes, float* absmax) {
  return quantise(weight, num_elements, codes, absmax);
}
NF4_EACH_CPU void nf4_dequantise_cpu(const Nf4View& view, int64_t unit, int64_t first_block, int64_t num_elements,
                                     float* out) {
  dequantise(view, unit, first_block, num_elements, out);
}
NF4_EACH_CPU void nf4_dequantise_cpu(const Nf4View& view, int64_t unit, int64_t first_block, int64_t num_elements,
                                     Bf16Bits* out) {
  dequantise(view, unit, first_block, num_elements, out);
}
NF4_EACH_CPU void nf4_dequantise_cpu(const Nf4View& view, int64_t unit, int64_t first_block, int64_t num_elements,
                                     double* out) {
  dequantise(view, unit, first_block, num_elements, out);
}

}  // namespace moetune
