#include "parallel/watch/watchdog.h"

#include <ATen/record_function.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <random>
#include <sstream>
#include <utility>

#include "parallel/base/error.h"
#include "parallel/base/log.h"

namespace moetune {
namespace {

constexpr double kMostSilence_s = 20.0;
/// After the end of a connection: mpirun, when it kills the whole job, needs less to kill the rank that would speak.
constexpr double kGrace_s = 0.5;
/// Ranks 0 and 1 are given so much longer to speak before another rank does.
constexpr double kForsaken_s = 10.0;

// torch's callbacks are plain functions of the whole process, so this is one too. About every tenth operator is
// counted: each one would cost a microsecond, which small operators feel.
std::atomic<int64_t> num_operators = 0;

void count_operators() {
  static const auto kHandle = at::addGlobalCallback(
      at::RecordFunctionCallback([](const at::RecordFunction&) -> std::unique_ptr<at::ObserverContext> {
        num_operators.fetch_add(1, std::memory_order_relaxed);
        return nullptr;
      })
          .scopes({at::RecordScope::FUNCTION})
          .samplingProb(0.1));
  (void)kHandle;
}

std::string random_token() {
  std::random_device random;
  std::ostringstream text;
  for (int i = 0; i < 4; ++i) text << std::hex << random();
  return text.str();
}

double seconds(std::chrono::steady_clock::duration duration) { return std::chrono::duration<double>(duration).count(); }

}  // namespace

Watchdog::Watchdog(int rank, int world_size, double stall_timeout_s, RankProgress& progress,
                   const std::function<std::string(const std::string& text, int root)>& share)
    : rank_(rank),
      world_size_(world_size),
      limits_{std::min(stall_timeout_s, kMostSilence_s), stall_timeout_s},
      period_(static_cast<int64_t>(std::clamp(stall_timeout_s * 1000.0 / 8.0, 50.0, 500.0))),
      progress_(progress) {
  MT_CHECK(world_size >= 2 && stall_timeout_s > 0.0, "watchdog over ", world_size, " ranks, ", stall_timeout_s, " s");
  count_operators();
  token_ = share(random_token(), 0);
  if (watches()) {
    listener_.emplace();
    ranks_.resize(static_cast<size_t>(world_size));
  }
  std::string own;
  if (watches()) {
    own = str(progress_.report(0).host, " ", listener_->port(), " 127.0.0.1");
    for (const std::string& address : own_addresses()) own += " " + address;
  }
  const std::string where[] = {share(own, 0), share(own, 1)};
  thread_ = std::thread([this] { run(); });
  for (int watcher = 0; watcher < 2; ++watcher) {
    if (watcher != rank_) connect(watcher, where[watcher]);
  }
}

void Watchdog::connect(int watcher, const std::string& where) {
  std::istringstream words(where);
  std::string host, port, address, tried;
  words >> host >> port;
  const bool same_host = host == progress_.report(0).host;
  while (words >> address) {
    if (address == "127.0.0.1" && !same_host) continue;
    tried += " " + address;
    std::optional<LineSocket> socket = connect_lines(address, std::stoi(port), 3.0);
    if (!socket) continue;
    socket->send(str("hello ", token_, " ", rank_, " ", to_line(progress_.report(0))));
    // The same address may be that of another host here: only a rank of this job answers.
    const auto end = Clock::now() + std::chrono::seconds(3);
    while (!socket->closed() && Clock::now() < end) {
      pollfd ready{socket->fd(), POLLIN, 0};
      ::poll(&ready, 1, 100);
      for (const std::string& line : socket->receive()) {
        if (line != "welcome") continue;
        const std::lock_guard lock(mutex_);
        heard_watcher_ = Clock::now();
        watchers_.emplace(watcher, *std::move(socket));
        return;
      }
    }
  }
  log_warn(str("the watchdog cannot reach rank ", watcher, " on host ", host, ", port ", port, ", tried", tried,
               "; if this rank stalls, nobody can tell which one it is"));
}

Watchdog::~Watchdog() {
  {
    const std::lock_guard lock(mutex_);
    done_ = true;
    tell_others("bye");
    for (auto& [watcher, socket] : watchers_) socket.send("bye");
    for (auto& [watcher, socket] : watchers_) socket.flush(0.2);
  }
  thread_.join();
}

void Watchdog::failing() {
  const std::lock_guard lock(mutex_);
  failing_ = true;
  for (auto& [watcher, socket] : watchers_) socket.send("failing");
}

void Watchdog::end_others(int code) {
  const std::lock_guard lock(mutex_);
  failing_ = true;
  tell_others(str("leave ", code));
  for (auto& [watcher, socket] : watchers_) {
    socket.send(str("end ", code));
    socket.flush(0.2);
  }
}

void Watchdog::tell_others(const std::string& line) {
  for (Watched& rank : ranks_) {
    if (rank.socket) rank.socket->send(line);
  }
  for (Watched& rank : ranks_) {
    if (rank.socket) rank.socket->flush(0.2);
  }
}

void Watchdog::run() {
  Clock::time_point last_beat = Clock::now();
  while (!done_) {
    std::vector<pollfd> ready;
    {
      const std::lock_guard lock(mutex_);
      if (listener_) ready.push_back({listener_->fd(), POLLIN, 0});
      for (const LineSocket& socket : strangers_) ready.push_back({socket.fd(), POLLIN, 0});
      for (const Watched& rank : ranks_) {
        if (rank.socket) ready.push_back({rank.socket->fd(), POLLIN, 0});
      }
      for (const auto& [watcher, socket] : watchers_) ready.push_back({socket.fd(), POLLIN, 0});
    }
    const auto wait = std::chrono::duration_cast<std::chrono::milliseconds>(last_beat + period_ - Clock::now()).count();
    // Short, so that the thread leaves soon after the job is done.
    if (wait > 0) ::poll(ready.data(), ready.size(), static_cast<int>(std::min<int64_t>(wait, 50)));
    const std::lock_guard lock(mutex_);
    if (done_) return;
    read_all();
    const Clock::time_point now = Clock::now();
    if (now - last_beat < period_) continue;
    beat(now - last_beat > 3 * period_);
    last_beat = now;
  }
}

void Watchdog::read_all() {
  if (listener_) {
    while (std::optional<LineSocket> socket = listener_->accept()) strangers_.push_back(*std::move(socket));
  }
  for (size_t i = 0; i < strangers_.size();) {
    const std::vector<std::string> lines = strangers_[i].receive();
    if (lines.empty() && !strangers_[i].closed()) {
      ++i;
      continue;
    }
    LineSocket socket = std::move(strangers_[i]);
    strangers_.erase(strangers_.begin() + static_cast<int64_t>(i));
    if (!lines.empty()) admit(std::move(socket), lines[0]);
  }
  for (Watched& rank : ranks_) {
    if (!rank.socket) continue;
    for (const std::string& line : rank.socket->receive()) hear(rank, line);
    if (rank.socket->closed()) {
      rank.socket.reset();
      rank.heard = Clock::now();
    }
  }
  for (auto watcher = watchers_.begin(); watcher != watchers_.end();) {
    const std::vector<std::string> lines = watcher->second.receive();
    if (!lines.empty()) heard_watcher_ = Clock::now();
    for (const std::string& line : lines) obey(line);
    watcher = watcher->second.closed() ? watchers_.erase(watcher) : std::next(watcher);
  }
}

void Watchdog::admit(LineSocket socket, const std::string& hello) {
  std::istringstream words(hello);
  std::string greeting, token;
  int64_t rank = -1;
  words >> greeting >> token >> rank;
  if (greeting != "hello" || token != token_ || rank < 0 || rank >= world_size_) return;
  Watched& watched = ranks_[static_cast<size_t>(rank)];
  watched.heard = Clock::now();
  watched.socket.emplace(std::move(socket));
  std::string report;
  std::getline(words >> std::ws, report);
  hear(watched, report);
  watched.socket->send("welcome");
}

void Watchdog::hear(Watched& watched, const std::string& line) {
  watched.heard = Clock::now();
  if (line == "bye") watched.witness.state = Witness::State::kLeft;
  if (line == "failing") watched.witness.state = Witness::State::kFailing;
  if (line.rfind("end ", 0) == 0) {
    watched.witness.state = Witness::State::kFailing;
    const int code = std::atoi(line.c_str() + 4);
    tell_others(str("leave ", code));
    leave(code);
  }
  if (line.empty() || line[0] != '{') return;
  if (std::optional<RankReport> report = report_from(line)) {
    watched.witness.report = *std::move(report);
    if (watched.witness.state == Witness::State::kUnknown) watched.witness.state = Witness::State::kAlive;
  }
}

void Watchdog::obey(const std::string& line) {
  if (line.rfind("leave ", 0) == 0) leave(std::atoi(line.c_str() + 6));
}

void Watchdog::beat(bool stood_still) {
  const Clock::time_point now = Clock::now();
  if (stood_still) {
    // Not the others were silent but this process did not listen: it was stopped, or the machine slept.
    progress_.forgive();
    heard_watcher_ = now;
    for (Watched& rank : ranks_) rank.heard = std::max(rank.heard, now);
  }
  const RankReport report = progress_.report(num_operators.load(std::memory_order_relaxed));
  if (!failing_) {
    for (auto& [watcher, socket] : watchers_) socket.send(to_line(report));
  }
  if (watches()) {
    Witness& own = ranks_[static_cast<size_t>(rank_)].witness;
    own.report = report;
    own.state = failing_ ? Witness::State::kFailing : Witness::State::kAlive;
    ranks_[static_cast<size_t>(rank_)].heard = now;
    for (Watched& rank : ranks_) {
      if (rank.socket) rank.socket->send("watched");
    }
    judge();
  } else if (!failing_ && forsaken(now)) {
    speak(str("rank ", rank_, " hears neither of rank 0 nor of rank 1, which watch over the job, for ",
              static_cast<int64_t>(seconds(now - heard_watcher_)), " s\n  rank ", rank_, " is ", progress_.where()));
  }
}

bool Watchdog::forsaken(Clock::time_point now) const {
  // Later ranks give earlier ones the time to speak and the launcher that to end the job.
  const double turn_s = 5.0 * std::min(rank_ - 2, 8);
  return heard_watcher_ + std::chrono::duration<double>(limits_.silence_s + kForsaken_s + turn_s) < now;
}

void Watchdog::judge() {
  std::vector<Witness> witnesses;
  for (Watched& rank : ranks_) {
    Witness& witness = rank.witness;
    witness.silent_s = seconds(Clock::now() - rank.heard);
    const bool gone = !rank.socket && &rank != &ranks_[static_cast<size_t>(rank_)];
    if (gone && witness.state == Witness::State::kAlive && witness.silent_s > kGrace_s) {
      witness.state = Witness::State::kDied;
    }
    witnesses.push_back(witness);
  }
  const Witness& first = witnesses[0];
  const bool first_is_gone = first.state == Witness::State::kDied ||
                             (first.state == Witness::State::kAlive && first.silent_s > limits_.silence_s);
  if (rank_ != 0 && !first_is_gone) return;
  if (const std::optional<std::string> message = verdict(witnesses, limits_)) speak(*message);
}

void Watchdog::speak(const std::string& message) {
  log_error(message + "\n  the job ends; the last checkpoint stands");
  tell_others(str("leave ", static_cast<int>(ExitCode::kRankLost)));
  for (auto& [watcher, socket] : watchers_) {
    socket.send(str("end ", static_cast<int>(ExitCode::kRankLost)));
    socket.flush(0.2);
  }
  ::_exit(static_cast<int>(ExitCode::kRankLost));
}

void Watchdog::leave(int code) {
  // The rank that has spoken goes first: the launcher names the first one.
  std::this_thread::sleep_for(std::chrono::milliseconds(500));
  ::_exit(code);
}

}  // namespace moetune
