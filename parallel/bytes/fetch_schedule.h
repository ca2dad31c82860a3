// Which slab goes into which buffer, and when: what a lane of the weight store does, without its bytes.
//
//   FetchSchedule lane;
//   lane.begin({0, 1, 2, 2, 1, 0});               // the uses to come, again and again
//   for (const Fetch& fetch : lane.due()) ...     // what is to be fetched now, after each of these calls
//   const int buffer = lane.use();                // that of lane.next()
//   lane.release(0);
//
//   fetches_of_round({0, 1, 2, 2, 1, 0});         // the same for a plan: what a step fetches once steps follow steps
//
// Wanted are the slabs in use and those to be used next, as many as there are buffers. What is wanted and in no buffer
// is fetched into one whose slab is not wanted; so a buffer keeps its slab until another is needed sooner.
#pragma once

#include <array>
#include <cstddef>
#include <vector>

namespace moetune {

struct Fetch {
  int slab = -1;
  int buffer = -1;
};

class FetchSchedule {
 public:
  static constexpr int kBuffers = 2;  ///< one in use, one on its way

  /// Uses of slabs by their numbers, one after the other, again and again. What is in a buffer stays there; nothing may
  /// be in use.
  void begin(std::vector<int> uses);
  /// What is to be fetched now, in this order; from here on it is in its buffer.
  std::vector<Fetch> due();
  /// The slab whose turn it is; -1 where nothing is scheduled.
  int next() const { return uses_.empty() ? -1 : uses_[next_]; }
  /// Where a slab is; -1: in no buffer.
  int buffer_of(int slab) const;
  bool in_use(int buffer) const { return buffers_[buffer].in_use; }
  int slab_in(int buffer) const { return buffers_[buffer].slab; }
  /// Begins and ends the use of next(), which is in a buffer: which one.
  int use();
  int release(int slab);

 private:
  struct Buffer {
    int slab = -1;
    bool in_use = false;
  };
  std::array<Buffer, kBuffers> buffers_;
  std::vector<int> uses_;
  size_t next_ = 0;
};

/// A round of uses when rounds follow each other.
struct FetchRound {
  struct Timed : Fetch {
    size_t time = 0;  ///< begins as the use with this place in the round does; uses.size(): behind the last
  };
  std::array<int, FetchSchedule::kBuffers> before{};  ///< the slabs that are in the buffers as it begins; -1: none
  std::vector<Timed> fetches;
};
FetchRound fetches_of_round(const std::vector<int>& uses);

}  // namespace moetune
