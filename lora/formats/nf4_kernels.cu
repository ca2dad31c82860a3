#include "lora/formats/nf4_kernels.h"

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <type_traits>

namespace moetune {
namespace {

__device__ constexpr Nf4Code kCode = nf4_code();
__device__ constexpr Nf4DynamicMap kMap = nf4_dynamic_map();

constexpr int kThreads = 256;
constexpr int kInFlight = 4;  // independent loads of a thread before it uses the first

__device__ float to_float(float x) { return x; }
__device__ float to_float(Bf16Bits x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }

__device__ void load_8(const float* from, float (&x)[8]) {
  const float4 a = reinterpret_cast<const float4*>(from)[0];
  const float4 b = reinterpret_cast<const float4*>(from)[1];
  x[0] = a.x, x[1] = a.y, x[2] = a.z, x[3] = a.w, x[4] = b.x, x[5] = b.y, x[6] = b.z, x[7] = b.w;
}
__device__ void load_8(const Bf16Bits* from, float (&x)[8]) {
  const uint4 in = *reinterpret_cast<const uint4*>(from);
  const uint32_t words[4] = {in.x, in.y, in.z, in.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    x[2 * i] = __uint_as_float(words[i] << 16);
    x[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
  }
}

__device__ float as(float x, float) { return x; }
__device__ double as(float x, double) { return x; }
__device__ Bf16Bits as(float x, Bf16Bits) { return {__bfloat16_as_ushort(__float2bfloat16_rn(x))}; }

/// One 16-byte word of output, from as many products as fit: 8 bf16, 4 fp32 or 2 fp64.
__device__ uint4 pack(const float (&x)[8], Bf16Bits) {
  uint32_t words[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(x[2 * i], x[2 * i + 1]);
    words[i] = static_cast<uint32_t>(__bfloat16_as_ushort(pair.y)) << 16 | __bfloat16_as_ushort(pair.x);
  }
  return make_uint4(words[0], words[1], words[2], words[3]);
}
__device__ float4 pack(const float (&x)[4], float) { return make_float4(x[0], x[1], x[2], x[3]); }
__device__ double2 pack(const float (&x)[2], double) { return make_double2(x[0], x[1]); }

template <int kBytes>
struct UnsignedOf;
template <>
struct UnsignedOf<1> {
  using Type = uint8_t;
};
template <>
struct UnsignedOf<2> {
  using Type = uint16_t;
};
template <>
struct UnsignedOf<4> {
  using Type = uint32_t;
};

template <typename Part>
__device__ const Part* of_unit(const Part* part, int64_t byte_offset) {
  return reinterpret_cast<const Part*>(reinterpret_cast<const uint8_t*>(part) + byte_offset);
}

// Rounded separately, as on the CPU: no fused multiply-add.
__device__ float absmax_of(const Nf4View& view, int64_t unit_offset, int64_t block) {
  if (view.absmax != nullptr) return __ldg(of_unit(view.absmax, unit_offset) + block);
  // 32-bit: a 64-bit division would cost more than the rest of the kernel. 2^32 blocks are 2^38 elements.
  const uint32_t row = static_cast<uint32_t>(block) / static_cast<uint32_t>(view.blocks_per_row);
  const uint32_t column = static_cast<uint32_t>(block) - row * static_cast<uint32_t>(view.blocks_per_row);
  const int64_t group = (view.first_block + row * view.whole_blocks_per_row + column) / kNf4NestedBlock;
  return __fadd_rn(__fmul_rn(kMap.values[__ldg(of_unit(view.absmax_codes, unit_offset) + block)],
                             __ldg(of_unit(view.nested_absmax, unit_offset) + group)),
                   __ldg(of_unit(view.offset, unit_offset)));
}

/// The 16 code values lie in 16 different banks of shared memory, so that any mix of codes in a warp reads them at
/// once. kApart: rows of the unit lie apart; a 16-byte word of output is of one row.
template <typename Out, bool kApart>
__global__ void __launch_bounds__(kThreads)
    dequantise_kernel(const __grid_constant__ Nf4View view, int64_t first_unit, int64_t num_elements,
                      Out* __restrict__ out, const __grid_constant__ Nf4Rows rows) {
  constexpr int kVec = 16 / sizeof(Out);              // elements of one 16-byte store: 8 bf16, 4 fp32, 2 fp64
  using Codes = typename UnsignedOf<kVec / 2>::Type;  // the codes they come from
  __shared__ float values[16];
  if (threadIdx.x < 16) values[threadIdx.x] = kCode.values[threadIdx.x];
  __syncthreads();

  const int64_t num_vectors = (num_elements + kVec - 1) / kVec;
  const int64_t whole_vectors = num_elements / kVec;
  const int64_t unit_offset = (first_unit + blockIdx.y) * view.unit_stride;
  const Codes* packed = reinterpret_cast<const Codes*>(view.codes + unit_offset);
  out += blockIdx.y * rows.unit_stride;
  const auto row_vectors = static_cast<uint32_t>(rows.row / kVec);
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads * kInFlight;
  for (int64_t base = static_cast<int64_t>(blockIdx.x) * kThreads * kInFlight + threadIdx.x; base < num_vectors;
       base += stride) {
    Codes in[kInFlight];
    float absmax[kInFlight];
#pragma unroll
    for (int u = 0; u < kInFlight; ++u) {
      const int64_t v = base + u * kThreads;
      if (v < whole_vectors) {
        in[u] = packed[v];
        absmax[u] = absmax_of(view, unit_offset, v * kVec / kNf4Block);
      }
    }
#pragma unroll
    for (int u = 0; u < kInFlight; ++u) {
      const int64_t v = base + u * kThreads;
      if (v < whole_vectors) {
        const uint32_t word = in[u];
        float x[kVec];
#pragma unroll
        for (int i = 0; i < kVec; ++i) {  // the earlier element of a byte is in its high nibble
          x[i] = __fmul_rn(values[word >> (4 * (i ^ 1)) & 15], absmax[u]);
        }
        const auto packed_out = pack(x, Out{});
        // 32-bit, as in absmax_of.
        const int64_t at = kApart ? static_cast<uint32_t>(v) / row_vectors * rows.row_stride +
                                        static_cast<uint32_t>(v) % row_vectors * kVec
                                  : v * kVec;
        *reinterpret_cast<std::remove_const_t<decltype(packed_out)>*>(out + at) = packed_out;
      } else if (v < num_vectors) {  // the ragged end of the unit
        const float last_absmax = absmax_of(view, unit_offset, v * kVec / kNf4Block);
        for (int64_t e = v * kVec; e < num_elements; ++e) {
          const uint8_t byte = reinterpret_cast<const uint8_t*>(packed)[e / 2];
          out[e] = as(__fmul_rn(values[e % 2 == 0 ? byte >> 4 : byte & 15], last_absmax), Out{});
        }
      }
    }
  }
}

/// Eight threads a block of 64, eight elements a thread.
template <typename In>
__global__ void __launch_bounds__(kThreads)
    quantise_kernel(const In* __restrict__ weight, int64_t num_elements, uint8_t* __restrict__ codes,
                    float* __restrict__ absmax, unsigned long long* num_bad) {
  constexpr int kVec = 8;
  const int64_t num_threads = (num_elements + kNf4Block - 1) / kNf4Block * (kNf4Block / kVec);
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  // Blocks of 64 never straddle a warp, and a warp leaves the loop as a whole but for its threads past the end: those
  // come in groups of eight, and the shuffles below name only the threads of one group.
  const unsigned group_mask = 0xffu << (threadIdx.x % 32 / 8 * 8);
  for (int64_t t = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; t < num_threads; t += stride) {
    const int64_t first = t * kVec;
    const int64_t count = min(static_cast<int64_t>(kVec), num_elements - first);  // may be negative
    float x[kVec];
    if (count == kVec) {
      load_8(weight + first, x);
    } else {
#pragma unroll
      for (int i = 0; i < kVec; ++i) x[i] = i < count ? to_float(weight[first + i]) : 0.0f;
    }

    // Non-negative floats order like their bits, and NaN comes out on top.
    uint32_t top = 0;
    unsigned bad = 0;
#pragma unroll
    for (int i = 0; i < kVec; ++i) {
      const uint32_t magnitude = __float_as_uint(x[i]) & 0x7fffffffu;
      top = max(top, magnitude);
      bad += magnitude >= 0x7f800000u;
    }
    if (bad != 0) atomicAdd(num_bad, static_cast<unsigned long long>(bad));
#pragma unroll
    for (int lane = 1; lane < 8; lane *= 2) top = max(top, __shfl_xor_sync(group_mask, top, lane));

    const int64_t block = first / kNf4Block;
    const bool is_short = num_elements - block * kNf4Block < kNf4Block;
    const float divisor = fmaxf(__uint_as_float(top), kNf4SmallestDivisor);
    const float reciprocal = __fdiv_rn(1.0f, divisor);
    uint32_t packed = 0;
#pragma unroll
    for (int i = 0; i < kVec; ++i) {
      const float scaled = is_short ? __fdiv_rn(x[i], divisor) : __fmul_rn(x[i], reciprocal);
      uint32_t above = 0;
#pragma unroll
      for (int k = 0; k < 15; ++k) above += scaled > kCode.thresholds[k];
      packed |= above << (i / 2 * 8 + (i % 2 == 0 ? 4 : 0));
    }
    if (threadIdx.x % 8 == 0) absmax[block] = is_short ? divisor : __uint_as_float(top);
    if (count == kVec) {
      reinterpret_cast<uint32_t*>(codes)[t] = packed;
    } else {
      for (int64_t i = 0; 2 * i < count; ++i) codes[first / 2 + i] = static_cast<uint8_t>(packed >> (8 * i));
    }
  }
}

int grid_for(int64_t num_threads) {
  // Enough blocks to fill any GPU many times over; the kernels loop over what remains.
  return static_cast<int>(std::min<int64_t>((num_threads + kThreads - 1) / kThreads, 1 << 16));
}

template <typename In>
void quantise(const In* weight, int64_t num_elements, uint8_t* codes, float* absmax, unsigned long long* num_bad,
              cudaStream_t stream) {
  if (num_elements == 0) return;
  quantise_kernel<<<grid_for((num_elements + 7) / 8), kThreads, 0, stream>>>(weight, num_elements, codes, absmax,
                                                                             num_bad);
}

template <typename Out>
void dequantise(const Nf4View& view, int64_t first_unit, int64_t num_units, int64_t elements_per_unit, Out* out,
                const Nf4Rows& rows, cudaStream_t stream) {
  if (num_units * elements_per_unit == 0) return;
  constexpr int64_t kPerThread = 16 / sizeof(Out) * kInFlight;
  const dim3 grid(grid_for((elements_per_unit + kPerThread - 1) / kPerThread), static_cast<unsigned>(num_units));
  if (rows.contiguous()) {
    dequantise_kernel<Out, false><<<grid, kThreads, 0, stream>>>(view, first_unit, elements_per_unit, out, rows);
  } else {
    dequantise_kernel<Out, true><<<grid, kThreads, 0, stream>>>(view, first_unit, elements_per_unit, out, rows);
  }
}

}  // namespace

void nf4_quantise_cuda(const float* weight, int64_t num_elements, uint8_t* codes, float* absmax,
                       unsigned long long* num_bad, cudaStream_t stream) {
  quantise(weight, num_elements, codes, absmax, num_bad, stream);
}
void nf4_quantise_cuda(const Bf16Bits* weight, int64_t num_elements, uint8_t* codes, float* absmax,
                       unsigned long long* num_bad, cudaStream_t stream) {
  quantise(weight, num_elements, codes, absmax, num_bad, stream);
}
void nf4_dequantise_cuda(const Nf4View& view, int64_t first_unit, int64_t num_units, int64_t elements_per_unit,
                         float* out, const Nf4Rows& rows, cudaStream_t stream) {
  dequantise(view, first_unit, num_units, elements_per_unit, out, rows, stream);
}
void nf4_dequantise_cuda(const Nf4View& view, int64_t first_unit, int64_t num_units, int64_t elements_per_unit,
                         Bf16Bits* out, const Nf4Rows& rows, cudaStream_t stream) {
  dequantise(view, first_unit, num_units, elements_per_unit, out, rows, stream);
}
void nf4_dequantise_cuda(const Nf4View& view, int64_t first_unit, int64_t num_units, int64_t elements_per_unit,
                         double* out, const Nf4Rows& rows, cudaStream_t stream) {
  dequantise(view, first_unit, num_units, elements_per_unit, out, rows, stream);
}

}  // namespace moetune
