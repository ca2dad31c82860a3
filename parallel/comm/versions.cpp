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

std::string driver_version() {
  int number = 0;
  // 0 where the machine has no driver.
  return cudaDriverGetVersion(&number) != cudaSuccess || number == 0 ? "" : cuda_version(number);
}

std::string nccl_version() {
  int number = 0;
  if (ncclGetVersion(&number) != ncclSuccess) return "unknown";
  return str(number / 10000, ".", number % 10000 / 100, ".", number % 100);
}

std::string mpi_version() {
  char text[MPI_MAX_LIBRARY_VERSION_STRING] = "";
  int length = 0;
  MPI_Get_library_version(text, &length);
  const std::string version(text, static_cast<size_t>(length));
  return version.substr(0, version.find_first_of(",\n"));
}

}  // namespace

Versions versions() {
  return {TORCH_VERSION, cuda_version(CUDART_VERSION), driver_version(), nccl_version(), mpi_version()};
}

std::string versions_text() {
  const Versions all = versions();
  std::string architectures;
  for (const std::string& name : built_architectures()) architectures += " " + name;
  const std::string driver = all.driver.empty() ? "no driver here" : "the driver here is for " + all.driver;
  return str("LibTorch ", all.torch, "\nCUDA     ", all.cuda, "; ", driver, "\nNCCL     ", all.nccl, "\nMPI      ",
             all.mpi, "\nGPUs    ", architectures, "   (architectures of moetune's kernels)");
}

}  // namespace moetune
