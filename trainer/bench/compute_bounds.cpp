#include "trainer/bench/compute_bounds.h"

#include <torch/csrc/autograd/autograd.h>

#include <numeric>

#include "lora/frozen_weight.h"
#include "lora/grouped_mm.h"
#include "moe/attention/packed_attention.h"
#include "parallel/base/error.h"

namespace moetune {
namespace {

/// A linear map of a model; of a tiny one, as wide on CPUs as on GPUs.
struct Map {
  const char* name;
  int64_t inputs, outputs;
  bool tiny = false;
};
constexpr Map kDense[] = {{"deepseek_q_a", 7168, 1536},
                          {"deepseek_q_b", 1536, 24576},
                          {"deepseek_o", 16384, 7168},
                          {"qwen3_q", 2048, 4096},
                          {"tiny", 128, 256, true}};
/// Gate and up of an expert as one.
constexpr Map kGrouped[] = {{"deepseek_gate_up", 7168, 4096}, {"qwen3_gate_up", 2048, 1536}, {"tiny", 128, 256, true}};
constexpr Map kDequantised = {"deepseek_up", 7168, 2048};

constexpr int64_t kUsualDocument = 4096;

/// What fills a device and takes a CPU well under a second.
struct Sizes {
  explicit Sizes(const Meter& meter)
      : options(at::TensorOptions(meter.device().is_cuda() ? at::kBFloat16 : at::kFloat).device(meter.device())),
        gpu(meter.device().is_cuda()) {}
  Map cut(const Map& map) const {
    const int64_t shrunk = gpu || map.tiny ? 1 : 4;
    return {map.name, map.inputs / shrunk, map.outputs / shrunk, map.tiny};
  }
  std::string dtype() const { return gpu ? "bf16" : "fp32"; }

