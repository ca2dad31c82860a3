#include "lora/nf4.h"

#include <ATen/Parallel.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <atomic>
#include <numeric>

#include "lora/nf4_blocks.h"
#include "lora/nf4_cpu.h"
#include "lora/nf4_kernels.h"
#include "parallel/base/error.h"

namespace moetune {
namespace {

constexpr int64_t kBlocksPerTask = 1024;  // 64k elements: some 30 us of a thread
constexpr int64_t kGridPoints = 1 << 16;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

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

/// Mean of each row. Sums of runs too short for torch to split over threads are added in double, in order.
at::Tensor row_means(const at::Tensor& values) {
  constexpr int64_t kRun = at::internal::GRAIN_SIZE - 1;
  const at::Tensor rows = values.cpu();
  at::Tensor means = at::zeros({rows.size(0)}, at::kFloat);
  for (int64_t row = 0; row < rows.size(0); ++row) {
    double sum = 0.0;
    for (const at::Tensor& run : rows[row].split(kRun)) sum += at::sum(run).item<float>();
    if (rows.size(1) > 0) means.data_ptr<float>()[row] = static_cast<float>(sum / static_cast<double>(rows.size(1)));
  }
  return means.to(values.device());
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

template <typename T>
void dequantise(const Nf4Tensor& q, const Nf4AbsmaxView& absmax, int64_t first_element, int64_t num_elements, const at::Tensor& out) {
  const int64_t first_block = first_element / kNf4Block;
  if (out.is_cuda()) {
    const c10::cuda::CUDAGuard guard(out.device());
    check_aligned(q.codes, "codes");
    check_aligned(out, "out");
    nf4_dequantise_cuda(pointer<const uint8_t>(q.codes), absmax, first_block, num_elements, pointer<T>(out), c10::cuda::getCurrentCUDAStream());
    C10_CUDA_CHECK(cudaGetLastError());
    return;
  }
  at::parallel_for(0, ceil_div(num_elements, kNf4Block), kBlocksPerTask, [&](int64_t begin, int64_t end) {
    const int64_t first = begin * kNf4Block;
    nf4_dequantise_cpu(pointer<const uint8_t>(q.codes), absmax, first_block + begin, std::min(end * kNf4Block, num_elements) - first,
                       pointer<T>(out) + first);
  });
}

Nf4AbsmaxView view_of(const Nf4Tensor& q) {
  Nf4AbsmaxView view;
  if (!q.double_absmax) {
    view.absmax = pointer<const float>(q.absmax);
    return view;
  }
  const DoubleQuantisedAbsmax& nested = *q.double_absmax;
  const int64_t parts = nested.offset.numel();
  view.codes = pointer<const uint8_t>(nested.codes);
  view.nested_absmax = pointer<const float>(nested.nested_absmax);
  view.offset = pointer<const float>(nested.offset);
  view.blocks_per_part = std::max<int64_t>(1, nested.codes.numel() / parts);
  view.nested_per_part = nested.nested_absmax.numel() / parts;
  return view;
}

}  // namespace

DoubleQuantisedAbsmax double_quantise_absmax(const at::Tensor& absmax, int64_t parts) {
  MT_CHECK(absmax.scalar_type() == at::kFloat && absmax.is_contiguous(), "absmax is fp32 and contiguous, not ", absmax.toString());
  MT_CHECK(parts > 0 && absmax.numel() % parts == 0, absmax.numel(), " blocks do not fall into ", parts, " equal parts");
  const int64_t blocks_per_part = absmax.numel() / parts;
  const int64_t groups = ceil_div(blocks_per_part, kNf4NestedBlock);
  const at::Tensor rows = absmax.view({parts, blocks_per_part});
  const at::Tensor offset = row_means(rows);

  // Zeros that fill up the last group change no maximum.
  const at::Tensor padded = at::constant_pad_nd(rows - offset.unsqueeze(1), {0, groups * kNf4NestedBlock - blocks_per_part});
  const at::Tensor grouped = padded.view({parts, groups, kNf4NestedBlock});
  const at::Tensor nested_absmax = std::get<0>(at::max(grouped.abs(), -1));
  // In a group of zeros the reciprocal is infinite and the product NaN: such a group has code 0, whose value times 0 is 0.
  const at::Tensor scaled = at::nan_to_num(grouped * nested_absmax.reciprocal().unsqueeze(-1)).clamp_(-1, 1);
  const at::Tensor point = ((scaled + 1) * 0.5 * static_cast<double>(kGridPoints - 1) + 0.5).to(at::kInt);
  at::Tensor codes = grid_codes().to(absmax.device()).index_select(0, point.flatten()).view(grouped.sizes());
  codes.masked_fill_((nested_absmax == 0).unsqueeze(-1), 0);
  codes = codes.view({parts, groups * kNf4NestedBlock}).slice(1, 0, blocks_per_part).contiguous().flatten();
  return {codes, nested_absmax.flatten(), offset};
}

int64_t Nf4Tensor::numel() const { return std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>()); }

int64_t Nf4Tensor::num_bytes() const {
  if (!double_absmax) return static_cast<int64_t>(codes.nbytes() + absmax.nbytes());
  return static_cast<int64_t>(codes.nbytes() + double_absmax->codes.nbytes() + double_absmax->nested_absmax.nbytes() + double_absmax->offset.nbytes());
}

Nf4Tensor nf4_quantise(const at::Tensor& weight, bool double_quantise, int64_t parts) {
  MT_CHECK(at::isFloatingType(weight.scalar_type()) && weight.is_contiguous(), "NF4 takes contiguous floating-point weights, not ", weight.toString());
  const int64_t num_elements = weight.numel();
  MT_CHECK(parts == 1 || num_elements % (parts * kNf4Block) == 0, num_elements, " weights in ", parts, " parts: a part is not a multiple of ", kNf4Block);
  Nf4Tensor q;
  q.shape = weight.sizes().vec();
  q.codes = at::empty({ceil_div(num_elements, 2)}, weight.options().dtype(at::kByte));
  q.absmax = at::empty({ceil_div(num_elements, kNf4Block)}, weight.options().dtype(at::kFloat));
  MT_CHECK(q.absmax.numel() < (int64_t{1} << 32), "NF4 counts blocks in 32 bits; ", num_elements, " weights are too many");
  const int64_t num_bad = weight.scalar_type() == at::kBFloat16 ? quantise<Bf16Bits>(weight, q.codes, q.absmax)
                                                                : quantise<float>(weight.to(at::kFloat), q.codes, q.absmax);
  if (num_bad > 0) {
    throw UserError(::moetune::str("NF4: ", num_bad, " of ", num_elements, " weights are NaN or infinite in fp32; 4 bits can only hold finite ones. "
                                   "Is the checkpoint damaged?"));
  }
  if (double_quantise) {
    q.double_absmax = double_quantise_absmax(q.absmax, parts);
    q.absmax = at::Tensor();
  }
  return q;
}

void nf4_dequantise_into(const Nf4Tensor& q, at::Tensor out) { nf4_dequantise_rows_into(q, 0, q.numel(), std::move(out)); }

void nf4_dequantise_rows_into(const Nf4Tensor& q, int64_t first_element, int64_t num_elements, at::Tensor out) {
  MT_CHECK(first_element >= 0 && first_element % kNf4Block == 0, "first element ", first_element, " does not start a block of ", kNf4Block);
  MT_CHECK(num_elements >= 0 && first_element + num_elements <= q.numel(), "elements ", first_element, " + ", num_elements, " of ", q.numel());
  MT_CHECK(out.numel() == num_elements && out.is_contiguous() && out.device() == q.codes.device(), "out is ", out.toString(), " ", out.sizes(),
           " on ", out.device(), "; ", num_elements, " contiguous elements on ", q.codes.device(), " are needed");
  if (num_elements == 0) return;
  const Nf4AbsmaxView absmax = view_of(q);
  switch (out.scalar_type()) {
    case at::kBFloat16: return dequantise<Bf16Bits>(q, absmax, first_element, num_elements, out);
    case at::kFloat: return dequantise<float>(q, absmax, first_element, num_elements, out);
    case at::kDouble: return dequantise<double>(q, absmax, first_element, num_elements, out);
    default: MT_CHECK(false, "NF4 dequantises to bf16, fp32 or fp64, not ", out.toString());
  }
}

}  // namespace moetune
