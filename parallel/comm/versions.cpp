#include "parallel/comm/versions.h"

#include <cuda_runtime_api.h>
#include <mpi.h>
#include <nccl.h>
#include <torch/version.h>

#include "parallel/base/error.h"
#include "parallel/device/gpu_support.h"

namespace moetune {
namespace {

/// 13000 -> "13.0"
std::string cuda_version(int number) { return str(number / 1000, ".", number % 1000 / 10); }

std::string driver_text() {
  int number = 0;
  // 0 where the machine has no driver.
  if (cudaDriverGetVersion(&number) != cudaSuccess || number == 0) return "no driver here";
  return "the driver here is for " + cuda_version(number);
}

std::string nccl_text() {
  int number = 0;
  if (ncclGetVersion(&number) != ncclSuccess) return "unknown";
  return str(number / 10000, ".", number % 10000 / 100, ".", number % 100);
}

std::string mpi_text() {
  char text[MPI_MAX_LIBRARY_VERSION_STRING] = "";
  int length = 0;
  MPI_Get_library_version(text, &length);
  const std::string version(text, static_cast<size_t>(length));
  return version.substr(0, version.find_first_of(",\n"));
}

}  // namespace

std::string versions_text() {
  std::string architectures;
  for (const std::string& name : built_architectures()) architectures += " " + name;
  return str("LibTorch ", TORCH_VERSION, "\nCUDA     ", cuda_version(CUDART_VERSION), "; ", driver_text(),
             "\nNCCL     ", nccl_text(), "\nMPI      ", mpi_text(), "\nGPUs    ", architectures,
             "   (architectures of moetune's kernels)");
}

}  // namespace moetune