  at::TensorOptions options;
  bool gpu;
  int64_t rows = gpu ? 4096 : 256;                               ///< T
  int64_t experts = gpu ? 16 : 2;                                ///< of a chunk
  int64_t units = gpu ? 16 : 64;                                 ///< of packed weights: beyond any cache
  int64_t document = gpu ? kUsualDocument : kUsualDocument / 8;  ///< tokens
  int64_t head_share = gpu ? 1 : 8;                              ///< what latent attention's heads are divided by
};

double product_flops(int64_t rows, const Map& map) {
  return 2.0 * static_cast<double>(rows) * static_cast<double>(map.inputs) * static_cast<double>(map.outputs);
}

/// Documents of `length` tokens on a GPU, as many as fill a slice; `suffix` is the end of the figures' names.
void measure_attention_of(Meter& meter, const Sizes& sizes, const std::string& name, const AttentionSpec& spec,
                          int64_t length, const std::string& suffix) {
  const int64_t L = length * sizes.document / kUsualDocument, documents = std::max<int64_t>(1, sizes.document / L);
  const int64_t U = documents * L, H = spec.heads, G = spec.kv_heads;
  std::vector<int64_t> position_U(static_cast<size_t>(U)), token_U(static_cast<size_t>(U));
  std::iota(token_U.begin(), token_U.end(), int64_t{0});
  for (int64_t i = 0; i < U; ++i) position_U[static_cast<size_t>(i)] = i % L;
  const Slice slice =
      make_slices(std::vector<int64_t>(static_cast<size_t>(documents), L), position_U, token_U, U, meter.device())
          .at(0);
  const at::Tensor q_UHA = at::randn({U, H, spec.key_dim()}, sizes.options).requires_grad_(),
                   k_UGA = at::randn({U, G, spec.key_dim()}, sizes.options).requires_grad_(),
                   v_UGA = at::randn({U, G, spec.value_dim}, sizes.options).requires_grad_(),
                   d_y_UHA = at::randn({U, H, spec.value_dim}, sizes.options);
  const double pairs = 0.5 * static_cast<double>(U) * static_cast<double>(L + 1);
  const double flops = pairs * static_cast<double>(H * 2 * (spec.key_dim() + spec.value_dim));
  const std::string shape = str(documents, " x S ", L, ", ", H, " heads, ", G, " of keys, widths ", spec.key_dim(),
                                " and ", spec.value_dim, ", causal, ", sizes.dtype());
  meter.measure({"attention." + name + ".forward" + suffix, "FLOP/s", flops, shape}, Meter::Where::kDevice, [&] {
    const at::NoGradGuard no_grad;
    return packed_attention(q_UHA, k_UGA, v_UGA, slice, spec);
  });
  const at::Tensor y_UHA = packed_attention(q_UHA, k_UGA, v_UGA, slice, spec);
  meter.measure({"attention." + name + ".backward" + suffix, "FLOP/s", 2.5 * flops, shape}, Meter::Where::kDevice, [&] {
    return torch::autograd::grad({y_UHA}, {q_UHA, k_UGA, v_UGA}, {d_y_UHA}, /*retain_graph=*/true).front();
  });
}

void measure_attention_of(Meter& meter, const Sizes& sizes, const std::string& name, const AttentionSpec& spec) {
  measure_attention_of(meter, sizes, name, spec, kUsualDocument, "");
  for (const int64_t length : {256, 1024, 16384}) {
    measure_attention_of(meter, sizes, name, spec, length, str(".s", length));
  }
}

}  // namespace

void measure_products(Meter& meter) {
  const at::NoGradGuard no_grad;
  const Sizes sizes(meter);
  for (const Map& whole : kDense) {
    const Map map = sizes.cut(whole);
    const at::Tensor x_TI = at::randn({sizes.rows, map.inputs}, sizes.options),
                     w_OI = at::randn({map.outputs, map.inputs}, sizes.options);
    const std::string shape = str("T ", sizes.rows, ", K ", map.inputs, ", N ", map.outputs, ", ", sizes.dtype());
    meter.measure({str("dense.", map.name), "FLOP/s", product_flops(sizes.rows, map), shape}, Meter::Where::kDevice,
                  [&] { return at::linear(x_TI, w_OI); });
  }
}

void measure_grouped_products(Meter& meter) {
  const at::NoGradGuard no_grad;
  const Sizes sizes(meter);
  for (const Map& whole : kGrouped) {
    const Map map = sizes.cut(whole);
    const at::Tensor w_eOI = at::randn({sizes.experts, map.outputs, map.inputs}, sizes.options);
    for (const int64_t rows : {64, 128, 512, 1024}) {
      const RowGroups groups =
          RowGroups::from_counts(std::vector<int64_t>(static_cast<size_t>(sizes.experts), rows), meter.device());
      const at::Tensor x_XI = at::randn({groups.num_rows(), map.inputs}, sizes.options);
      const std::string shape = str(sizes.experts, " experts, ", rows, " rows each, K ", map.inputs, ", N ",
                                    map.outputs, ", ", sizes.dtype());
      meter.measure({str("grouped.", map.name, ".rows", rows), "FLOP/s", product_flops(groups.num_rows(), map), shape},
                    Meter::Where::kDevice, [&] { return grouped_mm(x_XI, w_eOI.transpose(1, 2), groups); });
    }
  }
}

void measure_attention(Meter& meter) {
  const Sizes sizes(meter);
  AttentionSpec latent;
  latent.kind = AttentionSpec::Kind::kLatent;
  latent.heads = latent.kv_heads = 128 / sizes.head_share;
  latent.nope_dim = 128;
  latent.rotary_dim = 64;
  latent.value_dim = 128;
  latent.softmax_scale = 0.07;  // about 1 / sqrt(192)
  measure_attention_of(meter, sizes, "latent", latent);
  AttentionSpec grouped;
  grouped.kind = AttentionSpec::Kind::kGroupedQuery;
  grouped.heads = 32;
  grouped.kv_heads = 4;
  grouped.rotary_dim = grouped.value_dim = 128;
  grouped.softmax_scale = 0.09;  // about 1 / sqrt(128)
  measure_attention_of(meter, sizes, "grouped_query", grouped);
}

void measure_dequantising(Meter& meter) {
  const at::NoGradGuard no_grad;
  const Sizes sizes(meter);
  const Map map = sizes.cut(kDequantised);
  const FrozenShape held{BaseFormat::kNf4, sizes.units, map.outputs, map.inputs};
  FrozenWeight weight(held, meter.device(), at::typeMetaToScalarType(sizes.options.dtype()));
  for (int64_t unit = 0; unit < held.units; ++unit)
    weight.set(unit, at::randn({map.outputs, map.inputs}, sizes.options));
  Scratch scratch(meter.device(), weight.compute());
  scratch.reserve(weight.scratch_elements());
  DequantCounters counters;
  const double numbers = static_cast<double>(held.units * held.held_elements());
  const double bytes = static_cast<double>(held.units * held.unit_bytes()) +
                       numbers * static_cast<double>(c10::elementSize(weight.compute()));
  const std::string shape = str(held.units, " x ", map.outputs, " x ", map.inputs, ", NF4 to ", sizes.dtype());
  meter.measure({{"nf4.dequantise", "numbers/s", numbers, shape}, {"nf4.dequantise_bytes", "B/s", bytes, shape}},
                Meter::Where::kDevice, [&] {
                  scratch.reset();
                  return weight.dense_units(0, held.units, scratch, counters);
                });
}

}  // namespace moetune
