#include "trainer/run/run_lock.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <random>
#include <sstream>
#include <utility>

#include <nlohmann/json.hpp>

#include "parallel/base/clock.h"
#include "parallel/base/error.h"
#include "parallel/base/files.h"
#include "parallel/base/host_name.h"
#include "parallel/base/log.h"
#include "parallel/base/text.h"

namespace moetune {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;
using std::chrono::milliseconds;

constexpr const char* kFormat = "moetune-run-lock-1";
constexpr const char* kLock = "run.lock";
constexpr const char* kSuccessor = "run.lock.after-";
constexpr const char* kOwnCopy = "run.lock.tmp-";
constexpr uint64_t kMaxBytes = 4096;
constexpr int64_t kDeadAfter_s = 60;
// A lock that is linked is whole at once; one that had to be created is empty for an instant, and one that is renewed
// may be read in two halves.
constexpr milliseconds kUntilWritten{2000}, kUntilRenewed{200};

int64_t steady_ms() {
  return std::chrono::duration_cast<milliseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}
int64_t now_s() { return static_cast<int64_t>(seconds_since_1970()); }

std::string line_of(const std::string& path) {
  try {
    std::string text = read_text_file(path);
    while (!text.empty() && (text.back() == '\n' || text.back() == '\0')) text.pop_back();
    return text;
  } catch (const UserError&) {
    return "";
  }
}

/// A process as /proc shows it.
struct ProcessState {
  bool ended = false;   ///< but nobody waited for it yet
  int64_t started = 0;  ///< in ticks since the host's start
};
/// None where /proc does not show it.
std::optional<ProcessState> state_of_process(int64_t pid) {
  const std::string status = line_of(str("/proc/", pid, "/stat"));
  // "PID (NAME) STATE ...": the name may hold anything, so that the fields are counted from its end; start is the 22nd.
  const size_t name_end = status.rfind(')');
  if (name_end == std::string::npos) return std::nullopt;
  std::istringstream fields(status.substr(name_end + 1));
  std::string word;
  fields >> word;
  ProcessState state{word == "Z" || word == "X", 0};
  for (int field = 4; field < 22; ++field) fields >> word;
  return fields >> state.started ? std::optional(state) : std::nullopt;
}

std::string namespace_of_pids() {
  std::error_code error;
  return fs::read_symlink("/proc/self/ns/pid", error).string();
}

LockHolder this_process() {
  LockHolder own;
  own.host = host_name();
  own.boot = line_of("/proc/sys/kernel/random/boot_id");
  own.pid_namespace = namespace_of_pids();
  own.pid = ::getpid();
  own.started = state_of_process(own.pid).value_or(ProcessState{}).started;
  own.since = own.heartbeat = now_s();
  std::random_device draw;
  for (int i = 0; i < 4; ++i) {
    char digits[9];
    std::snprintf(digits, sizeof digits, "%08x", static_cast<unsigned>(draw()));
    own.token += digits;
  }
  return own;
}

/// Of the same length whenever it is written: a heartbeat replaces digits.
std::string text_of(const LockHolder& holder) {
  return ordered_json{{"format", kFormat},     {"host", holder.host},
                      {"boot", holder.boot},   {"pid_namespace", holder.pid_namespace},
                      {"pid", holder.pid},     {"started", holder.started},
                      {"since", holder.since}, {"heartbeat", holder.heartbeat},
                      {"token", holder.token}}
             .dump(-1, ' ', true, ordered_json::error_handler_t::replace) +
         "\n";
}

std::optional<LockHolder> parse(const std::string& text) {
  const ordered_json json = ordered_json::parse(text, nullptr, false);
  if (!json.is_object() || json.value("format", ordered_json()) != kFormat) return std::nullopt;
  LockHolder holder;
  auto read = [&](const char* key, auto& value) {
    const auto found = json.find(key);
    constexpr bool kText = std::is_same_v<std::decay_t<decltype(value)>, std::string>;
    if (found == json.end() || !(kText ? found->is_string() : found->is_number())) return false;
    found->get_to(value);
    return true;
  };
  const bool whole = read("host", holder.host) && read("boot", holder.boot) &&
                     read("pid_namespace", holder.pid_namespace) && read("pid", holder.pid) &&
                     read("started", holder.started) && read("since", holder.since) &&
                     read("heartbeat", holder.heartbeat) && read("token", holder.token) && !holder.token.empty() &&
                     holder.token.find_first_not_of("0123456789abcdef") == std::string::npos;
  return whole ? std::optional(holder) : std::nullopt;
}

bool is_there(const fs::path& path) {
  struct stat status;
  return ::lstat(path.c_str(), &status) == 0;
}

/// A file of the lock; none where there is none. Throws UserError for what cannot be a lock.
std::optional<LockHolder> read_lock_file(const fs::path& path) {
  for (const int64_t begin = steady_ms();;) {
    if (!is_there(path)) return std::nullopt;
    std::string text;
    try {
      text = read_own_file(path.string(), kMaxBytes);
    } catch (const UserError&) {
      if (!is_there(path)) return std::nullopt;  // ended between the two looks
      throw;
    }
    if (const std::optional<LockHolder> holder = parse(text)) return holder;
    if (milliseconds(steady_ms() - begin) > (text.empty() ? kUntilWritten : kUntilRenewed)) {
      throw UserError(str(path.string(), ": is no lock of a run",
                          text.empty() ? " (it is empty); if no run uses the folder, remove it"
                                       : "; moetune needs this name in a run folder: rename the file"));
    }
    std::this_thread::sleep_for(milliseconds(50));
  }
}

/// Where the lock of the holder lies, and the holder: the end of the chain of successors.
struct Found {
  LockHolder holder;
  fs::path path;
};
std::optional<Found> find_holder(const fs::path& folder) {
  constexpr int kLongestChain = 1000;
  std::optional<LockHolder> holder = read_lock_file(folder / kLock);
  if (!holder) return std::nullopt;
  Found found{*holder, folder / kLock};
  for (int i = 0; i < kLongestChain; ++i) {
    const fs::path next = folder / (kSuccessor + found.holder.token);
    holder = read_lock_file(next);
    if (!holder) break;
    found = {*holder, next};
  }
  return found;
}

void write_own_copy(const fs::path& path, const std::string& text) {
  const int descriptor = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0644);
  if (descriptor < 0) throw UserError(str(path.string(), ": cannot create: ", std::strerror(errno)));
  const ssize_t written = ::write(descriptor, text.data(), text.size());
  const int reason = errno;
  if (::close(descriptor) != 0 || written != static_cast<ssize_t>(text.size())) {
    ::unlink(path.c_str());
    throw UserError(str(path.string(), ": cannot write: ", std::strerror(reason)));
  }
}

