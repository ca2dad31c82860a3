// Which GPUs the program's own kernels were built for, and whether a GPU is one of them.
//
//   require_supported_gpu(launch.local_rank());        // UserError with the list, before anything is put there
//   built_architectures()                              // {"80", "86", ...}: CMake's MOETUNE_CUDA_ARCHS
#pragma once

#include <string>
#include <vector>

namespace moetune {

/// Compute capability of a GPU: 9.0 is an H100 or H200.
struct ComputeCapability {
  int major = 0;
  int minor = 0;
};

/// As nvcc names them: "90a" is 9.0 and nothing else, "86" is 8.6 and later ones of 8.
const std::vector<std::string>& built_architectures();
/// Whether code for `architecture` runs on the GPU (CUDA C++ Programming Guide, "Binary Compatibility"): the same
/// major number and no smaller minor one; equal where the name ends in a letter.
bool runs_on(const std::string& architecture, ComputeCapability gpu);
/// Capability of a GPU of this process. UserError with CUDA's reason where it does not answer.
ComputeCapability compute_capability(int device);
/// UserError unless the GPU runs code of one of built_architectures().
void require_supported_gpu(int device);
/// Whether LibTorch multiplies groups of bf16 rows in one kernel on this GPU: its CUTLASS kernels are those of 9.0 and
/// 10.0; elsewhere it copies the groups' ends to the host and goes group by group.
bool has_grouped_kernel(ComputeCapability gpu);

}  // namespace moetune
