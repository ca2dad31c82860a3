// NF4 on a GPU against NF4 on the CPU, bit for bit, and the bandwidth of both kernels.
#include "tests/support/catch.h"

#include <c10/cuda/CUDAFunctions.h>

#include <chrono>
#include <cstdio>
#include <functional>
#include <limits>

#include "lora/formats/nf4.h"
#include "lora/frozen_weight.h"
#include "parallel/base/error.h"

using namespace moetune;

namespace {

bool same_bits(const at::Tensor& a, const at::Tensor& b) {
  return a.scalar_type() == b.scalar_type() && a.sizes() == b.sizes() &&
         at::equal(a.view(-1).view(at::kByte), b.cpu().view(-1).view(at::kByte));
}

/// Weights that meet every branch: ordinary blocks of very different size, zeros, subnormals, huge values, exact ties.
at::Tensor weights(int64_t num_elements) {
  const at::Tensor index = at::arange(num_elements, at::kDouble);
  at::Tensor weight = (at::sin(index * 1.7) * at::exp(4 * at::sin(index.div(64, "floor")))).to(at::kFloat);
  const auto block = [&](int64_t b) {
    return weight.slice(0, std::min(b * 64, num_elements), std::min(b * 64 + 64, num_elements));
  };
  block(1).zero_();
  block(2).zero_().neg_();
  block(3).mul_(1e-40);
  block(4).mul_(1e36);
  const at::Tensor ties = block(5);
  if (ties.numel() == 64) {
    ties.copy_(at::tensor({-0.8480964004993439f, -0.6106329262256622f, -0.4599952697753906f, -0.33967943489551544f,
                           -0.23460740596055984f, -0.13791173323988914f, -0.045525018125772476f, 0.03979014977812767f,
                           0.1202552504837513f, 0.2035212516784668f, 0.2920137718319893f, 0.3893125355243683f,
                           0.5016634166240692f, 0.6427869200706482f, 0.8614784181118011f, 1.0f})
                   .repeat({4}));
  }
  return weight;
}

double best_seconds(const std::function<void()>& run) {
  double best = std::numeric_limits<double>::infinity();
  for (int i = 0; i < 10; ++i) {
    c10::cuda::device_synchronize();
    const auto start = std::chrono::steady_clock::now();
    for (int j = 0; j < 5; ++j) run();
    c10::cuda::device_synchronize();
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() / 5);
  }
  return best;
}

}  // namespace

TEST_CASE("NF4 on CUDA equals NF4 on the CPU bit for bit", "[nf4]") {
  for (const int64_t num_elements : {1, 2, 63, 64, 65, 330, 64 * 256, 64 * 777 + 31, 3 << 20}) {
    for (const auto dtype : {at::kFloat, at::kBFloat16, at::kHalf, at::kDouble}) {
      for (const bool double_quantise : {false, true}) {
        INFO(num_elements << " elements of " << at::toString(dtype) << (double_quantise ? ", double" : ", single"));
        at::Tensor weight = weights(num_elements);
        if (dtype == at::kHalf) weight.clamp_(-6e4, 6e4);
        weight = weight.to(dtype);
        const Nf4Tensor cpu = nf4_quantise(weight, double_quantise);
        const Nf4Tensor gpu = nf4_quantise(weight.cuda(), double_quantise);
        CHECK(same_bits(cpu.codes, gpu.codes));
        if (double_quantise) {
          CHECK(same_bits(cpu.double_absmax->codes, gpu.double_absmax->codes));
          CHECK(same_bits(cpu.double_absmax->nested_absmax, gpu.double_absmax->nested_absmax));
          CHECK(same_bits(cpu.double_absmax->offset, gpu.double_absmax->offset));
        } else {
          CHECK(same_bits(cpu.absmax, gpu.absmax));
        }
        for (const auto out_dtype : {at::kFloat, at::kBFloat16, at::kDouble}) {
          const at::Tensor out = at::empty({num_elements}, out_dtype),
                           out_gpu = at::full({num_elements + 64}, 5.0, out.options().device(at::kCUDA));
          nf4_dequantise_into(cpu, out);
          nf4_dequantise_into(gpu, out_gpu.slice(0, 0, num_elements));
          CHECK(same_bits(out, out_gpu.slice(0, 0, num_elements)));
          CHECK((out_gpu.slice(0, num_elements) == 5.0).all().item<bool>());
        }
      }
    }
  }
}

