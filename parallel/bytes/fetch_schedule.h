// Which slab goes into which buffer, and when: what a lane of the weight store does, without its bytes.
//
//   FetchSchedule lane;
//   lane.begin({0, 1, 2, 2, 1, 0}, Rounds::kFollow);  // the uses to come, again and again
//   for (const Fetch& fetch : lane.due()) ...     // what is to be fetched now, after each of these calls
//   const int buffer = lane.use();                // that of lane.next()
//   lane.release(0);
//
//   fetches_of_round({0, 1, 2, 2, 1, 0}, Rounds::kFollow);  // the same for a plan: what a step fetches behind others
//
// Wanted are the slabs in use and those to be used next, as many as there are buffers. What is wanted and in no buffer
// is fetched into one whose slab is not wanted; so a buffer keeps its slab until another is needed sooner. Slabs that
// are written anew between rounds are another matter: there a round begins with empty buffers, and fetches nothing for
// the next.
#pragma once

#include <array>
#include <cstddef>
#include <vector>

namespace moetune {

struct Fetch {
  int slab = -1;
  int buffer = -1;
};

/// Whether the slabs of a round of uses are those of the round before.
enum class Rounds { kFollow, kAlone };

class FetchSchedule {
 public:
  static constexpr int kBuffers = 2;  ///< one in use, one on its way

  /// Uses of slabs by their numbers, one after the other, and again where rounds follow each other: then what is in a
  /// buffer stays there. Nothing may be in use.
  void begin(std::vector<int> uses, Rounds rounds);
  /// What is to be fetched now, in this order; from here on it is in its buffer.
  std::vector<Fetch> due();
  /// The slab whose turn it is; -1 where nothing is scheduled, or no longer.
  int next() const { return next_ == uses_.size() ? -1 : uses_[next_]; }
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
  Rounds rounds_ = Rounds::kFollow;
  size_t next_ = 0;
};

/// A round of uses behind others of its kind.
struct FetchRound {
  struct Timed : Fetch {
    size_t time = 0;  ///< begins as the use with this place in the round does; uses.size(): behind the last
  };
  std::array<int, FetchSchedule::kBuffers> before{};  ///< the slabs that are in the buffers as it begins; -1: none
  std::vector<Timed> fetches;
};
FetchRound fetches_of_round(const std::vector<int>& uses, Rounds rounds);

}  // namespace moetune
