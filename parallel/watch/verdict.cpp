#include "parallel/watch/verdict.h"

#include <algorithm>
#include <cmath>

#include "parallel/base/error.h"
#include "parallel/base/text.h"

namespace moetune {
namespace {

using Ranks = std::vector<int64_t>;

constexpr size_t kMostNamed = 16;  // ranks of a list

/// "rank 3", "ranks 0, 1 and 2"; long lists are cut.
std::string subject(const Ranks& ranks) { return rank_list(ranks, kMostNamed); }

class Judge {
 public:
  Judge(const std::vector<Witness>& ranks, const Limits& limits) : ranks_(ranks), limits_(limits) {}

  std::optional<std::string> verdict() const {
    if (!those([](const Witness& rank) { return rank.state == Witness::State::kFailing; }).empty()) return std::nullopt;
    const Ranks died = those([](const Witness& rank) { return rank.state == Witness::State::kDied; });
    if (!died.empty()) return about(died, "died; mpirun tells the signal or exit code", "was last heard of");
    const Ranks silent = those([&](const Witness& rank) { return alive(rank) && rank.silent_s > limits_.silence_s; });
    if (!silent.empty()) {
      return about(silent,
                   str("silent for ", whole(ranks_[silent[0]].silent_s),
                       " s: the process was stopped, or its host or the way there is lost"),
                   "was last heard of");
    }
    const Ranks broken = those([](const Witness& rank) { return alive(rank) && !rank.report.transport_error.empty(); });
    if (!broken.empty()) return about(broken, "NCCL failed: " + ranks_[broken[0]].report.transport_error, "is");
    const Ranks late = late_and_waiting_for_nobody();
    const Ranks computing = some_of(late, [](const Witness& rank) { return !rank.report.waiting; });
    if (!computing.empty()) return about(computing, stalls(computing[0]), "is");
    return late.empty() ? deadlock() : unending(late[0]);
  }

 private:
  static bool alive(const Witness& rank) { return rank.state == Witness::State::kAlive; }
  static int64_t whole(double seconds) { return std::llround(seconds); }

  template <typename Condition>
  Ranks those(const Condition& condition) const {
    Ranks found;
    for (size_t i = 0; i < ranks_.size(); ++i) {
      if (condition(ranks_[i])) found.push_back(static_cast<int64_t>(i));
    }
    return found;
  }

  template <typename Condition>
  Ranks some_of(Ranks ranks, const Condition& condition) const {
    ranks.erase(std::remove_if(ranks.begin(), ranks.end(), [&](int64_t rank) { return !condition(ranks_[rank]); }),
                ranks.end());
    return ranks;
  }

  static bool asleep(const Witness& rank) { return rank.report.busy_s < 0.05 * rank.report.idle_s; }
  std::string stalls(int64_t rank) const {
    return str("stalls: without progress for ", whole(ranks_[rank].report.idle_s), " s, ",
               asleep(ranks_[rank]) ? "asleep" : "busy");
  }

  bool idle(const Witness& rank) const {
    constexpr double kSlowestBytesPerSecond = 1e7;
    const double transfer_s =
        rank.report.waiting ? static_cast<double>(rank.report.waiting->bytes) / kSlowestBytesPerSecond : 0.0;
    return alive(rank) && rank.report.idle_s > limits_.stall_s + transfer_s;
  }
  bool stands_still(const Witness& rank) const { return idle(rank) && !rank.report.patient; }
  /// Patience is for disks and programs: a rank in a collective waits for ranks, wherever it is.
  bool waits_long(const Witness& rank) const { return idle(rank) && rank.report.waiting; }

  static const GroupCount* find(const Witness& rank, const std::string& group) {
    for (const GroupCount& count : rank.report.groups) {
      if (count.group == group) return &count;
    }
    return nullptr;
  }

  /// Whether `late` belongs to the collective that `rank` waits in and has not come to it.
  static bool waits_for(const Witness& rank, const Witness& late) {
    if (!rank.report.waiting) return false;
    const GroupCount* count = find(late, rank.report.waiting->group);
    return count != nullptr && count->entered < rank.report.waiting->number;
  }
  bool waits_for_any(const Witness& rank) const {
    return std::any_of(ranks_.begin(), ranks_.end(), [&](const Witness& late) { return waits_for(rank, late); });
  }

  Ranks late_and_waiting_for_nobody() const {
    return those([&](const Witness& late) {
      return stands_still(late) && !waits_for_any(late) &&
             std::any_of(ranks_.begin(), ranks_.end(),
                         [&](const Witness& rank) { return waits_long(rank) && waits_for(rank, late); });
    });
  }

  static bool together(const Witness& one, const Witness& other) {
    return one.report.waiting && other.report.waiting && one.report.waiting->group == other.report.waiting->group &&
           one.report.waiting->number == other.report.waiting->number;
  }

  /// Whether a rank of the group is through with the collective.
  bool ended_for_some(const Collective& collective) const {
    return std::any_of(ranks_.begin(), ranks_.end(), [&](const Witness& rank) {
      const GroupCount* count = find(rank, collective.group);
      const std::optional<Collective>& waiting = rank.report.waiting;
      return alive(rank) && count != nullptr && count->entered >= collective.number &&
             !(waiting && waiting->group == collective.group && waiting->number <= collective.number);
    });
  }