TEST_CASE("Units of a stack, whole or cut, are the same on CUDA as on the CPU", "[nf4]") {
  constexpr int64_t E = 5, O = 128, I = 384;
  const at::Tensor stack = weights(E * O * I).view({E, O, I}).contiguous();
  DequantCounters counters;
  for (const BaseFormat format : {BaseFormat::kNf4, BaseFormat::kNf4Double}) {
    for (const MatrixCut& cut :
         {MatrixCut{}, MatrixCut{MatrixCut::Dim::kOutputs, 1, 2}, MatrixCut{MatrixCut::Dim::kInputs, 2, 3}}) {
      std::vector<at::Tensor> dense;
      for (const at::Device device : {at::Device(at::kCPU), at::Device(at::kCUDA)}) {
        Scratch scratch(device, at::kBFloat16);
        scratch.reserve(E * O * I);
        FrozenWeight weight({format, E, O, I, cut}, device, at::kBFloat16);
        for (int64_t e = 0; e < E; ++e) weight.set(e, stack[e]);
        dense.push_back(weight.dense_units(1, 3, scratch, counters).cpu());
        // Units and rows apart, among numbers that stay.
        for (const int64_t gap : {0, 8}) {
          at::Tensor among = at::full({3, weight.shape().held_outputs() + 5, weight.shape().held_inputs() + gap}, 7.0,
                                      at::device(device).dtype(at::kBFloat16));
          const at::Tensor place =
              among.narrow(1, 2, weight.shape().held_outputs()).narrow(2, 0, weight.shape().held_inputs());
          weight.dense_units_into(1, 3, place, scratch, counters);
          CHECK(same_bits(place.contiguous().cpu(), dense.back()));
          CHECK(among.eq(7.0).sum().item<int64_t>() >= among.numel() - place.numel());
          place.fill_(7.0);
          CHECK(among.eq(7.0).all().item<bool>());
        }
      }
      CHECK(same_bits(dense[0], dense[1]));
    }
  }
}

TEST_CASE("NF4 on CUDA refuses weights that are not finite", "[nf4]") {
  const at::Tensor weight = at::ones({100}, at::device(at::kCUDA).dtype(at::kBFloat16));
  weight[99] = std::numeric_limits<float>::quiet_NaN();
  weight[0] = std::numeric_limits<float>::infinity();
  try {
    nf4_quantise(weight, true);
    FAIL("accepted NaN");
  } catch (const UserError& error) {
    CHECK(std::string(error.what()).find("2 of 100 weights") != std::string::npos);
  }
}

TEST_CASE("Bandwidth of NF4 on CUDA", "[nf4][bandwidth]") {
  const int64_t num_elements = int64_t{1} << 29;  // 1 GiB of bf16
  const at::Tensor weight = at::randn({num_elements}, at::device(at::kCUDA).dtype(at::kBFloat16));
  for (const bool double_quantise : {false, true}) {
    const Nf4Tensor q = nf4_quantise(weight, double_quantise);
    for (const auto dtype : {at::kBFloat16, at::kFloat, at::kDouble}) {
      const at::Tensor out = at::empty({num_elements}, weight.options().dtype(dtype));
      const double seconds = best_seconds([&] { nf4_dequantise_into(q, out); });
      const double bytes_per_s = static_cast<double>(q.num_bytes() + static_cast<int64_t>(out.nbytes())) / seconds;
      std::printf("dequantise %s to %s: %.3f ms, %.2f TB/s read + written\n", double_quantise ? "double" : "single",
                  at::toString(dtype), seconds * 1e3, bytes_per_s / 1e12);
      CHECK(bytes_per_s > 0.2e12);  // a fraction of any such card's memory: a kernel that fell off its fast path shows
    }
  }
  const double seconds = best_seconds([&] { nf4_quantise(weight, false); });
  std::printf("quantise bf16: %.3f ms, %.1f G weights/s\n", seconds * 1e3,
              static_cast<double>(num_elements) / seconds / 1e9);
}