/// Gives the file a second name that nobody has yet; false where somebody has.
bool link_first(const fs::path& from, const fs::path& to, const std::string& text) {
  if (::link(from.c_str(), to.c_str()) == 0) return true;
  if (errno == EEXIST) {
    // An answer of a network file system that was lost and asked for again says so of our own link.
    struct stat own, theirs;
    return ::stat(from.c_str(), &own) == 0 && ::lstat(to.c_str(), &theirs) == 0 && own.st_ino == theirs.st_ino &&
           own.st_dev == theirs.st_dev;
  }
  // A file system without hard links.
  const int descriptor = ::open(to.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0644);
  if (descriptor < 0 && errno == EEXIST) return false;
  if (descriptor < 0) throw UserError(str(to.string(), ": cannot create: ", std::strerror(errno)));
  const ssize_t written = ::write(descriptor, text.data(), text.size());
  ::close(descriptor);
  if (written == static_cast<ssize_t>(text.size())) return true;
  ::unlink(to.c_str());
  throw UserError(str(to.string(), ": cannot write: ", std::strerror(errno)));
}

/// Seconds since the lock was last written, by the clock of the file system: that of a file written now tells its time.
int64_t age_s(const fs::path& lock, const fs::path& written_now) {
  struct stat then, now;
  if (::lstat(lock.c_str(), &then) != 0 || ::lstat(written_now.c_str(), &now) != 0) return 0;
  return now.st_mtim.tv_sec - then.st_mtim.tv_sec;
}

