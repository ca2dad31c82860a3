#include "parallel/watch/rank_progress.h"

#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <exception>
#include <fstream>
#include <utility>

#include "parallel/base/clock.h"
#include "parallel/base/error.h"
#include "parallel/base/host_name.h"

namespace moetune {
namespace {

double seconds_of(clockid_t clock) {
  timespec time{};
  clock_gettime(clock, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

}  // namespace

WorkingThread::WorkingThread() : schedule_file_(str("/proc/self/task/", gettid(), "/schedstat")) {
  pthread_getcpuclockid(pthread_self(), &cpu_clock_);
}

double WorkingThread::busy_s() const {
  // Nanoseconds on a CPU, and ready but waiting for one.
  int64_t ran = 0, ready = 0;
  std::ifstream file(schedule_file_);
  return file >> ran >> ready ? 1e-9 * static_cast<double>(ran + ready) : seconds_of(cpu_clock_);
}

RankProgress::RankProgress() { host_ = host_name(); }

RankProgress::Place::Place(RankProgress* progress, std::string text, Pace pace)
    : progress_(progress), exceptions_at_birth_(std::uncaught_exceptions()) {
  if (progress_ == nullptr) return;
  const std::lock_guard lock(progress_->mutex_);
  depth_ = progress_->places_.size();
  const bool around = progress_->places_.empty() || progress_->places_.back().patient;
  progress_->places_.push_back({std::move(text), pace == Pace::kInherited ? around : pace == Pace::kPatient});
  ++progress_->signs_;
}

RankProgress::Place::~Place() {
  if (progress_ == nullptr || std::uncaught_exceptions() > exceptions_at_birth_) return;
  const std::lock_guard lock(progress_->mutex_);
  progress_->places_.resize(depth_);  // with those that an exception left and that was caught
  ++progress_->signs_;
}

std::string RankProgress::place() const {
  std::string text;
  for (const Named& named : places_) text += (text.empty() ? "" : ", ") + named.text;
  return text;
}

std::string RankProgress::where() const {
  const std::lock_guard lock(mutex_);
  std::string text = place();
  if (call_) {
    const Collective& call = call_->collective;
    std::string name = call.group;
    for (const GroupCount& group : groups_) {
      if (group.group == call.group) name = group.name;
    }
    text += str(text.empty() ? "" : ", ", "in ", call.operation, " #", call.number, " of group ", name, " (",
                call.bytes, " bytes)");
  }
  return text;
}

RankReport RankProgress::report(int64_t operators) {
  const std::lock_guard lock(mutex_);
  if (signs_ + operators != signs_told_) {
    signs_told_ = signs_ + operators;
    last_sign_ = Clock::now();
    busy_at_last_sign_s_ = thread_.busy_s();
  }
  RankReport report;
  report.host = host_;
  report.process = getpid();
  report.place = place();
  report.patient = places_.empty() || places_.back().patient;
  report.idle_s = seconds_since(last_sign_);
  report.busy_s = thread_.busy_s() - busy_at_last_sign_s_;
  const std::optional<UnderWay>& waiting = call_ ? call_ : unfinished_;
  if (waiting) {
    report.waiting = waiting->collective;
    report.waiting->seconds = seconds_since(waiting->since);
  }
  report.transport_error = transport_error_;
  report.groups = groups_;
  return report;
}

void RankProgress::forgive() {
  const std::lock_guard lock(mutex_);
  ++signs_;
}

void RankProgress::set_unfinished(std::optional<Collective> collective) {
  const std::lock_guard lock(mutex_);
  const bool same = collective && unfinished_ && unfinished_->collective.group == collective->group &&
                    unfinished_->collective.number == collective->number;
  if (same || (!collective && !unfinished_)) return;
  unfinished_.reset();
  if (collective) unfinished_ = UnderWay{*std::move(collective), Clock::now()};
  ++signs_;
}

void RankProgress::set_transport_error(const std::string& error) {
  const std::lock_guard lock(mutex_);
  transport_error_ = error;
}

GroupProgress::GroupProgress(RankProgress& progress, std::string group, std::string name, int64_t size)
    : progress_(progress), group_(std::move(group)) {
  const std::lock_guard lock(progress_.mutex_);
  progress_.groups_.push_back({group_, std::move(name), size, 0});
}

GroupProgress::~GroupProgress() {
  const std::lock_guard lock(progress_.mutex_);
  auto& groups = progress_.groups_;
  groups.erase(
      std::remove_if(groups.begin(), groups.end(), [&](const GroupCount& count) { return count.group == group_; }),
      groups.end());
}

GroupCount& GroupProgress::count() const {
  auto& groups = progress_.groups_;
  return *std::find_if(groups.begin(), groups.end(), [&](const GroupCount& count) { return count.group == group_; });
}

GroupProgress::Call::Call(GroupProgress* group, const std::string& operation, int64_t bytes)
    : group_(group), exceptions_at_birth_(std::uncaught_exceptions()) {
  if (group_ == nullptr) return;
  RankProgress& progress = group_->progress_;
  const std::lock_guard lock(progress.mutex_);
  progress.call_ = RankProgress::UnderWay{{group_->group_, operation, ++group_->count().entered, bytes, 0.0},
                                          RankProgress::Clock::now()};
  ++progress.signs_;
}

GroupProgress::Call::~Call() {
  if (group_ == nullptr || std::uncaught_exceptions() > exceptions_at_birth_) return;
  const std::lock_guard lock(group_->progress_.mutex_);
  group_->progress_.call_.reset();
  ++group_->progress_.signs_;
}

Collective GroupProgress::under_way() const {
  const std::lock_guard lock(progress_.mutex_);
  return progress_.call_ ? progress_.call_->collective : Collective();
}

}  // namespace moetune
