#include "parallel/comm/launch.h"

#include <ATen/ATen.h>
#include <c10/cuda/CUDAFunctions.h>
#include <cuda_runtime_api.h>
#include <mpi.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <thread>
#include <type_traits>
#include <vector>

#include "parallel/base/cpus.h"
#include "parallel/base/error.h"
#include "parallel/base/host_name.h"
#include "parallel/base/log.h"
#include "parallel/comm/failure.h"
#include "parallel/comm/mpi_communicator.h"
#include "parallel/comm/nccl_communicator.h"
#include "parallel/device/gpu_support.h"
#include "parallel/watch/nccl_watch.h"
#include "parallel/watch/start_guard.h"
#include "parallel/watch/watchdog.h"

namespace moetune {
namespace {

bool started_by_mpirun() {
  // Open MPI's mpirun sets the first; launchers that speak PMIx to it (prterun, srun --mpi=pmix) set the second.
  return std::getenv("OMPI_COMM_WORLD_SIZE") != nullptr || std::getenv("PMIX_RANK") != nullptr;
}

/// Tasks that srun started with this one, each a program of its own.
int tasks_apart() {
  const char* tasks = std::getenv("SLURM_STEP_NUM_TASKS");
  return tasks == nullptr ? 1 : std::atoi(tasks);
}

/// How long a rank leaves the word to others before it prints its failure. Ranks above 0 differ a little, so that one
/// of them speaks where the mistake spares rank 0. A lost rank is a consequence: the cause has time to be printed
/// first.
std::chrono::milliseconds patience(int rank, ExitCode code) {
  const int turn_ms = rank == 0 ? 0 : 2000 + 100 * std::min(rank - 1, 20);
  return std::chrono::milliseconds(code == ExitCode::kRankLost ? 5000 + turn_ms : turn_ms);
}

}  // namespace

Launch::Launch()
    : exceptions_at_birth_(std::uncaught_exceptions()),
      start_limit_s_(start_limit_from_environment()),
      uses_mpi_(started_by_mpirun()) {
  const CpuSet own_cpus = allowed_cpus();
  static_assert(std::is_trivially_copyable_v<CpuSet>);
  std::vector<CpuSet> sets{own_cpus};
  if (uses_mpi_) {
    int initialized = 0;
    MPI_Initialized(&initialized);
    MT_CHECK(!initialized, "a second Launch in one process");
    const LaunchedAs told = launched_as();
    if (told.num_ranks > 1) log_init(told.rank, told.num_ranks);
    const std::unique_ptr<StartGuard> guard = StartGuard::begin(told, start_limit_s_, "MPI's start");
    int thread_level = MPI_THREAD_SINGLE;
    MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &thread_level);
    MT_CHECK(thread_level >= MPI_THREAD_FUNNELED, "this MPI cannot be used beside other threads");
    MPI_Comm_rank(MPI_COMM_WORLD, &rank_);
    MPI_Comm_size(MPI_COMM_WORLD, &world_size_);
    MPI_Comm host_ranks = MPI_COMM_NULL;
    MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, rank_, MPI_INFO_NULL, &host_ranks);
    MPI_Comm_rank(host_ranks, &local_rank_);
    MPI_Comm_size(host_ranks, &local_size_);
    int leader = rank_;
    MPI_Bcast(&leader, 1, MPI_INT, 0, host_ranks);
    sets.resize(static_cast<size_t>(local_size_));
    MPI_Allgather(&own_cpus, sizeof own_cpus, MPI_BYTE, sets.data(), sizeof own_cpus, MPI_BYTE, host_ranks);
    MPI_Comm_free(&host_ranks);
    host_leaders_.resize(world_size_);
    MPI_Allgather(&leader, 1, MPI_INT, host_leaders_.data(), 1, MPI_INT, MPI_COMM_WORLD);
    host_world_ = MpiCommunicator::split_world(0, rank_, "world (host)");
    host_world_->barrier();  // under the guard: who is here may count on all others
    host_world_->report_to(
        std::make_unique<GroupProgress>(progress_, make_group_id(0), host_world_->name(), world_size_));
  } else {
    num_tasks_apart_ = tasks_apart();
    host_world_ = std::make_unique<LocalCommunicator>("world (host)");
  }
  num_cpus_ = static_cast<int>(cpu_share(sets, static_cast<size_t>(local_rank_), cpu_quota()));
  log_init(rank_, world_size_);
}

Launch::~Launch() {
  // Who watches over others stays until the last is done.
  if (watchdog_ && std::uncaught_exceptions() == exceptions_at_birth_) host_world_->barrier();
  nccl_watch_.reset();
  watchdog_.reset();
  host_world_.reset();
  if (uses_mpi_ && std::uncaught_exceptions() == exceptions_at_birth_) MPI_Finalize();
}

void Launch::require_one_job() const {
  if (num_tasks_apart_ <= 1) return;
  throw UserError(
      str("srun started ", num_tasks_apart_,
          " tasks that do not know of each other: each would be a run of one rank; start them with srun --mpi=pmix "
          "(srun --mpi=list says what is there)"));
}

