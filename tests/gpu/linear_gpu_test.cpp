// A frozen map with an adapter on a GPU against the plain expression in fp64, with dropout, a bias and a part of the
// outputs.
#include "lora/linear.h"

#include <torch/csrc/autograd/autograd.h>

#include "tests/support/catch.h"
#include "tests/support/gpu_numbers.h"

using namespace moetune;

TEST_CASE("An adapted map on CUDA is that of the CPU", "[linear]") {
  uint64_t seed = 1;
  for (const auto dtype : kKernelDtypes) {
    for (const std::vector<int64_t>& shape :
         {std::vector<int64_t>{130, 256, 96, 16}, {7, 65, 33, 3}, {1, 64, 9, 1}, {0, 64, 24, 4}}) {
      const int64_t T = shape[0], I = shape[1], O = shape[2], R = shape[3];
      for (const double dropout : {0.0, 0.25}) {
        for (const bool part : {false, true}) {
          INFO(at::toString(dtype) << " [" << T << ", " << I << "] to " << O << ", rank " << R << ", dropout "
                                   << dropout << (part ? ", a part, with a bias" : ""));
          const int64_t held = part ? O + 5 : O, first = part ? 3 : 0;
          const at::Tensor w = random_normal({O, I}, ++seed) / std::sqrt(static_cast<double>(I)),
                           x = random_normal({T, I}, ++seed), d = random_normal({T, O}, ++seed),
                           b = random_normal({held, R}, ++seed), bias = random_normal({held}, ++seed);
          std::vector<std::vector<at::Tensor>> results;
          for (const bool on_gpu : {true, false}) {
            const at::Device device = on_gpu ? at::kCUDA : at::kCPU;
            const at::ScalarType compute = on_gpu ? dtype : at::kDouble;
            const auto numbers = [&](const at::Tensor& t) { return as_seen(t, dtype).to(device, compute); };
            ParameterSet parameters(device, compute);
            ParameterInfo info;
            info.name = "map";
            auto adapter = std::make_unique<Adapter>(AdapterSpec{R, 0.7, dropout}, info, 0, held, I, 1, parameters);
            adapter->a().working.detach().copy_(as_seen(adapter->a().master(), dtype));
            adapter->b().working.detach().copy_(as_seen(b, dtype));
            Scratch scratch(device, compute);
            scratch.reserve(O * I + 64);
            DequantCounters counters;
            auto frozen = std::make_unique<FrozenWeight>(FrozenShape{BaseFormat::kFp32, 1, O, I}, device, compute);
            frozen->set(0, as_seen(w.to(at::kBFloat16), dtype).to(device));
            frozen->use(scratch, counters);
            const at::Tensor bias_O = part ? leaf(numbers(bias)) : at::Tensor();
            std::vector<at::Tensor> inputs{leaf(numbers(x)), adapter->a().working, adapter->b().working};
            if (part) inputs.push_back(bias_O);
            const Linear linear(std::move(frozen), std::move(adapter), bias_O,
                                part ? OutputRange{first, O} : OutputRange{});
            if (on_gpu) poison_freed_memory({T, O}, compute);
            const at::Tensor y =
                linear.forward(inputs[0], at::arange(T, at::device(device).dtype(at::kLong)), {5, 2, true});
            if (on_gpu) poison_freed_memory({T, I}, compute);
            std::vector<at::Tensor> result = torch::autograd::grad({y}, inputs, {numbers(d)});
            result.push_back(y);
            results.push_back(result);
          }
          for (size_t i = 0; i < results[0].size(); ++i) {
            REQUIRE(results[0][i].sizes() == results[1][i].sizes());
            if (results[1][i].numel() == 0 || T == 0) {
              CHECK(results[0][i].isfinite().all().item<bool>());
              continue;
            }
            // bf16 holds x A^T and d y B, too, which are sums of few numbers that may cancel.
            CHECK(distance_fp64(results[0][i], results[1][i]) < 2 * tolerance(dtype));
          }
        }
      }
    }
  }
}

TEST_CASE("Dropout on CUDA is that of the CPU bit for bit", "[linear]") {
  for (const auto dtype : kKernelDtypes) {
    for (const auto& [rows, width] : std::vector<std::pair<int64_t, int64_t>>{{9, 512}, {70000, 8}, {5, 33}, {0, 64}}) {
      const at::Tensor x = random_normal({rows, width + 8}, 1).to(dtype).narrow(1, 8, width);
      const at::Tensor token = at::arange(rows, at::kLong) * 1000003;
      std::vector<at::Tensor> dropped;
      for (const at::Device device : {at::Device(at::kCPU), at::Device(at::kCUDA)}) {
        ParameterSet parameters(device, dtype);
        ParameterInfo info;
        info.name = "map";
        const Adapter adapter(AdapterSpec{1, 1.0, 0.3}, info, 0, 4, 3 * width, 1, parameters,
                              MatrixCut{MatrixCut::Dim::kInputs, 1, 3});
        if (device.is_cuda()) poison_freed_memory({rows, width}, dtype);
        dropped.push_back(adapter.drop(x.to(device), token.to(device), {77, 3, true}));
      }
      CHECK(at::equal(dropped[1].cpu(), dropped[0]));
      if (rows > 0) CHECK(dropped[0].eq(0).to(at::kFloat).mean().item<double>() == Approx(0.3).margin(0.1));
    }
  }
}
