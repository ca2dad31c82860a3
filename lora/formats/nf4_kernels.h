// The CUDA kernels of NF4 on raw device pointers and a stream. Results are bit-equal to those of nf4_cpu.
//
//   nf4_quantise_cuda(weight, num_elements, codes, absmax, num_bad, stream);
//   nf4_dequantise_cuda(view, first_unit, num_units, elements_per_unit, out, rows, stream);
//   // then check cudaGetLastError(): the functions only launch
//
// Both are bound by device memory: every thread owns one 16-byte access of the wide operand, neighbours in a warp touch
// neighbouring addresses, and a block's absmax is read by the few threads that share it.
// weight, codes and out must be 16-byte aligned, and so must each unit of a stack, and each row where rows lie apart.
#pragma once

#include "lora/formats/nf4_blocks.h"

typedef struct CUstream_st* cudaStream_t;

namespace moetune {

/// As nf4_quantise_cpu; adds the number of weights that are NaN or infinite to *num_bad (device memory).
void nf4_quantise_cuda(const float* weight, int64_t num_elements, uint8_t* codes, float* absmax,
                       unsigned long long* num_bad, cudaStream_t stream);
void nf4_quantise_cuda(const Bf16Bits* weight, int64_t num_elements, uint8_t* codes, float* absmax,
                       unsigned long long* num_bad, cudaStream_t stream);

/// Units first_unit .. first_unit + num_units - 1, as nf4_dequantise_cpu, to where `rows` says; all pointers in device
/// memory. At most 65535 units at a time. Rows that lie apart are whole 16-byte words.
void nf4_dequantise_cuda(const Nf4View& view, int64_t first_unit, int64_t num_units, int64_t elements_per_unit,
                         float* out, const Nf4Rows& rows, cudaStream_t stream);
void nf4_dequantise_cuda(const Nf4View& view, int64_t first_unit, int64_t num_units, int64_t elements_per_unit,
                         Bf16Bits* out, const Nf4Rows& rows, cudaStream_t stream);
void nf4_dequantise_cuda(const Nf4View& view, int64_t first_unit, int64_t num_units, int64_t elements_per_unit,
                         double* out, const Nf4Rows& rows, cudaStream_t stream);

}  // namespace moetune
