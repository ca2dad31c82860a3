// What the program was built with and what it runs on, for `moetune --version` and bug reports.
#pragma once

#include <string>

namespace moetune {

/// One line each: LibTorch, CUDA (built with, driver), NCCL, MPI, the GPU architectures of the program's kernels. Needs
/// neither MPI nor a GPU.
std::string versions_text();

}  // namespace moetune
