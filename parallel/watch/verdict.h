// Who is to blame when a job no longer gets on: from what is known of every rank, one message or none.
//
//   const std::optional<std::string> message = verdict(ranks, {.silence_s = 20, .stall_s = 30});
//   if (message) { print it; end the job; }
//
// A rank that does not get on is not to blame where it waits for a rank that has not come to the same collective; a
// rank for which others wait is not to blame as long as it gets on. So what is left is: a process that ended or no
// longer answers, a rank that stands still and waits for nobody, and ranks that all stand still, waiting for each
// other.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "parallel/watch/rank_report.h"

namespace moetune {

/// What is known of one rank; its place in the list is its number.
struct Witness {
  enum class State {
    kUnknown,  ///< has not answered yet
    kAlive,
    kFailing,  ///< says itself what is wrong, and ends the job
    kLeft,     ///< ended as it should
    kDied,     ///< ended without a word
  };
  State state = State::kUnknown;
  RankReport report;      ///< its last
  double silent_s = 0.0;  ///< since then
};

struct Limits {
  double silence_s = 0.0;  ///< a process that sends nothing for longer is lost
  /// a rank that is waited for may stand still so long, and a collective that all have come to may
  double stall_s = 0.0;
  ///< take so long, and a second more for every 10 MB of it
};

/// What went wrong, for the user; nothing where nothing did, or where a rank is about to say it itself.
std::optional<std::string> verdict(const std::vector<Witness>& ranks, const Limits& limits);

}  // namespace moetune
