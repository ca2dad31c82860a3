// What a rank tells of itself twice a second, and what the watchdog of another rank knows of it.
//
//   socket.send(to_line(progress.report()));                       // there
//   std::optional<RankReport> report = report_from(line);          // here
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace moetune {

/// One collective of one group.
struct Collective {
  std::string group;      ///< identity of the group, the same on all its ranks and of no other group
  std::string operation;  ///< "all_reduce_sum"
  int64_t number = 0;     ///< in its group, from 1
  int64_t bytes = 0;      ///< this rank's tensors
  double seconds = 0.0;   ///< since the rank came to it
};

/// How far a rank is in a group that it belongs to.
struct GroupCount {
  std::string group;
  std::string name;  ///< what messages call it; several groups may share it
  int64_t size = 0;
  int64_t entered = 0;  ///< collectives that the rank came to
};

struct RankReport {
  std::string host;
  int64_t process = 0;
  std::string place;    ///< "step 17, layer 5 on its way up"; empty outside of steps
  bool patient = true;  ///< loads, saves or prepares: whoever waits for it waits
  double idle_s = 0.0;  ///< since the last sign of progress of the thread that works
  double busy_s = 0.0;  ///< that thread ran or was ready to: whoever waits in MPI or for a GPU is busy looking
  std::optional<Collective> waiting;  ///< the collective that it is in, or the oldest that its GPU has not finished
  std::string transport_error;        ///< what NCCL says broke, if it did
  std::vector<GroupCount> groups;
};

/// One line of text without its end, and back; nothing where the line is no report.
std::string to_line(const RankReport& report);
std::optional<RankReport> report_from(const std::string& line);

}  // namespace moetune
