// The CUDA kernels of NF4 on raw device pointers and a stream. Results are bit-equal to those of nf4_cpu.
//
//   nf4_quantise_cuda(weight, num_elements, codes, absmax, num_bad, stream);
//   nf4_dequantise_cuda(codes, absmax_view, first_block, num_elements, out, stream);
//   // then check cudaGetLastError(): the functions only launch
//
// Both are bound by device memory: every thread owns one 16-byte access of the wide operand, neighbours in a warp touch
// neighbouring addresses, and a block's absmax is read by the few threads that share it.
// weight, codes and out must be 16-byte aligned.
#pragma once

#include "lora/nf4_blocks.h"

typedef struct CUstream_st* cudaStream_t;

namespace moetune {

/// As nf4_quantise_cpu; adds the number of weights that are NaN or infinite to *num_bad (device memory).
void nf4_quantise_cuda(const float* weight, int64_t num_elements, uint8_t* codes, float* absmax, unsigned long long* num_bad, cudaStream_t stream);
void nf4_quantise_cuda(const Bf16Bits* weight, int64_t num_elements, uint8_t* codes, float* absmax, unsigned long long* num_bad, cudaStream_t stream);

/// As nf4_dequantise_cpu, all pointers (those in the view too) in device memory.
void nf4_dequantise_cuda(const uint8_t* codes, const Nf4AbsmaxView& absmax, int64_t first_block, int64_t num_elements, float* out, cudaStream_t stream);
void nf4_dequantise_cuda(const uint8_t* codes, const Nf4AbsmaxView& absmax, int64_t first_block, int64_t num_elements, Bf16Bits* out, cudaStream_t stream);
void nf4_dequantise_cuda(const uint8_t* codes, const Nf4AbsmaxView& absmax, int64_t first_block, int64_t num_elements, double* out, cudaStream_t stream);

}  // namespace moetune
