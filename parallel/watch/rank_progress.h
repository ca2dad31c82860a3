// What this rank is doing: where it is, which collectives it came to, when it last got on. The thread that works writes
// it as it goes, the watchdog reads it at any time; nothing here waits for another rank.
//
//   RankProgress& progress = launch.progress();
//   RankProgress::Place place(&progress, "step 17", RankProgress::Pace::kWatched);     // until the end of the scope
//   RankProgress::Place layer(&progress, "layer 5 on its way up");                 // "step 17, layer 5 on its way up"
//
// Signs of progress are: a change of place, a collective begun or ended, an operator of torch begun (count_operators).
// Groups of Launch::make_group tell of their collectives by themselves.
#pragma once

#include <time.h>

#include <chrono>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "parallel/watch/rank_report.h"

namespace moetune {

/// The thread that makes it, as the kernel schedules it.
class WorkingThread {
 public:
  WorkingThread();
  /// Seconds that it ran or was ready to run. On a crowded machine a thread that only looks whether others have come
  /// is seldom on a CPU, but always ready; one that is stopped or waits for a lock is neither. Where the kernel does
  /// not tell: its CPU time.
  double busy_s() const;

 private:
  std::string schedule_file_;
  clockid_t cpu_clock_;
};

class RankProgress {
 public:
  /// Whether a rank that lives but does not get on may be called stalled. Outside of any place it may not.
  enum class Pace {
    kInherited,  ///< as in the place around it
    kWatched,    ///< computes and talks to other ranks
    kPatient,    ///< waits for disks or other programs, for as long as they take
  };

  /// A place with a name, as long as the object lives. What an exception leaves stays told, for the message.
  class Place {
   public:
    /// `progress` may be null: then it does nothing.
    Place(RankProgress* progress, std::string text, Pace pace = Pace::kInherited);
    ~Place();
    Place(const Place&) = delete;
    Place& operator=(const Place&) = delete;

   private:
    RankProgress* progress_;
    size_t depth_ = 0;  ///< places around this one
    int exceptions_at_birth_;
  };

  /// Made by the thread that works.
  RankProgress();
  RankProgress(const RankProgress&) = delete;
  RankProgress& operator=(const RankProgress&) = delete;

  /// Where the rank is: "step 17, layer 5 on its way up, in all_reduce_sum #12 of group data (4096 bytes)"; empty
  /// outside of places and collectives.
  std::string where() const;
  /// What other ranks are to know now. `operators`: torch's operators begun so far; a change is a sign of progress.
  RankReport report(int64_t operators);
  /// The process itself stood still (it was stopped, or the machine slept): being idle counts from now.
  void forgive();

  /// The oldest collective that the GPU was given and has not finished; NcclWatch tells.
  void set_unfinished(std::optional<Collective> collective);
  void set_transport_error(const std::string& error);

 private:
  friend class GroupProgress;
  using Clock = std::chrono::steady_clock;
  struct Named {
    std::string text;
    bool patient;
  };
  struct UnderWay {
    Collective collective;
    Clock::time_point since;
  };
  std::string place() const;

  mutable std::mutex mutex_;
  std::string host_;
  std::vector<Named> places_;
  std::vector<GroupCount> groups_;
  std::optional<UnderWay> call_;        ///< the thread that works is inside of it
  std::optional<UnderWay> unfinished_;  ///< on the GPU
  std::string transport_error_;
  int64_t signs_ = 0;
  int64_t signs_told_ = -1;
  Clock::time_point last_sign_ = Clock::now();
  const WorkingThread thread_;
  double busy_at_last_sign_s_ = 0.0;
};

/// A group of ranks as RankProgress sees it: counts its collectives. Held by the Communicator of the group.
class GroupProgress {
 public:
  GroupProgress(RankProgress& progress, std::string group, std::string name, int64_t size);
  ~GroupProgress();
  GroupProgress(const GroupProgress&) = delete;
  GroupProgress& operator=(const GroupProgress&) = delete;

  /// The rank is in a collective of the group as long as the object lives.
  class Call {
   public:
    /// `group` may be null: then it does nothing.
    Call(GroupProgress* group, const std::string& operation, int64_t bytes);
    ~Call();
    Call(const Call&) = delete;
    Call& operator=(const Call&) = delete;

   private:
    GroupProgress* group_;
    int exceptions_at_birth_;
  };

  /// The collective that the rank is in.
  Collective under_way() const;

 private:
  GroupCount& count() const;

  RankProgress& progress_;
  std::string group_;
};

}  // namespace moetune