void Launch::watch(double stall_timeout_s) {
  MT_CHECK(!watchdog_, "a second watchdog");
  if (world_size_ == 1 || stall_timeout_s <= 0.0) return;
  // A rank may have stopped since MPI's start, or stops before the watchdog knows it.
  const std::unique_ptr<StartGuard> guard = StartGuard::begin(
      {rank_, world_size_, local_size_}, std::min(start_limit_s_, stall_timeout_s), "the watchdog's start");
  watchdog_ =
      std::make_unique<Watchdog>(rank_, world_size_, stall_timeout_s, progress_,
                                 [this](const std::string& text, int root) { return broadcast_string(text, root); });
  host_world_->barrier();
}

std::string Launch::make_group_id(int color) { return str(num_groups_++, ".", color); }

void Launch::use_device(const std::string& kind) {
  MT_CHECK(kind == "cpu" || kind == "cuda", "device kind ", kind);
  if (kind == "cpu") {
    device_ = c10::Device(c10::kCPU);
    return;
  }
  const int num_gpus = c10::cuda::device_count();
  if (num_gpus == 0) {
    int ignored = 0;
    throw UserError(str("device cuda: this process sees no GPU on host ", host_name(),
                        " (CUDA says: ", cudaGetErrorString(cudaGetDeviceCount(&ignored)),
                        "); look at nvidia-smi and CUDA_VISIBLE_DEVICES there, or run on the CPU"));
  }
  if (num_gpus < local_size_) {
    throw UserError(str("device cuda: ", local_size_, " ranks were started on host ", host_name(),
                        ", where a process sees ", num_gpus, " GPUs; each rank needs one of its own: start at most ",
                        num_gpus, " ranks there (slots=", num_gpus,
                        " in mpirun's hostfile), or let CUDA_VISIBLE_DEVICES show every rank all GPUs"));
  }
  require_supported_gpu(local_rank_);
  device_ = c10::Device(c10::kCUDA, static_cast<c10::DeviceIndex>(local_rank_));
  c10::cuda::set_device(device_.index());
}

std::unique_ptr<Communicator> Launch::make_group(int color, int key, const std::string& name) {
  if (!uses_mpi_) return std::make_unique<LocalCommunicator>(name, device_);
  const auto call = host_world_->enter("make_group " + name, 0);
  const std::string id = make_group_id(color);
  auto host = MpiCommunicator::split_world(color, key, name);
  if (host->size() == 1) return std::make_unique<LocalCommunicator>(name, device_);
  auto progress = std::make_unique<GroupProgress>(progress_, id, name, host->size());
  std::unique_ptr<Communicator> group;
  if (device_.is_cuda()) {
    if (watchdog_ && !nccl_watch_) nccl_watch_ = std::make_unique<NcclWatch>(progress_, device_);
    group = std::make_unique<NcclCommunicator>(std::move(host), device_, nccl_watch_.get());
  } else {
    group = std::move(host);
  }
  group->report_to(std::move(progress));
  return group;
}

int64_t Launch::max_over_world(int64_t value) {
  const at::Tensor largest = at::full({1}, value, at::kLong);
  host_world_->all_reduce_max(largest);
  return largest.item<int64_t>();
}

std::string Launch::broadcast_string(const std::string& text, int root) {
  const at::Tensor length = at::full({1}, static_cast<int64_t>(text.size()), at::kLong);
  host_world_->broadcast(length, root);
  const at::Tensor bytes = at::empty({length.item<int64_t>()}, at::kByte);
  if (rank_ == root && !text.empty()) std::memcpy(bytes.data_ptr(), text.data(), text.size());
  host_world_->broadcast(bytes, root);
  return std::string(static_cast<const char*>(bytes.data_ptr()), bytes.numel());
}

void Launch::failing() {
  if (watchdog_) watchdog_->failing();
}

void Launch::abort(int code) {
  // Told to end by mpirun, ranks in a collective would wait for its SIGKILL, which may be a minute away.
  if (watchdog_) watchdog_->end_others(code);
  if (uses_mpi_) MPI_Abort(MPI_COMM_WORLD, code);
  std::_Exit(code);
}

int run_guarded(Launch& launch, const std::function<int()>& program) {
  try {
    launch.require_one_job();
    return program();
  } catch (...) {
    launch.failing();
    Failure failure = current_failure();
    const std::string where = launch.progress().where();
    if (failure.code != ExitCode::kUserError && !where.empty()) {
      failure.message += str("\n  rank ", launch.rank(), " of ", launch.world_size(), " was at ", where);
    }
    if (launch.world_size() > 1) std::this_thread::sleep_for(patience(launch.rank(), failure.code));
    log_error(failure.message);
    if (launch.world_size() > 1) launch.abort(static_cast<int>(failure.code));
    return static_cast<int>(failure.code);
  }
}

}  // namespace moetune
