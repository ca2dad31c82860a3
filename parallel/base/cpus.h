// The CPUs that this process may use, as the kernel sees it: what it is bound to and what its control group allows.
//
//   const CpuSet mine = allowed_cpus();
//   const double cpus = cpu_share(sets_of_all_ranks_of_this_host, my_index, cpu_quota());    // 12.0
#pragma once

#include <bitset>
#include <cstddef>
#include <vector>

namespace moetune {

/// One bit a CPU of the machine.
using CpuSet = std::bitset<4096>;

/// What the process is bound to (sched_getaffinity); all where that cannot be known.
CpuSet allowed_cpus();
/// CPUs' worth of time that the control group of the process may use, cgroup v2 or v1; 0 without a limit.
double cpu_quota();

/// What process `self` may keep busy when every process of `sets` has CPUs of its own or shares them evenly with those
/// that may use them too: whether they are bound apart, to the same CPUs, or not at all. All share one quota (0: none).
/// At least 1.
double cpu_share(const std::vector<CpuSet>& sets, std::size_t self, double quota);

}  // namespace moetune
