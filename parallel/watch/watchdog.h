// Ends a job that no longer gets on, with one message: a rank that died, is silent, or stands still while others wait
// for it.
//
//   Watchdog watchdog(rank, world_size, 30.0, progress, share);    // every rank; Launch::watch does it
//   ...                                                            // the job; RankProgress tells what it does
//   ~Watchdog                                                      // this rank is done, whatever the others do
//
// Each rank has a thread that tells ranks 0 and 1 twice a second, over TCP and never over MPI, what RankProgress says
// of it. Rank 0 judges (parallel/watch/verdict.h), rank 1 does when rank 0 is gone. Who finds something prints it,
// tells the others to leave without a word, and ends its process with exit code 5, which makes the launcher end the
// job. A rank that reaches neither of the two for long speaks for itself.
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "parallel/watch/line_socket.h"
#include "parallel/watch/rank_progress.h"
#include "parallel/watch/verdict.h"

namespace moetune {

class Watchdog {
 public:
  /// share(text, root) returns the text of rank `root` on every rank: a collective, called by the constructor, which
  /// all ranks of the job call. `stall_timeout_s` above 0: how long a rank may stand still while others wait for it
  /// (Limits::stall_s); a process may be silent for as long, but no longer than 20 s.
  Watchdog(int rank, int world_size, double stall_timeout_s, RankProgress& progress,
           const std::function<std::string(const std::string& text, int root)>& share);
  /// Tells that this rank is done. Not a collective; but while rank 0 or 1 watches over others, it must not go before
  /// them.
  ~Watchdog();

  /// This rank is about to tell what went wrong and to end the job: nobody else shall speak.
  void failing();
  /// Makes the other ranks leave with this exit code, without a word. This one goes on.
  void end_others(int code);

 private:
  using Clock = std::chrono::steady_clock;
  /// A rank as a watching rank knows it.
  struct Watched {
    Witness witness;
    Clock::time_point heard;
    std::optional<LineSocket> socket;
  };
  bool watches() const { return rank_ <= 1; }
  void connect(int watcher, const std::string& where);
  void run();
  void read_all();
  void obey(const std::string& line);
  void admit(LineSocket socket, const std::string& hello);
  void hear(Watched& watched, const std::string& line);
  void beat(bool stood_still);
  void judge();
  /// Nobody watches over this rank any more.
  bool forsaken(Clock::time_point now) const;
  [[noreturn]] void speak(const std::string& message);
  [[noreturn]] void leave(int code);
  void tell_others(const std::string& line);

  const int rank_;
  const int world_size_;
  const Limits limits_;
  const std::chrono::milliseconds period_;
  RankProgress& progress_;
  std::string token_;  ///< of this job: strangers that find the port are sent away

  std::mutex mutex_;                      ///< over all that follows; held by the thread except while it waits
  std::optional<LineListener> listener_;  ///< of ranks 0 and 1
  std::vector<LineSocket> strangers_;     ///< have not said who they are
  std::vector<Watched> ranks_;            ///< of ranks 0 and 1
  std::map<int, LineSocket> watchers_;    ///< rank 0 or 1 -> the way there
  Clock::time_point heard_watcher_ = Clock::now();
  bool failing_ = false;
  std::atomic<bool> done_ = false;
  std::thread thread_;
};

}  // namespace moetune
