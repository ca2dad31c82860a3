// Ends a job whose ranks do not come together at its start, with one message that names the rank that is missing.
//
//   const std::optional<StartGuard> guard = ...          // StartGuard::begin(limit_s, "MPI's start")
//   MPI_Init(...);                                       // waits for all ranks
//   // the end of the scope: they have come
//
// The watchdog (parallel/watch/watchdog.h) needs MPI to find the other ranks, so until it watches nothing but time and
// the kernel's list of processes tell that one of them stopped. Each rank has a thread that waits; when the limit has
// passed it looks at the ranks of its own host, which one launcher started, and the first sound one of them speaks. A
// host on which all ranks are sound gives the others as long again: the missing rank is elsewhere.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace moetune {

/// What the launcher told this process about the job in its environment.
struct LaunchedAs {
  int rank = 0;
  int num_ranks = 0;        ///< 0: not told
  int num_local_ranks = 0;  ///< of this host; 0: not told
};

/// A rank of this host as the kernel knows it.
struct HostRank {
  int rank = 0;
  int pid = 0;
  char state = 'R';  ///< proc(5): R runs, S sleeps, D waits for a disk, T stopped, t stopped by a debugger, Z ended
};

/// What the ranks of one host say about a start that does not end.
struct StartVerdict {
  bool blames = false;  ///< a rank of this host is to blame
  std::string message;
};

/// Judges from the point of view of `own`, after `waited_s` in `place` ("MPI's start"). `seen` holds the ranks of the
/// host that have a process, this one too.
StartVerdict start_verdict(const LaunchedAs& own, std::vector<HostRank> seen, const std::string& host, double waited_s,
                           const std::string& place);

/// The seconds that a start may take: MOETUNE_START_TIMEOUT_S of the environment, or 60. 0: as long as it likes. Throws
/// UserError where the variable is no such number. Read once, when the program starts.
double start_limit_from_environment();
/// What mpirun, prterun or srun told this process.
LaunchedAs launched_as();

class StartGuard {
 public:
  /// Watches from now on, until the end of the object. Nothing where `limit_s` is 0 or the job has one rank. Time in
  /// which this process itself stood still does not count.
  static std::unique_ptr<StartGuard> begin(const LaunchedAs& own, double limit_s, const std::string& place);
  ~StartGuard();
  StartGuard(const StartGuard&) = delete;
  StartGuard& operator=(const StartGuard&) = delete;

 private:
  StartGuard(const LaunchedAs& own, double limit_s, const std::string& place);
  void run();

  const LaunchedAs own_;
  const double limit_s_;
  const std::string place_;
  std::mutex mutex_;
  std::condition_variable over_changed_;
  bool over_ = false;
  std::thread thread_;
};

}  // namespace moetune
