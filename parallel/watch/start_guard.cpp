#include "parallel/watch/start_guard.h"

#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <set>

#include "parallel/base/error.h"
#include "parallel/base/host_name.h"
#include "parallel/base/log.h"
#include "parallel/base/text.h"

namespace moetune {
namespace {

namespace fs = std::filesystem;

constexpr double kLimit_s = 60.0;
/// A rank that is about to speak leaves the ranks of its host with lower numbers the time to do so.
constexpr double kTurn_s = 2.0;
constexpr const char* kVariable = "MOETUNE_START_TIMEOUT_S";
constexpr const char* kRankVariables[] = {"OMPI_COMM_WORLD_RANK", "PMIX_RANK"};

int number_of(const char* const* names, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) {
    const char* text = std::getenv(names[i]);
    int value = 0;
    if (text != nullptr && std::from_chars(text, text + std::strlen(text), value).ec == std::errc()) return value;
  }
  return 0;
}

std::string bytes_of(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

/// The rank in another process' environment (items that end in NUL), if it is one.
std::optional<int> rank_in(const std::string& environment) {
  for (const char* name : kRankVariables) {
    const std::string item = std::string("\0", 1) + name + "=";
    const std::size_t at = (std::string("\0", 1) + environment).find(item);
    if (at == std::string::npos) continue;
    int rank = 0;
    const char* begin = environment.data() + at + item.size() - 1;
    if (std::from_chars(begin, environment.data() + environment.size(), rank).ec == std::errc()) return rank;
  }
  return std::nullopt;
}

/// The ranks that the launcher of this process has started on this host: its children that carry a rank's number.
std::vector<HostRank> ranks_of_this_host() {
  std::vector<HostRank> ranks;
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator("/proc", ignored)) {
    const std::string name = entry.path().filename().string();
    HostRank found;
    if (std::from_chars(name.data(), name.data() + name.size(), found.pid).ptr != name.data() + name.size()) continue;
    const std::string stat = bytes_of(entry.path() / "stat");  // "17 (name, which may hold anything) S 1 ..."
    const std::size_t end = stat.rfind(") ");
    if (end == std::string::npos || end + 4 >= stat.size()) continue;
    found.state = stat[end + 2];
    if (std::atoi(stat.c_str() + end + 4) != ::getppid()) continue;
    const std::optional<int> rank = rank_in(bytes_of(entry.path() / "environ"));
    if (!rank) continue;
    found.rank = *rank;
    ranks.push_back(found);
  }
  return ranks;
}

const char* state_words(char state) {
  switch (state) {
    case 'T': return "is stopped (SIGSTOP, or Ctrl-Z)";
    case 't': return "is stopped by a debugger";
    case 'Z':
    case 'X': return "has ended";
    case 'D': return "waits for a disk";
    case 'R': return "runs";
    default: return "sleeps";
  }
}

bool is_sound(const HostRank& rank) { return std::strchr("TtZX", rank.state) == nullptr; }

}  // namespace

double start_limit_from_environment() {
  const char* text = std::getenv(kVariable);
  if (text == nullptr || *text == '\0') return kLimit_s;
  double limit_s = 0.0;
  const char* end = text + std::strlen(text);
  const auto result = std::from_chars(text, end, limit_s);
  if (result.ec != std::errc() || result.ptr != end || !(limit_s >= 0.0 && limit_s <= 1e6)) {
    throw UserError(str("environment: ", kVariable, " is ", in_quotes(text),
                        "; allowed: seconds from 0 (no limit) to 1000000, for instance 60"));
  }
  return limit_s;
}

LaunchedAs launched_as() {
  constexpr const char* kSizes[] = {"OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS"};
  constexpr const char* kLocalSizes[] = {"OMPI_COMM_WORLD_LOCAL_SIZE"};
  return {number_of(kRankVariables, std::size(kRankVariables)), number_of(kSizes, std::size(kSizes)),
          number_of(kLocalSizes, std::size(kLocalSizes))};
}

