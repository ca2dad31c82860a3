#include "trainer/bench/optimizer_bounds.h"

#include <c10/cuda/CUDAFunctions.h>

#include "parallel/base/error.h"
#include "parallel/comm/mesh.h"
#include "trainer/update/optimizer.h"

namespace moetune {

void measure_optimizer(Meter& meter) {
  const bool gpu = meter.device().is_cuda();
  constexpr int64_t kLayers = 4;
  constexpr int64_t kNumbers = 4 << 20;  // of a layer; with moments and gradients all are beyond any cache
  ParameterSet parameters(meter.device(), gpu ? at::kBFloat16 : at::kFloat);
  for (int64_t layer = 0; layer < kLayers; ++layer) {
    ParameterInfo info;
    info.name = str("adapter of layer ", layer);
    info.layer = LayerId::block(layer);
    parameters.add(info, at::randn({kNumbers}, at::kFloat));
  }
  // Ranks beyond the first have a mesh of one rank of their own: each updates all of its numbers.
  Mesh mesh(meter.launch(), {.pp = 1, .dp = 1, .ep = 1, .tp = 1});
  const Partition partition(parameters, mesh);
  Optimizer optimizer(partition, {});
  const std::vector<at::Tensor> gradients = partition.shards(partition.wide_dtype(), SlabTier::kHost);
  for (const at::Tensor& gradient : gradients) gradient.normal_();
  const int64_t numbers = kLayers * kNumbers;
  meter.measure({"optimizer.adamw", "numbers/s", static_cast<double>(numbers),
                 str(kLayers, " layers of ", kNumbers, ", fp32 masters, new values in ", gpu ? "bf16" : "fp32")},
                Meter::Where::kHost, [&] {
                  // Clipped, as most steps are.
                  optimizer.step(/*lr=*/1e-6, /*gradient_factor=*/0.9999, gradients);
                  optimizer.flush();
                  // The next update writes where the new values are copied from.
                  if (gpu) c10::cuda::device_synchronize();
                  return optimizer.shards().front().master;
                });
}

}  // namespace moetune
