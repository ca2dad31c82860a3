// One process of the job: how it was started, which rank it is, which device it has, and how a mistake ends all ranks.
//
//   int main(int argc, char** argv) {
//     Launch launch;                              // MPI if mpirun started the process, otherwise one rank without MPI
//     return run_guarded(launch, [&] {
//       launch.use_device("cuda");
//       auto world = launch.make_group(0, launch.rank(), "world");
//       ...
//       return 0;
//     });
//   }
#pragma once

#include <c10/core/Device.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "parallel/watch/rank_progress.h"

namespace moetune {

class Communicator;
class NcclWatch;
class Watchdog;

class Launch {
 public:
  /// Starts MPI when the process was started by mpirun (or by another launcher that sets PMIx variables), and the log.
  /// At most one a process. MPI is used from one thread at a time, the one that constructs this. Waits for all ranks;
  /// where one does not come, the job ends with one message and exit code 5 (parallel/watch/start_guard.h).
  Launch();
  /// Ends MPI: waits for all ranks. While an exception is under way it does not.
  ~Launch();
  Launch(const Launch&) = delete;
  Launch& operator=(const Launch&) = delete;

  int rank() const { return rank_; }
  int world_size() const { return world_size_; }
  /// Place among the ranks of this host, 0 .. local_size() - 1.
  int local_rank() const { return local_rank_; }
  int local_size() const { return local_size_; }
  /// The lowest rank of the host on which `rank` runs.
  int host_leader_of(int64_t rank) const { return host_leaders_.at(rank); }
  /// CPUs that this rank may keep busy: those of its host that it is bound to or that its control group allows, shared
  /// evenly with the other ranks there that may use them too. At least 1.
  int num_cpus() const { return num_cpus_; }

  /// Throws UserError where srun started several tasks that do not know of each other. run_guarded() asks first of all.
  void require_one_job() const;

  /// What this rank is doing, for messages and for the watchdog; the program tells it as it goes.
  RankProgress& progress() { return progress_; }
  /// From now on a rank that dies, is silent for 20 s, or stands still for `stall_timeout_s` while others wait for it
  /// ends the job with one message and exit code 5 (parallel/watch/watchdog.h). 0, or a single rank: nothing. All ranks
  /// call it, at most once.
  void watch(double stall_timeout_s);

  /// Chooses where groups made from now on keep their tensors: "cpu" (as at the start) or "cuda", the GPU of this host
  /// with the number local_rank(), made current. UserError where the host has fewer GPUs than ranks, or one that the
  /// program's kernels are not built for.
  void use_device(const std::string& kind);
  c10::Device device() const { return device_; }

  /// The group of the ranks that pass the same color (>= 0), ordered by key, for tensors on device(): NCCL on GPUs, MPI
  /// on CPUs, LocalCommunicator where a rank is alone. All ranks of the job call it, in the same order; it waits for
  /// them. The group must not outlive the Launch.
  std::unique_ptr<Communicator> make_group(int color, int key, const std::string& name);

  /// The largest value of all ranks, on the host. All ranks call it.
  int64_t max_over_world(int64_t value);
  /// The text of rank `root`, on every rank. All ranks call it; the argument of other ranks is ignored.
  std::string broadcast_string(const std::string& text, int root = 0);

  /// Ends every rank of the job at once; mpirun's exit code is `code`. Not a collective.
  [[noreturn]] void abort(int code);
  /// This rank is about to print what went wrong and to abort: the watchdog leaves it the word. Not a collective.
  void failing();

 private:
  std::string make_group_id(int color);

  int exceptions_at_birth_;
  double start_limit_s_;
  bool uses_mpi_;
  int num_tasks_apart_ = 1;  // without MPI: what srun started beside each other
  int rank_ = 0;
  int world_size_ = 1;
  int local_rank_ = 0;
  int local_size_ = 1;
  std::vector<int> host_leaders_ = {0};
  int num_cpus_ = 1;
  int num_groups_ = 0;  ///< made so far; the same on all ranks
  c10::Device device_ = c10::Device(c10::kCPU);
  RankProgress progress_;  // outlives all groups
  std::unique_ptr<Communicator> host_world_;
  std::unique_ptr<Watchdog> watchdog_;
  std::unique_ptr<NcclWatch> nccl_watch_;
};

/// Runs the program and returns its exit code. An exception is printed and ends every rank with the exit code of the
/// error (error.h; running out of memory is 3, an unknown exception 1). A mistake that all ranks make is printed once:
/// rank 0 prints at once and ends the job, another rank first gives it 2 s, and an error that says a rank was lost
/// first gives the rank that was lost the time to say why. Behind what is no mistake of the user's stands where the
/// rank was: step, layer, collective.
int run_guarded(Launch& launch, const std::function<int()>& program);

}  // namespace moetune
