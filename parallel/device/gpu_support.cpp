#include "parallel/device/gpu_support.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cctype>
#include <sstream>

#include "parallel/base/error.h"

namespace moetune {

const std::vector<std::string>& built_architectures() {
  static const std::vector<std::string> names = [] {
    std::vector<std::string> all;
    std::istringstream words(MOETUNE_CUDA_ARCHS);
    for (std::string word; words >> word;) all.push_back(word);
    return all;
  }();
  return names;
}

bool runs_on(const std::string& architecture, ComputeCapability gpu) {
  const size_t digits = architecture.find_last_of("0123456789") + 1;
  const int number = std::stoi(architecture);
  const int major = number / 10, minor = number % 10;
  if (major != gpu.major) return false;
  return digits < architecture.size() ? minor == gpu.minor : minor <= gpu.minor;
}

ComputeCapability compute_capability(int device) {
  ComputeCapability gpu;
  cudaError_t status = cudaDeviceGetAttribute(&gpu.major, cudaDevAttrComputeCapabilityMajor, device);
  if (status == cudaSuccess) status = cudaDeviceGetAttribute(&gpu.minor, cudaDevAttrComputeCapabilityMinor, device);
  if (status != cudaSuccess) {
    cudaGetLastError();  // or the next to ask CUDA would get this error
    throw UserError(str("GPU ", device, " does not answer: ", cudaGetErrorString(status), "; look at nvidia-smi"));
  }
  return gpu;
}

void require_supported_gpu(int device) {
  const ComputeCapability gpu = compute_capability(device);
  const std::vector<std::string>& built = built_architectures();
  if (std::any_of(built.begin(), built.end(), [&](const std::string& name) { return runs_on(name, gpu); })) return;
  std::string list;
  for (const std::string& name : built) list += (list.empty() ? "" : ", ") + name;
  throw UserError(str("GPU ", device, " is of compute capability ", gpu.major, ".", gpu.minor,
                      ", and this program is built for ", list, "; build it for this GPU: MOETUNE_CUDA_ARCHS=",
                      gpu.major, gpu.minor, " scripts/build (80 and later are computed), or run.device=cpu"));
}

bool has_grouped_kernel(ComputeCapability gpu) { return (gpu.major == 9 || gpu.major == 10) && gpu.minor == 0; }

}  // namespace moetune