StartVerdict start_verdict(const LaunchedAs& own, std::vector<HostRank> seen, const std::string& host, double waited_s,
                           const std::string& place) {
  std::sort(seen.begin(), seen.end(), [](const HostRank& a, const HostRank& b) { return a.rank < b.rank; });
  const std::string of_all = own.num_ranks > 0 ? str(" of ", own.num_ranks) : "";
  StartVerdict verdict;
  for (const HostRank& rank : seen) {
    if (is_sound(rank)) continue;
    verdict.message += str(verdict.message.empty() ? "" : "; ", "rank ", rank.rank, of_all, " (host ", host,
                           ", process ", rank.pid, ") ", state_words(rank.state));
  }
  // Processes that are hidden from this one (a /proc of its own) are not missing.
  const int num_missing = seen.size() > 1 ? own.num_local_ranks - static_cast<int>(seen.size()) : 0;
  if (num_missing > 0) {
    std::vector<std::int64_t> missing;
    if (own.num_local_ranks == own.num_ranks) {
      for (int rank = 0; rank < own.num_ranks; ++rank) {
        const auto is_it = [rank](const HostRank& other) { return other.rank == rank; };
        if (std::none_of(seen.begin(), seen.end(), is_it)) missing.push_back(rank);
      }
    }
    verdict.message += verdict.message.empty() ? "" : "; ";
    verdict.message +=
        missing.empty() ? str(num_missing, " of the ", own.num_local_ranks, " ranks") : rank_list(missing, 8) + of_all;
    verdict.message += str(" of host ", host, num_missing == 1 ? " has" : " have", " no process");
  }
  verdict.blames = !verdict.message.empty();
  if (!verdict.blames) {
    verdict.message = "the ranks of the job do not come together";
    if (seen.size() > 1) {
      verdict.message += str("; on host ", host);
      for (std::size_t i = 0; i < seen.size() && i < 8; ++i) {
        verdict.message += str(i == 0 ? " " : ", ", "rank ", seen[i].rank, " (process ", seen[i].pid, ") ",
                               state_words(seen[i].state));
      }
      if (seen.size() > 8) verdict.message += str(", and ", seen.size() - 8, " more");
    }
    verdict.message += "; look at the other hosts and the network between them";
  }
  verdict.message +=
      str("\n  rank ", own.rank, " waits for it in ", place, " for ", static_cast<std::int64_t>(waited_s),
          " s; where a start takes longer, ", kVariable, " sets the limit (0: none)\n  the job ends");
  return verdict;
}

std::unique_ptr<StartGuard> StartGuard::begin(const LaunchedAs& own, double limit_s, const std::string& place) {
  if (limit_s <= 0.0 || own.num_ranks == 1) return nullptr;
  return std::unique_ptr<StartGuard>(new StartGuard(own, limit_s, place));
}

StartGuard::StartGuard(const LaunchedAs& own, double limit_s, const std::string& place)
    : own_(own), limit_s_(limit_s), place_(place), thread_([this] { run(); }) {}

StartGuard::~StartGuard() {
  {
    const std::lock_guard lock(mutex_);
    over_ = true;
  }
  over_changed_.notify_all();
  thread_.join();
}

void StartGuard::run() {
  using Clock = std::chrono::steady_clock;
  constexpr std::chrono::milliseconds kTick(100);
  std::unique_lock lock(mutex_);
  Clock::time_point last = Clock::now();
  double waited_s = 0.0, due_s = 0.5;
  std::set<int> met;  // ranks of this host that were sound once
  while (!over_changed_.wait_for(lock, kTick, [this] { return over_; })) {
    // A tick that took longer is one in which this process stood still, as a suspended job does.
    const Clock::time_point now = Clock::now();
    waited_s += std::min(std::chrono::duration<double>(now - last).count(), 5 * 0.1);
    last = now;
    if (waited_s < due_s) continue;
    due_s = waited_s + 1.0;
    const std::vector<HostRank> seen = ranks_of_this_host();
    std::set<int> sound;
    for (const HostRank& other : seen) {
      if (is_sound(other)) sound.insert(other.rank);
    }
    const bool one_left = std::any_of(met.begin(), met.end(), [&](int rank) {
      return std::none_of(seen.begin(), seen.end(), [rank](const HostRank& other) {
        return other.rank == rank && other.state != 'Z' && other.state != 'X';
      });
    });
    // It has spoken, or the launcher says what became of it; in any case the launcher ends the rest.
    if (one_left && waited_s > limit_s_) ::_exit(static_cast<int>(ExitCode::kRankLost));
    met.insert(sound.begin(), sound.end());
    if (waited_s < limit_s_) continue;
    const StartVerdict verdict = start_verdict(own_, seen, host_name(), waited_s, place_);
    const auto before = std::distance(sound.begin(), sound.lower_bound(own_.rank));
    const double turn_s =
        limit_s_ * (verdict.blames ? 1.0 : 2.0) + kTurn_s * static_cast<double>(std::min<std::ptrdiff_t>(before, 10));
    if (waited_s < turn_s) continue;
    log_error(verdict.message);
    ::_exit(static_cast<int>(ExitCode::kRankLost));
  }
}

}  // namespace moetune
