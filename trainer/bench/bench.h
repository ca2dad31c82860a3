// moetune bench: what this machine can do, measured with the program's own parts, printed and written to a file that
// plans are made from (trainer/plan/measured_machine.h).
//
//   int exit_code = bench({.to = "machine.json"}, launch);
#pragma once

#include <string>

#include "parallel/comm/launch.h"

namespace moetune {

struct BenchOptions {
  std::string device = "auto";  ///< of DeviceChoice: auto, cpu, cuda
  std::string to = "machine.json";
  std::string version;  ///< the program's
  bool quick = false;   ///< fewer and shorter repeats
};

/// Measures on all ranks at once and returns the exit code. Collective over the job. UserError, before anything is
/// measured, where `to` cannot be written or is there already as something else than a machine's file.
int bench(const BenchOptions& options, Launch& launch);

}  // namespace moetune
