// What a machine can do, measured: the bounds that a plan of time may count on, as `moetune bench` writes them to a
// file. docs/benchmarks/README.md lists the names.
//
//   MeasuredMachine machine{...};
//   machine.figures.push_back({.name = "device_copy", .unit = "B/s", .value = 3.9e12, ...});
//   write_text_atomically("machine.json", to_json(machine));
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace moetune {

/// A rate, in its unit (SI, without prefix): the median of some repeats, the slowest and the fastest of them.
struct Figure {
  std::string name;  ///< as readers of the file know it
  std::string unit;
  double value = 0.0, min = 0.0, max = 0.0;
  int64_t repeats = 0;
  std::string shape;  ///< of what was measured, in words
};

struct MeasuredMachine {
  std::string date;  ///< UTC, ISO 8601
  std::string host;
  int64_t ranks = 1;           ///< that measured at the same time
  int64_t ranks_per_host = 1;  ///< of them on the host of rank 0
  struct {
    std::string kind;  ///< "cuda", "cpu"
    std::string name;
    int64_t count = 1;         ///< one a rank on GPUs; 1 where CPUs compute
    int64_t memory_bytes = 0;  ///< of one GPU
  } device;
  int64_t threads = 1;  ///< of a rank on the host
  struct {
    std::string moetune, torch, cuda, driver, nccl, mpi;
  } versions;
  std::vector<Figure> figures;
};

/// {"format", "date", "host", ..., "figures": {name: {"value", "unit", "min", "max", "repeats", "shape"}}}
std::string to_json(const MeasuredMachine& machine);
/// Whether the file is one that to_json() wrote, by its "format".
bool is_machine_file(const std::string& path);

}  // namespace moetune