  /// All have come to the collective that the rank is in, and still it does not end. Who sleeps in it holds up those
  /// who look, and who is in it still holds up those who are through.
  std::string unending(int64_t rank) const {
    const Ranks inside = those([&](const Witness& other) { return alive(other) && together(other, ranks_[rank]); });
    const Ranks sleepers = some_of(inside, asleep);
    if ((!sleepers.empty() && sleepers.size() < inside.size()) || ended_for_some(*ranks_[rank].report.waiting)) {
      const Ranks& guilty = sleepers.empty() ? inside : sleepers;
      const Ranks looking = some_of(inside, [&](const Witness& other) { return !sleepers.empty() && !asleep(other); });
      return str(about(guilty, stalls(guilty[0]), "is"),
                 looking.empty() ? "" : "\n  in the same collective: " + subject(looking));
    }
    const std::string& group = ranks_[rank].report.waiting->group;
    const Ranks known = those([&](const Witness& other) { return find(other, group) != nullptr; });
    const GroupCount* count = find(ranks_[rank], group);
    const bool all = count != nullptr && static_cast<int64_t>(known.size()) == count->size;
    return str(subject(inside), " of ", ranks_.size(), inside.size() == 1 ? " is" : " are",
               " in a collective that does not end: ",
               all ? "all have come to it, so look at the network and the GPUs"
                   : str("of its ranks only ", number_list(known, kMostNamed), " are known to the watchdog"),
               "\n  rank ", rank, " is ", doing(ranks_[rank]), ", since ", whole(ranks_[rank].report.waiting->seconds),
               " s", waiting_for(rank));
  }

  /// All stand still, at least one of them in a step, and each waits for another, or for something that never ends.
  std::optional<std::string> deadlock() const {
    const Ranks still = those([&](const Witness& rank) { return stands_still(rank) || waits_long(rank); });
    const Ranks living = those(alive);
    const bool watched =
        std::any_of(ranks_.begin(), ranks_.end(), [&](const Witness& rank) { return stands_still(rank); });
    if (!watched || still.size() < living.size()) return std::nullopt;
    const Ranks arrived =
        some_of(still, [&](const Witness& rank) { return rank.report.waiting && !waits_for_any(rank); });
    if (!arrived.empty()) return unending(arrived[0]);
    std::string text = str("no rank has made progress for ", whole(limits_.stall_s), " s");
    for (const Ranks& alike : by_doing(still)) text += str("\n  ", subject(alike), ": ", doing(ranks_[alike[0]]));
    return text + "\n  the ranks wait for each other";
  }

  std::vector<Ranks> by_doing(const Ranks& ranks) const {
    std::vector<Ranks> alike;
    for (const int64_t rank : ranks) {
      const auto same = std::find_if(alike.begin(), alike.end(),
                                     [&](const Ranks& some) { return doing(ranks_[some[0]]) == doing(ranks_[rank]); });
      same == alike.end() ? alike.push_back({rank}) : same->push_back(rank);
    }
    return alike;
  }

  static std::string named(const Collective& collective, const Witness& member) {
    const GroupCount* count = find(member, collective.group);
    return str(collective.operation, " #", collective.number, " of group ",
               count == nullptr ? collective.group : str(count->name, " (", count->size, " ranks)"), ", ",
               collective.bytes, " bytes");
  }
  /// "at step 17, layer 5 on its way up, in all_reduce_sum #3 of group data (4 ranks), 4096 bytes"
  static std::string doing(const Witness& rank) {
    const std::string place = rank.report.place.empty() ? "outside of steps" : "at " + rank.report.place;
    return rank.report.waiting ? str(place, ", in ", named(*rank.report.waiting, rank)) : place;
  }

  std::string about(const Ranks& guilty, const std::string& what, const char* is) const {
    const Witness& first = ranks_[guilty[0]];
    std::string text = str("rank ", guilty[0], " of ", ranks_.size(), " (host ", first.report.host, ", process ",
                           first.report.process, ") ", what, "\n  rank ", guilty[0], " ", is, " ", doing(first));
    if (guilty.size() > 1) text += str("\n  the same holds for ", subject(Ranks(guilty.begin() + 1, guilty.end())));
    return text + waiting_for(guilty[0]);
  }

  /// Who waits for the rank, and in which collective.
  std::string waiting_for(int64_t late) const {
    std::string text;
    Ranks told;
    for (size_t i = 0; i < ranks_.size(); ++i) {
      if (!alive(ranks_[i]) || !waits_for(ranks_[i], ranks_[late]) ||
          std::count(told.begin(), told.end(), static_cast<int64_t>(i)) > 0) {
        continue;
      }
      const Collective& collective = *ranks_[i].report.waiting;
      const Ranks waiting = those([&](const Witness& rank) { return alive(rank) && together(rank, ranks_[i]); });
      told.insert(told.end(), waiting.begin(), waiting.end());
      text += str("\n  ", subject(waiting), waiting.size() == 1 ? " waits" : " wait", " for it, ", doing(ranks_[i]),
                  ", since ", whole(collective.seconds), " s");
    }
    return text;
  }

  const std::vector<Witness>& ranks_;
  const Limits& limits_;
};

}  // namespace

std::optional<std::string> verdict(const std::vector<Witness>& ranks, const Limits& limits) {
  return Judge(ranks, limits).verdict();
}

}  // namespace moetune
