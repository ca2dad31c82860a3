#include "parallel/device/host_memory.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <cuda_runtime.h>
#include <malloc.h>
#include <sys/mman.h>

#include <cstring>
#include <new>

#include "parallel/base/error.h"

namespace moetune {
namespace {

constexpr int64_t kPage = 4096, kHugePage = int64_t{2} << 20;

}  // namespace

at::Tensor host_bytes(int64_t num_bytes, bool pin) {
  MT_CHECK(num_bytes >= 0, num_bytes, " bytes");
  if (num_bytes == 0) return at::zeros({0}, at::kByte);
  // A model has many small slabs: rounded to huge pages they would take more than they hold.
  const int64_t page = num_bytes < kHugePage ? kPage : kHugePage;
  const int64_t mapped = (num_bytes + page - 1) / page * page;
  void* memory = mmap(nullptr, static_cast<size_t>(mapped), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  madvise(memory, static_cast<size_t>(mapped), MADV_HUGEPAGE);  // a wish: without huge pages it works too
  at::parallel_for(0, mapped / page, kHugePage / page, [&](int64_t begin, int64_t end) {
    std::memset(static_cast<char*>(memory) + begin * page, 0, static_cast<size_t>((end - begin) * page));
  });
  if (pin) {
    const cudaError_t result = cudaHostRegister(memory, static_cast<size_t>(mapped), cudaHostRegisterDefault);
    if (result != cudaSuccess) {
      cudaGetLastError();
      munmap(memory, static_cast<size_t>(mapped));
      throw UserError(
          ::moetune::str("pinning ", num_bytes, " bytes of host memory failed: ", cudaGetErrorString(result),
                         "; is the limit of locked memory (ulimit -l) too low, or the host's memory full?"));
    }
  }
  const auto give_back = [mapped, pin](void* data) {
    if (pin) cudaHostUnregister(data);
    munmap(data, static_cast<size_t>(mapped));
  };
  return at::from_blob(memory, {num_bytes}, give_back, at::TensorOptions(at::kByte));
}

ThriftyHeap::ThriftyHeap() { mallopt(M_MMAP_THRESHOLD, 128 << 10); }

ThriftyHeap::~ThriftyHeap() {
  // Where glibc's own adaptation ends, which a call of mallopt switches off.
  mallopt(M_MMAP_THRESHOLD, 32 << 20);
  mallopt(M_TRIM_THRESHOLD, 64 << 20);
}

}  // namespace moetune
