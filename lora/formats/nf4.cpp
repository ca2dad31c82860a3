#include "lora/formats/nf4.h"

#include <ATen/Parallel.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <atomic>
#include <numeric>

#include "lora/formats/nf4_blocks.h"
#include "lora/formats/nf4_cpu.h"
#include "lora/formats/nf4_kernels.h"
#include "parallel/base/ceil_div.h"
#include "parallel/base/error.h"

namespace moetune {
namespace {

constexpr int64_t kBlocksPerTask = 1024;  // 64k elements: some 30 us of a thread
constexpr int64_t kGridPoints = 1 << 16;

/// The code of every point of a grid over [-1, 1]: number of midpoints of the map below it.
const at::Tensor& grid_codes() {
  static const at::Tensor codes = [] {
    static constexpr Nf4DynamicMap kMap = nf4_dynamic_map();
    const at::Tensor map = at::from_blob(const_cast<float*>(kMap.values), {256}, at::kFloat);
    const at::Tensor midpoints = (map.slice(0, 0, 255) + map.slice(0, 1, 256)) * 0.5;
    const at::Tensor grid = at::arange(kGridPoints, at::kFloat) * 2 / static_cast<double>(kGridPoints - 1) - 1;
    return at::bucketize(grid, midpoints).to(at::kByte);
  }();
  return codes;
}

/// Mean of all values. Sums of runs too short for torch to split over threads are added in double, in order.
at::Tensor mean_of(const at::Tensor& values) {
  constexpr int64_t kRun = at::internal::GRAIN_SIZE - 1;
  double sum = 0.0;
  for (const at::Tensor& run : values.cpu().split(kRun)) sum += at::sum(run).item<float>();
  const double mean = values.numel() > 0 ? sum / static_cast<double>(values.numel()) : 0.0;
  return at::full({1}, static_cast<float>(mean), values.options());
}

template <typename T>
T* pointer(const at::Tensor& tensor) {
  return reinterpret_cast<T*>(tensor.data_ptr());
}

void check_aligned(const at::Tensor& tensor, const char* what) {
  MT_CHECK(reinterpret_cast<uintptr_t>(tensor.data_ptr()) % 16 == 0, "NF4 on CUDA: ", what, " is not 16-byte aligned");
}

template <typename T>
int64_t quantise(const at::Tensor& weight, const at::Tensor& codes, const at::Tensor& absmax) {
  const int64_t num_elements = weight.numel();
  if (weight.is_cuda()) {
    const c10::cuda::CUDAGuard guard(weight.device());
    check_aligned(weight, "weight");
    const at::Tensor num_bad = at::zeros({1}, weight.options().dtype(at::kLong));
    nf4_quantise_cuda(pointer<const T>(weight), num_elements, pointer<uint8_t>(codes), pointer<float>(absmax),
                      pointer<unsigned long long>(num_bad), c10::cuda::getCurrentCUDAStream());
    C10_CUDA_CHECK(cudaGetLastError());
    return num_bad.item<int64_t>();
  }
  std::atomic<int64_t> num_bad = 0;
  at::parallel_for(0, absmax.numel(), kBlocksPerTask, [&](int64_t begin, int64_t end) {
    const int64_t first = begin * kNf4Block;
    num_bad += nf4_quantise_cpu(pointer<const T>(weight) + first, std::min(end * kNf4Block, num_elements) - first,
                                pointer<uint8_t>(codes) + first / 2, pointer<float>(absmax) + begin);
  });
  return num_bad;
}

/// Where the units of `out` go. Rows without a gap are one row.
Nf4Rows rows_of(const at::Tensor& out, int64_t elements_per_unit) {
  const bool stacked = out.dim() == 3 && !out.is_contiguous();
  if (!stacked) return {elements_per_unit, elements_per_unit, elements_per_unit};
  MT_CHECK(out.stride(2) == 1, "numbers of a row lie ", out.stride(2), " apart");
  if (out.stride(1) == out.size(2)) return {elements_per_unit, elements_per_unit, out.stride(0)};
  return {out.size(2), out.stride(1), out.stride(0)};
}

template <typename T>
void dequantise(const Nf4View& view, int64_t elements_per_unit, int64_t first_unit, int64_t num_units,
                const at::Tensor& out) {
  const Nf4Rows rows = rows_of(out, elements_per_unit);
  if (out.is_cuda()) {
    const c10::cuda::CUDAGuard guard(out.device());
    constexpr int64_t kWord = 16 / static_cast<int64_t>(sizeof(T));
    MT_CHECK((num_units <= 1 || rows.unit_stride % kWord == 0) &&
                 (rows.contiguous() || (rows.row % kWord == 0 && rows.row_stride % kWord == 0)),
             "NF4 on CUDA: rows of ", rows.row, " numbers every ", rows.row_stride, ", units every ", rows.unit_stride,
             " are not 16-byte aligned");
    MT_CHECK(reinterpret_cast<uintptr_t>(view.codes) % 16 == 0 && view.unit_stride % 16 == 0,
             "NF4 on CUDA: codes are not 16-byte aligned");
    check_aligned(out, "out");
    nf4_dequantise_cuda(view, first_unit, num_units, elements_per_unit, pointer<T>(out), rows,
                        c10::cuda::getCurrentCUDAStream());
    C10_CUDA_CHECK(cudaGetLastError());
    return;
  }
  const int64_t blocks = ceil_div(elements_per_unit, kNf4Block);
  for (int64_t u = 0; u < num_units; ++u) {
    if (!rows.contiguous()) {
      const at::Tensor unit = at::empty({elements_per_unit}, out.options());
      dequantise<T>(view, elements_per_unit, first_unit + u, 1, unit);
      out[u].copy_(unit.view(out[u].sizes()));
      continue;
    }
    T* unit_out = pointer<T>(out) + u * rows.unit_stride;
    at::parallel_for(0, blocks, kBlocksPerTask, [&](int64_t begin, int64_t end) {
      const int64_t first = begin * kNf4Block;
      nf4_dequantise_cpu(view, first_unit + u, begin, std::min(end * kNf4Block, elements_per_unit) - first,
                         unit_out + first);
    });
  }
}

Nf4View view_of(const Nf4Tensor& q) {
  Nf4View view;
  view.codes = pointer<const uint8_t>(q.codes);
  if (!q.double_absmax) {
    view.absmax = pointer<const float>(q.absmax);
    return view;
  }
  view.absmax_codes = pointer<const uint8_t>(q.double_absmax->codes);
  view.nested_absmax = pointer<const float>(q.double_absmax->nested_absmax);
  view.offset = pointer<const float>(q.double_absmax->offset);
  return view;
}

}  // namespace

DoubleQuantisedAbsmax double_quantise_absmax(const at::Tensor& absmax) {
  MT_CHECK(absmax.scalar_type() == at::kFloat && absmax.is_contiguous(), "absmax is fp32 and contiguous, not ",
           absmax.toString());
  const int64_t blocks = absmax.numel(), groups = ceil_div(blocks, kNf4NestedBlock);
  const at::Tensor offset = mean_of(absmax);

  // Zeros that fill up the last group change no maximum.
  const at::Tensor padded = at::constant_pad_nd(absmax.flatten() - offset, {0, groups * kNf4NestedBlock - blocks});
  const at::Tensor grouped = padded.view({groups, kNf4NestedBlock});
  const at::Tensor nested_absmax = std::get<0>(at::max(grouped.abs(), -1));
  // In a group of zeros the reciprocal is infinite and the product NaN: such a group has code 0, whose value times 0 is
  // 0.
  const at::Tensor scaled = at::nan_to_num(grouped * nested_absmax.reciprocal().unsqueeze(-1)).clamp_(-1, 1);
  const at::Tensor point = ((scaled + 1) * 0.5 * static_cast<double>(kGridPoints - 1) + 0.5).to(at::kInt);
  at::Tensor codes = grid_codes().to(absmax.device()).index_select(0, point.flatten()).view(grouped.sizes());
  codes.masked_fill_((nested_absmax == 0).unsqueeze(-1), 0);
  return {codes.flatten().slice(0, 0, blocks).clone(), nested_absmax, offset};
}

int64_t Nf4Tensor::numel() const {
  return std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
}

int64_t Nf4Tensor::num_bytes() const {
  if (!double_absmax) return static_cast<int64_t>(codes.nbytes() + absmax.nbytes());
  return static_cast<int64_t>(codes.nbytes() + double_absmax->codes.nbytes() + double_absmax->nested_absmax.nbytes() +
                              double_absmax->offset.nbytes());
}

Nf4Tensor nf4_quantise(const at::Tensor& weight, bool double_quantise) {
  MT_CHECK(at::isFloatingType(weight.scalar_type()) && weight.is_contiguous(),
           "NF4 takes contiguous floating-point weights, not ", weight.toString());
  const int64_t num_elements = weight.numel();
  Nf4Tensor q;
  q.shape = weight.sizes().vec();
  q.codes = at::empty({ceil_div(num_elements, 2)}, weight.options().dtype(at::kByte));
  q.absmax = at::empty({ceil_div(num_elements, kNf4Block)}, weight.options().dtype(at::kFloat));
  MT_CHECK(q.absmax.numel() < (int64_t{1} << 32), "NF4 counts blocks in 32 bits; ", num_elements,
           " weights are too many");
  const int64_t num_bad = weight.scalar_type() == at::kBFloat16
                              ? quantise<Bf16Bits>(weight, q.codes, q.absmax)
                              : quantise<float>(weight.to(at::kFloat), q.codes, q.absmax);
  if (num_bad > 0) {
    throw UserError(::moetune::str("NF4: ", num_bad, " of ", num_elements,
                                   " weights are NaN or infinite in fp32; 4 bits can only hold finite ones. "
                                   "Is the checkpoint damaged?"));
  }
  if (double_quantise) {
    q.double_absmax = double_quantise_absmax(q.absmax);
    q.absmax = at::Tensor();
  }
  return q;
}

void nf4_dequantise_into(const Nf4Tensor& q, at::Tensor out) {
  MT_CHECK(out.device() == q.codes.device(), "out is on ", out.device(), ", the codes are on ", q.codes.device());
  nf4_dequantise_units_into(view_of(q), q.numel(), 0, 1, std::move(out));
}

void nf4_dequantise_units_into(const Nf4View& view, int64_t elements_per_unit, int64_t first_unit, int64_t num_units,
                               at::Tensor out) {
  MT_CHECK(out.numel() == num_units * elements_per_unit && (out.is_contiguous() || out.dim() == 3), "out is ",
           out.toString(), " ", out.sizes(), "; ", num_units, " x ", elements_per_unit, " elements are needed");
  MT_CHECK(num_units <= 1 || elements_per_unit % kNf4Block == 0, elements_per_unit,
           " numbers of a unit do not fill blocks of ", kNf4Block);
  if (out.numel() == 0) return;
  switch (out.scalar_type()) {
    case at::kBFloat16: return dequantise<Bf16Bits>(view, elements_per_unit, first_unit, num_units, out);
    case at::kFloat: return dequantise<float>(view, elements_per_unit, first_unit, num_units, out);
    case at::kDouble: return dequantise<double>(view, elements_per_unit, first_unit, num_units, out);
    default: MT_CHECK(false, "NF4 dequantises to bf16, fp32 or fp64, not ", out.toString());
  }
}

}  // namespace moetune
