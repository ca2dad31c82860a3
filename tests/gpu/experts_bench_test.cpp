// How long the pieces of DeepSeek-V3's routed experts take on this GPU, and how fast they move bytes or multiply: a
// chunk of 24 experts of a layer, and 16,384 tokens that choose 8 of 256. Run when asked for: gpu_tests "[.bench]".
#include <c10/cuda/CUDAFunctions.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <functional>
#include <vector>

#include "moe/expert_mlp.h"
#include "moe/row_gather.h"
#include "tests/support/catch.h"

using namespace moetune;

namespace {

constexpr int64_t T = 16384, D = 7168, F = 2048, E = 256, K = 8, kChunk = 24;

/// Median of 15 runs of 4, in seconds, by the device's clock.
double seconds_of(const std::function<void()>& run) {
  cudaEvent_t begin, end;
  cudaEventCreate(&begin);
  cudaEventCreate(&end);
  std::vector<float> times;
  for (int i = 0; i < 17; ++i) {
    cudaEventRecord(begin, nullptr);
    for (int j = 0; j < 4; ++j) run();
    cudaEventRecord(end, nullptr);
    cudaEventSynchronize(end);
    float ms = 0;
    cudaEventElapsedTime(&ms, begin, end);
    if (i >= 2) times.push_back(ms / 4);
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  std::sort(times.begin(), times.end());
  return times[times.size() / 2] * 1e-3;
}

void bytes_of(const char* name, int64_t numbers, const std::function<void()>& run) {
  const double s = seconds_of(run);
  std::printf("%-52s %9.1f us  %6.2f TB/s\n", name, s * 1e6, static_cast<double>(numbers) * 2 / s / 1e12);
}

void flops_of(const char* name, double flops, const std::function<void()>& run) {
  const double s = seconds_of(run);
  std::printf("%-52s %9.1f us  %6.1f TFLOP/s\n", name, s * 1e6, flops / s / 1e12);
}

}  // namespace

TEST_CASE("Speed of routed experts", "[.bench]") {
  at::manual_seed(5);
  at::NoGradGuard no_grad;
  const auto bf16 = at::device(at::kCUDA).dtype(at::kBFloat16);
  const at::Tensor expert_TK = std::get<1>(at::rand({T, E}, at::kCUDA).topk(K, 1));
  const auto [sorted, slot_X] = expert_TK.flatten().sort(/*stable=*/true, 0, false);
  const at::Tensor all_row_X = slot_X.floor_divide(K), place_TK = places_of(slot_X, T, K);
  const at::Tensor loads = at::bincount(sorted, {}, E).cpu();
  const std::vector<int64_t> counts(loads.data_ptr<int64_t>(), loads.data_ptr<int64_t>() + kChunk);
  const ExpertChunk chunk{0, kChunk, 0, RowGroups::from_counts(counts, at::kCUDA)};
  const int64_t X = chunk.groups.num_rows();
  const at::Tensor row_X = all_row_X.narrow(0, 0, X);
  const int64_t touched = place_TK.lt(X).any(1).sum().item<int64_t>();
  std::printf("%lld rows of a chunk, of %lld tokens\n", static_cast<long long>(X), static_cast<long long>(touched));

  const at::Tensor y_TD = at::randn({T, D}, bf16), rows_XD = at::randn({X, D}, bf16), copy_TD = at::empty_like(y_TD);
  at::Tensor sum_TD = at::randn({T, D}, bf16);
  bytes_of("copy", 2 * T * D, [&] { copy_TD.copy_(y_TD); });
  bytes_of("gather_rows", 2 * X * D, [&] { gather_rows(y_TD, row_X); });
  bytes_of("gather_rows, 32 columns to spare", 2 * X * D, [&] { gather_rows(y_TD, row_X, D + 32); });
  bytes_of("index_select", 2 * X * D, [&] { y_TD.index_select(0, row_X); });
  bytes_of("gather_sum", (X + 2 * touched) * D, [&] { gather_sum(rows_XD, {row_X, place_TK, 0}, sum_TD); });
  bytes_of("index_add_", 3 * X * D, [&] { sum_TD.index_add_(0, row_X, rows_XD); });
  bytes_of("places_of (bytes of its result)", 2 * T * K, [&] { places_of(slot_X, T, K); });

  const at::Tensor gate_up = at::randn({X, 2 * F}, bf16), weight_X = at::rand({X}, bf16), d_h = at::randn({X, F}, bf16);
  const at::Tensor scratch_d_h = d_h.clone();
  for (const bool alternating : {false, true}) {
    const ActivationForm form{alternating ? ExpertSpec::Activation::kClampedSwiglu : ExpertSpec::Activation::kSwiglu,
                              7.0, 1.702, alternating};
    std::printf("%s\n", alternating ? "clamped, alternating" : "swiglu, side by side");
    bytes_of("gated_activation", 3 * X * F, [&] { gated_activation(form, gate_up, weight_X); });
    bytes_of("gated_activation_backward", 5 * X * F,
             [&] { gated_activation_backward(form, gate_up, weight_X, d_h, {.keep_gate_up = true}); });
    bytes_of("gated_activation_backward, h again", 6 * X * F, [&] {
      gated_activation_backward(form, gate_up, weight_X, scratch_d_h, {.keep_gate_up = true, .hidden = true});
    });
  }

  for (const int64_t rank : {int64_t{0}, int64_t{16}}) {
    for (const bool folded : {false, true}) {
      if (rank == 0 && folded) continue;
      std::printf("%s\n", rank == 0 ? "no adapters" : folded ? "rank 16 on all maps, folded" : "rank 16 on all maps");
      ParameterSet parameters(at::kCUDA, at::kBFloat16);
      const auto map = [&](const std::string& name, int64_t outputs, int64_t inputs) {
        ParameterInfo info;
        info.name = "experts.*." + name;
        info.num_experts = kChunk;
        auto frozen = std::make_unique<FrozenWeight>(FrozenShape{BaseFormat::kNf4Double, kChunk, outputs, inputs},
                                                     at::kCUDA, at::kBFloat16);
        for (int64_t e = 0; e < kChunk; ++e) frozen->set(e, at::randn({outputs, inputs}, bf16) * 0.02);
        std::unique_ptr<Adapter> adapter;
        if (rank > 0) {
          adapter =
              std::make_unique<Adapter>(AdapterSpec{rank, 2.0, 0.0}, info, kChunk, outputs, inputs, 1, parameters);
          adapter->b().working.normal_(0.0, 0.02);
        }
        return std::make_unique<GroupedLinear>(std::move(frozen), std::move(adapter));
      };
      ExpertSpec spec;
      spec.width = F;
      auto gate = map("gate", F, D), up = map("up", F, D), down = map("down", D, F);
      std::vector<GroupedLinear*> both{gate.get(), up.get()};
      ExpertMlp mlp(spec, std::move(gate), std::move(up), std::move(down));
      mlp.fold_adapters(folded);
      GroupedMaps gate_up_maps(both);
      gate_up_maps.fold(folded);
      Scratch scratch(at::kCUDA, at::kBFloat16);
      scratch.reserve(kChunk * mlp.scratch_elements_per_expert());
      DequantCounters counters;
      PassContext pass{scratch, counters, {}};
      bytes_of("dequantise gate and up (bytes written)", kChunk * 2 * F * D, [&] {
        gate_up_maps.dense(chunk, {}, scratch, counters);
        scratch.reset();
      });
      const double product = 2.0 * static_cast<double>(X) * 2 * F * D;
      const GroupedMaps::Dense dense = gate_up_maps.dense(chunk, {}, scratch, counters);
      const at::Tensor x = gather_rows(y_TD, row_X, mlp.x_columns({})),
                       d = at::randn({X, 2 * F + gate_up_maps.spare({})}, bf16),
                       d_out = gather_rows(y_TD, row_X, mlp.d_out_columns({}));
      flops_of("gate and up", product, [&] { gate_up_maps.forward(x, dense, chunk, {}, {}); });
      flops_of("gate and up, input gradient", product, [&] { gate_up_maps.input_gradient(d, dense, chunk, {}, {}); });
      if (rank > 0) {
        const auto of_input = gate_up_maps.input_gradient(d, dense, chunk, {}, {});
        bytes_of("gate and up, gradients of adapters (bytes of x, dy)", X * (D + 2 * F),
                 [&] { gate_up_maps.add_gradients(d, x, of_input, dense, chunk, {}, {}, {}, true); });
      }
      scratch.reset();
      flops_of("a chunk, forward with dequantising", 1.5 * product, [&] {
        mlp.forward(chunk, {x, weight_X, {}}, pass);
        scratch.reset();
      });
      flops_of("a chunk, backward with dequantising", 2.5 * product, [&] {
        mlp.backward(chunk, {x, weight_X, {}}, d_out, pass);
        scratch.reset();
      });
    }
  }
}
