// Functions that host and kernels both call, and so compute the same bits.
//
//   MOETUNE_HOST_DEVICE constexpr uint32_t half(uint32_t x) { return x >> 1; }
#pragma once

#ifdef __CUDACC__
#define MOETUNE_HOST_DEVICE __host__ __device__
#else
#define MOETUNE_HOST_DEVICE
#endif
