#include "parallel/bytes/fetch_schedule.h"

#include <algorithm>

#include "parallel/base/error.h"

namespace moetune {

void FetchSchedule::begin(std::vector<int> uses, Rounds rounds) {
  for (Buffer& buffer : buffers_) {
    MT_CHECK(!buffer.in_use, "a new schedule while slab ", buffer.slab, " is in use");
    if (rounds == Rounds::kAlone) buffer.slab = -1;
  }
  uses_ = std::move(uses);
  rounds_ = rounds;
  next_ = 0;
}

int FetchSchedule::buffer_of(int slab) const {
  for (int i = 0; i < kBuffers; ++i) {
    if (buffers_[i].slab == slab) return i;
  }
  return -1;
}

std::vector<Fetch> FetchSchedule::due() {
  std::vector<int> wanted;
  for (const Buffer& buffer : buffers_) {
    if (buffer.in_use) wanted.push_back(buffer.slab);
  }
  const auto is_wanted = [&](int slab) { return std::find(wanted.begin(), wanted.end(), slab) != wanted.end(); };
  const size_t to_come = rounds_ == Rounds::kFollow ? uses_.size() : uses_.size() - next_;
  for (size_t i = 0; i < to_come && wanted.size() < kBuffers; ++i) {
    const int slab = uses_[(next_ + i) % uses_.size()];
    if (!is_wanted(slab)) wanted.push_back(slab);
  }
  std::vector<Fetch> fetches;
  for (const int slab : wanted) {
    if (buffer_of(slab) >= 0) continue;
    for (int i = 0; i < kBuffers; ++i) {
      if (is_wanted(buffers_[i].slab)) continue;
      buffers_[i].slab = slab;
      fetches.push_back({slab, i});
      break;
    }
  }
  return fetches;
}

int FetchSchedule::use() {
  const int buffer = buffer_of(next());
  MT_CHECK(buffer >= 0 && !buffers_[buffer].in_use, "slab ", next(), " was not fetched, or is in use already");
  buffers_[buffer].in_use = true;
  ++next_;
  if (rounds_ == Rounds::kFollow) next_ %= uses_.size();
  return buffer;
}

int FetchSchedule::release(int slab) {
  const int buffer = buffer_of(slab);
  MT_CHECK(buffer >= 0 && buffers_[buffer].in_use, "slab ", slab, " is released without having been in use");
  buffers_[buffer].in_use = false;
  return buffer;
}

FetchRound fetches_of_round(const std::vector<int>& uses, Rounds rounds) {
  constexpr int kRoundsBefore = 2;  // the first fetches what it meets, the second what the first left
  FetchSchedule lane;
  FetchRound round;
  for (int r = 0; r <= kRoundsBefore; ++r) {
    round = {};
    const auto take = [&](size_t time) {
      for (const Fetch& fetch : lane.due()) round.fetches.push_back({fetch, time});
    };
    lane.begin(uses, rounds);
    for (int i = 0; i < FetchSchedule::kBuffers; ++i) round.before[i] = lane.slab_in(i);
    take(0);
    for (size_t i = 0; i < uses.size(); ++i) {
      lane.use();
      take(i);
      lane.release(uses[i]);
      take(i + 1);
    }
  }
  return round;
}

}  // namespace moetune
