// The lock of a run folder: one run writes there at a time, whatever hosts share its file system.
//
//   RunLock lock("runs/a");           // UserError saying who holds it: host, process, since when
//   ...
//   lock.require_held();              // before anything is written: throws where another run has taken over
//   if (auto holder = read_run_lock("runs/a")) std::cout << holder->text();   // reading needs no lock
//
// runs/a/run.lock is a JSON object: host, boot (the kernel's id of this start), pid_namespace, pid, started (of the
// process, in ticks since the start), since and heartbeat (seconds since 1970), token (drawn for each lock). It appears
// whole, by link(2), which exactly one of many wins. A thread writes it anew every 5 s (kHeartbeat).
//
// Whose process is gone on this host is taken over at once, whose heartbeat is 60 s old in any case. Of those that find
// a lock dead, the one that links run.lock.after-TOKEN (the token of the dead one) succeeds it and is the holder from
// then on, before it puts its own lock in the place of run.lock: the holder is always the last of the chain that begins
// with run.lock. Ages are differences of times of change that the file system itself gives: hosts' clocks may differ.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <filesystem>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

namespace moetune {

struct LockHolder {
  std::string host, boot, pid_namespace;
  int64_t pid = 0;
  int64_t started = 0;    ///< of the process, in ticks since the host's start
  int64_t since = 0;      ///< of the lock, in seconds since 1970
  int64_t heartbeat = 0;  ///< by the holder's clock
  std::string token;      ///< 32 hexadecimal digits

  /// "process 17 on host gpu3, since 2026-11-28 14:03:11 UTC"
  std::string text() const;
  bool operator==(const LockHolder&) const = default;
};

/// Who holds the lock of a run folder, dead or alive; none where there is no lock. UserError where run.lock is no lock.
std::optional<LockHolder> read_run_lock(const std::filesystem::path& folder);
/// Whether that process can have ended only: it ran on this host, and is gone.
bool is_gone(const LockHolder& holder);

constexpr std::chrono::milliseconds kHeartbeat{5000};

class RunLock {
 public:
  /// Takes the lock of a folder that exists, and keeps it until the end of this object or of the process. UserError
  /// where another run holds it. `heartbeat`: time between two of them; shorter ones are for tests.
  explicit RunLock(std::filesystem::path folder, std::chrono::milliseconds heartbeat = kHeartbeat);
  ~RunLock();
  RunLock(const RunLock&) = delete;
  RunLock& operator=(const RunLock&) = delete;

  const LockHolder& holder() const { return own_; }
  /// Throws RankLostError where this process stood still for so long that another run has taken the folder over.
  void require_held();

 private:
  enum class Outcome { kTaken, kLost };
  void take();
  Outcome try_first();
  Outcome try_after(const LockHolder& dead);
  /// Writes the lock anew; false where it is no longer ours.
  bool renew();
  void keep_renewing();

  std::filesystem::path folder_;
  std::chrono::milliseconds interval_;
  LockHolder own_;
  std::atomic<bool> lost_ = false;
  std::atomic<int64_t> renewed_at_ms_ = 0;  // of the steady clock
  std::mutex stopping_;
  std::condition_variable stop_called_;
  bool stop_ = false;
  std::thread heartbeat_;
};

/// Whether `name`, a file of a run folder, is one that taking the lock leaves behind when it is interrupted. Only the
/// holder may remove them.
bool is_leftover_of_lock(const std::string& name);

}  // namespace moetune