/// Whether a lock that is old by the clock of its holder is not renewed while this process looks on: clocks may differ,
/// but who lives renews it.
bool stands_still(const Found& found, milliseconds interval) {
  if (now_s() - found.holder.heartbeat < kDeadAfter_s) return false;
  std::this_thread::sleep_for(5 * interval / 2);
  const std::optional<LockHolder> now = read_lock_file(found.path);
  return now && *now == found.holder;
}

std::string utc(int64_t seconds) {
  const std::time_t time = seconds;
  std::tm parts{};
  char text[40] = "?";
  if (::gmtime_r(&time, &parts) != nullptr) std::strftime(text, sizeof text, "%Y-%m-%d %H:%M:%S UTC", &parts);
  return text;
}

bool on_this_host(const LockHolder& holder) {
  const LockHolder own = this_process();
  return holder.host == own.host && holder.boot == own.boot && holder.pid_namespace == own.pid_namespace;
}

}  // namespace

std::string LockHolder::text() const {
  return str("process ", pid, " on host ", in_quotes(host), ", since ", utc(since));
}

std::optional<LockHolder> read_run_lock(const fs::path& folder) {
  const std::optional<Found> found = find_holder(folder);
  return found ? std::optional(found->holder) : std::nullopt;
}

bool is_gone(const LockHolder& holder) {
  if (!on_this_host(holder)) return false;
  const bool there = holder.pid > 0 && (::kill(static_cast<pid_t>(holder.pid), 0) == 0 || errno == EPERM);
  if (!there) return true;
  // Another user's process may be hidden from us: then it is taken for the holder.
  const std::optional<ProcessState> state = state_of_process(holder.pid);
  return state && (state->ended || state->started != holder.started);
}

bool is_leftover_of_lock(const std::string& name) {
  return name.rfind(kSuccessor, 0) == 0 || name.rfind(kOwnCopy, 0) == 0;
}

RunLock::RunLock(fs::path folder, milliseconds heartbeat)
    : folder_(std::move(folder)), interval_(heartbeat), own_(this_process()) {
  take();
  renewed_at_ms_ = steady_ms();
  // Signals are the main thread's.
  sigset_t all, before;
  sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);
  heartbeat_ = std::thread([this] { keep_renewing(); });
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

RunLock::~RunLock() {
  {
    const std::lock_guard lock(stopping_);
    stop_ = true;
  }
  stop_called_.notify_all();
  heartbeat_.join();
  try {
    const std::optional<LockHolder> holder = read_lock_file(folder_ / kLock);
    if (holder && holder->token == own_.token) ::unlink((folder_ / kLock).c_str());
  } catch (const UserError&) {
    // Somebody put something else there: it is not ours to remove.
  }
}

void RunLock::take() {
  constexpr int kAttempts = 100;  // each is lost to a run that took or gave up the lock meanwhile
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    const fs::path copy = folder_ / (kOwnCopy + own_.token);
    std::optional<Found> found = find_holder(folder_);
    if (!found) {
      if (try_first() == Outcome::kTaken) return;
      continue;
    }
    bool dead = is_gone(found->holder);
    int64_t age = 0;
    if (!dead) {
      write_own_copy(copy, text_of(own_));
      age = age_s(found->path, copy);
      ::unlink(copy.c_str());
      dead = !on_this_host(found->holder) && (age >= kDeadAfter_s || stands_still(*found, interval_));
    }
    if (!dead) {
      const bool here = on_this_host(found->holder);
      throw UserError(str(
          folder_.string(), ": another run holds this folder: ", found->holder.text(),
          here ? "" : str(", last heard of ", age, " s ago"), ". Wait until it has ended, or name another run.dir",
          here
              ? ""
              : str("; should it be dead, its lock may be taken over after ", kDeadAfter_s, " s without a heartbeat")));
    }
    if (try_after(found->holder) == Outcome::kTaken) {
      log_info(str(folder_.string(), ": took over the lock of a run that has ended: ", found->holder.text()));
      return;
    }
  }
  throw UserError(str(folder_.string(), ": many runs ask for this folder at once; start one of them"));
}

