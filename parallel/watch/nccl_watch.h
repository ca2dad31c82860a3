// Which collectives the GPU has not finished, and what NCCL says broke: a collective on a GPU returns at once, so that
// a peer that never comes shows only in a kernel that never ends.
//
//   NcclWatch watch(progress, device);                        // a thread of its own
//   watch.add(comm, "ep");
//   ncclAllReduce(...);  watch.enqueued(collective, stream);  // an event on the stream: about 2 us
//
// The thread tells RankProgress what it finds. It is not that of Watchdog: a call into CUDA may wait, behind a lock of
// the driver, for the very kernel that does not end, and a rank must not fall silent because it waits.
#pragma once

#include <c10/core/Device.h>

#include <atomic>
#include <deque>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "parallel/watch/rank_progress.h"

// Types of CUDA and NCCL.
struct CUevent_st;
struct CUstream_st;
struct ncclComm;

namespace moetune {

class NcclWatch {
 public:
  NcclWatch(RankProgress& progress, c10::Device device);
  /// The groups are gone by now.
  ~NcclWatch();

  void add(ncclComm* comm, const std::string& group_name);
  void remove(ncclComm* comm);
  /// The collective was just given to `stream` of the device.
  void enqueued(const Collective& collective, CUstream_st* stream);

 private:
  struct Enqueued {
    Collective collective;
    CUevent_st* finished;
  };
  void run();
  /// Takes out what is finished, oldest first.
  void take_finished();
  void look_for_errors();

  RankProgress& progress_;
  c10::Device device_;
  std::mutex mutex_;
  std::map<ncclComm*, std::string> groups_;
  std::deque<Enqueued> enqueued_;
  std::vector<CUevent_st*> free_events_;
  bool broken_ = false;  ///< CUDA reports an error, which the thread that works will meet too
  std::atomic<bool> done_ = false;
  std::thread thread_;
};

}  // namespace moetune
