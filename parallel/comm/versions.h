// What the program was built with and what it runs on, for `moetune --version`, bug reports and measurements.
#pragma once

#include <string>

namespace moetune {

struct Versions {
  std::string torch;
  std::string cuda;    ///< that the program was built with
  std::string driver;  ///< the newest CUDA that this machine's driver serves; empty: no driver
  std::string nccl;
  std::string mpi;
};
Versions versions();

/// One line each: LibTorch, CUDA (built with, driver), NCCL, MPI, the GPU architectures of the program's kernels. Needs
/// neither MPI nor a GPU.
std::string versions_text();

}  // namespace moetune