RunLock::Outcome RunLock::try_first() {
  const fs::path copy = folder_ / (kOwnCopy + own_.token);
  write_own_copy(copy, text_of(own_));
  bool taken = false;
  try {
    taken = link_first(copy, folder_ / kLock, text_of(own_));
  } catch (const UserError&) {
    ::unlink(copy.c_str());
    throw;
  }
  ::unlink(copy.c_str());
  const std::optional<Found> found = taken ? find_holder(folder_) : std::nullopt;
  return found && found->holder.token == own_.token ? Outcome::kTaken : Outcome::kLost;
}

RunLock::Outcome RunLock::try_after(const LockHolder& dead) {
  const fs::path copy = folder_ / (kOwnCopy + own_.token), successor = folder_ / (kSuccessor + dead.token);
  write_own_copy(copy, text_of(own_));
  bool taken = false;
  try {
    taken = link_first(copy, successor, text_of(own_));
  } catch (const UserError&) {
    ::unlink(copy.c_str());
    throw;
  }
  // The dead one may have been succeeded, and the name of its successor removed, before it was linked here: then the
  // chain does not lead to this process.
  const std::optional<Found> found = taken ? find_holder(folder_) : std::nullopt;
  if (!found || found->holder.token != own_.token) {
    if (taken) ::unlink(successor.c_str());
    ::unlink(copy.c_str());
    return Outcome::kLost;
  }
  if (::rename(copy.c_str(), (folder_ / kLock).c_str()) != 0) {
    throw UserError(str((folder_ / kLock).string(), ": cannot rename: ", std::strerror(errno)));
  }
  ::unlink(successor.c_str());
  return Outcome::kTaken;
}

bool RunLock::renew() {
  const fs::path path = folder_ / kLock;
  // The file that is written is the one that was read: who takes over puts another one in its place.
  const int descriptor = ::open(path.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
  if (descriptor < 0) return errno != ENOENT && errno != ELOOP && errno != ENOTDIR;  // else: heard of again later
  std::string text(kMaxBytes, '\0');
  const ssize_t count = ::pread(descriptor, text.data(), text.size(), 0);
  text.resize(count > 0 ? static_cast<size_t>(count) : 0);
  const std::optional<LockHolder> holder = parse(text);
  const bool ours = count < 0 || (holder && holder->token == own_.token);
  if (ours) {
    LockHolder now = own_;
    now.heartbeat = now_s();
    const std::string written = text_of(now);
    if (::pwrite(descriptor, written.data(), written.size(), 0) == static_cast<ssize_t>(written.size())) {
      renewed_at_ms_ = steady_ms();
    }
  }
  ::close(descriptor);
  return ours;
}

void RunLock::keep_renewing() {
  std::unique_lock lock(stopping_);
  while (!stop_called_.wait_for(lock, interval_, [this] { return stop_; })) {
    lock.unlock();
    if (!renew()) lost_ = true;
    lock.lock();
    if (lost_) return;
  }
}

void RunLock::require_held() {
  // While the heartbeat goes on nobody takes over.
  const bool fresh = steady_ms() - renewed_at_ms_ < 1000 * kDeadAfter_s / 2;
  if (!lost_ && !fresh && !renew()) lost_ = true;
  if (!lost_) return;
  std::string holder;
  try {
    const std::optional<LockHolder> found = read_run_lock(folder_);
    holder = found ? str("now held by ", found->text()) : "run.lock was removed";
  } catch (const UserError& error) {
    holder = error.what();
  }
  throw RankLostError(str(folder_.string(), ": this run no longer holds its folder (", holder,
                          "): it stood still for longer than ", kDeadAfter_s,
                          " s, or somebody removed the lock. Nothing more was written"));
}

}  // namespace moetune
