// What a kind of machine can do, for plans of time: the figures of `moetune bench` where it was measured, and where it
// was not, its published peaks times the share of its own peaks that a measured machine reaches.
//
//   const MachineProfile h100 = shipped_machine("h100");               // recipes/machines/h100.json
//   const MachineProfile here = measured_machine("machine.json");      // written by moetune bench
//   const double flops = here.figure("dense.deepseek_o").value;
//
// docs/benchmarks/README.md lists the figures by name, docs/planner.md says how others follow from peaks.
#pragma once

#include <c10/core/DeviceType.h>

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace moetune {

/// A rate of one rank in its unit, and how far its repeats lay apart.
struct PlannedRate {
  double value = 0.0, min = 0.0, max = 0.0;
  std::string source;
  /// Ranks of one host that had it at the same time, which together had what the host has of it; 0: not known
  int64_t at_once = 0;
};

/// What a collective takes beside its bytes: to start, and for each of a ring's hops (NCCL's model,
/// src/graph/tuning.cc).
struct CollectiveLatency {
  double start_s = 0.0, hop_s = 0.0;
};

/// NCCL sends in one of two ways, whichever is there first: small messages with a flag beside each word, which take
/// half of the link; large ones in pieces, which wait for each other.
struct MessageLatency {
  CollectiveLatency small, large;
};

struct MachineProfile {
  std::string name;         ///< as `--on` names it: "h100"; of a measured machine the device's name
  std::string device_name;  ///< as the driver names it
  c10::DeviceType device = c10::DeviceType::CUDA;
  int64_t memory_bytes = 0;       ///< of one GPU; of a CPU 0: memory is the host's
  int64_t ranks_per_host = 8;     ///< GPUs of a host, as they are sold
  int64_t host_memory_bytes = 0;  ///< for each rank
  /// Of host memory, read and written: a rank's share where every GPU of the host has one; 0: not known
  double host_memory_bytes_per_s = 0.0;
  bool measured = false;                     ///< by `moetune bench` on the machine that is planned for
  PlannedRate computing{1.0, 1.0, 1.0, ""};  ///< what steps took to compute, over the sum of their parts' times
  std::map<std::string, PlannedRate> figures;
  MessageLatency latency;  ///< of collectives within a host; 0: not known
  std::string latency_source;

  bool on_gpu() const { return device == c10::DeviceType::CUDA; }
  bool has(const std::string& figure) const { return figures.contains(figure); }
  /// Throws UserError, naming the machine, where there is no such figure.
  const PlannedRate& figure(const std::string& name) const;
};

/// The network between hosts, one direction, of one GPU.
struct NetworkProfile {
  std::string name;
  double bytes_per_s = 0.0;
  std::string source;
  double small_hop_s = 0.0, large_hop_s = 0.0;  ///< of a ring that leaves a host (MessageLatency); 0: not known
};

/// Names that shipped_machine() takes, aliases left out.
std::vector<std::string> shipped_machines();
/// By name or alias, upper or lower case. Throws UserError with the names that there are.
MachineProfile shipped_machine(const std::string& name);
/// The shipped GPU that the driver calls so; none: it is not among them.
std::optional<MachineProfile> shipped_machine_of(const std::string& device_name);
/// A file of `moetune bench`; what it did not measure (links of a single rank, disks) is that of the shipped machine of
/// that name, or assumed as shipped_cpu() has it. Throws UserError where the file is no such file.
MachineProfile measured_machine(const std::string& path);
/// A CPU of so many threads a rank: figures of one that was measured, by thread.
MachineProfile shipped_cpu(int64_t threads);

/// By name: ndr, hdr, 100gbe. `gpus_per_host` share what a host has.
NetworkProfile shipped_network(const std::string& name, int64_t gpus_per_host);
/// Bytes a second that a host reads from and writes to its disk: "nvme" or "network" (a volume).
struct DiskProfile {
  double read_bytes_per_s = 0.0, write_bytes_per_s = 0.0;
  std::string source;
};
DiskProfile shipped_disk(const std::string& name);

/// "16xH100", "8x h200" as count and machine. Throws UserError.
struct MachineChoice {
  int64_t gpus = 0;
  std::string name;  ///< lower case
};
MachineChoice parse_machine_choice(const std::string& text);

}  // namespace moetune
