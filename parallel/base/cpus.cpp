#include "parallel/base/cpus.h"

#include <sched.h>

#include <algorithm>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>

namespace moetune {
namespace {

/// quota / period of the two numbers; 0 where there is no such limit ("max", or -1 in v1).
double ratio(const std::string& quota, const std::string& period) {
  try {
    const double allowed = std::stod(quota), of = std::stod(period);
    return allowed > 0.0 && of > 0.0 ? allowed / of : 0.0;
  } catch (const std::exception&) {
    return 0.0;
  }
}

std::string first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

double quota_of(const std::string& v2_folder, const std::string& v1_folder) {
  std::istringstream v2(first_line(v2_folder + "/cpu.max"));
  std::string quota, period;
  if (v2 >> quota >> period) return ratio(quota, period);
  return ratio(first_line(v1_folder + "/cpu.cfs_quota_us"), first_line(v1_folder + "/cpu.cfs_period_us"));
}

}  // namespace

CpuSet allowed_cpus() {
  CpuSet set;
  cpu_set_t* kernel_set = CPU_ALLOC(set.size());
  const size_t bytes = CPU_ALLOC_SIZE(set.size());
  if (kernel_set != nullptr && sched_getaffinity(0, bytes, kernel_set) == 0) {
    for (size_t cpu = 0; cpu < set.size(); ++cpu) set[cpu] = CPU_ISSET_S(cpu, bytes, kernel_set);
  } else {
    for (size_t cpu = 0; cpu < std::max(1u, std::thread::hardware_concurrency()); ++cpu) set[cpu] = true;
  }
  CPU_FREE(kernel_set);
  return set;
}

double cpu_quota() {
  // Lines "0::/path" (v2) and "4:cpu,cpuacct:/path" (v1). The limit may stand at the process's own group or at any
  // above it; inside of a container the path is "/".
  std::ifstream file("/proc/self/cgroup");
  double least = 0.0;
  for (std::string line; std::getline(file, line);) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    if (!controllers.empty() && ("," + controllers + ",").find(",cpu,") == std::string::npos) continue;
    std::string path = line.substr(second + 1);
    for (bool top = false; !top;) {
      top = path.empty() || path == "/";
      const double quota = quota_of("/sys/fs/cgroup" + path, "/sys/fs/cgroup/cpu" + path);
      if (quota > 0.0) least = least == 0.0 ? quota : std::min(least, quota);
      if (!top) path = path.substr(0, path.rfind('/'));
    }
  }
  return least;
}

double cpu_share(const std::vector<CpuSet>& sets, std::size_t self, double quota) {
  double share = 0.0;
  for (size_t cpu = 0; cpu < sets[self].size(); ++cpu) {
    if (!sets[self][cpu]) continue;
    share +=
        1.0 / static_cast<double>(std::count_if(sets.begin(), sets.end(), [&](const CpuSet& set) { return set[cpu]; }));
  }
  if (quota > 0.0) share = std::min(share, quota / static_cast<double>(sets.size()));
  return std::max(1.0, share);
}

}  // namespace moetune
