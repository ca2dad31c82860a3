#include "trainer/plan/pipeline_cut.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include "parallel/base/error.h"

namespace moetune {
namespace {

constexpr double kNever = std::numeric_limits<double>::infinity();

/// [0], [0] + [1], ...: of the items before each place, and of all.
std::vector<double> sums_before(const std::vector<double>& items) {
  std::vector<double> before(items.size() + 1, 0.0);
  std::partial_sum(items.begin(), items.end(), before.begin() + 1);
  return before;
}

/// The sizes of `parts` runs of n items of which the dearest is the cheapest; `cost`(part, first, end) of a run,
/// infinite where it may not be. Empty where no cut may be.
template <typename Cost>
std::vector<int64_t> cheapest_runs(int64_t n, int64_t parts, const Cost& cost) {
  MT_CHECK(parts >= 1 && parts <= n, n, " items in ", parts, " parts");
  struct Cut {
    double dearest = kNever, squares = 0.0;
    int64_t last = 0;  // items of the last run
    bool operator<(const Cut& other) const {
      return dearest != other.dearest ? dearest < other.dearest : squares < other.squares;
    }
  };
  // best[p][i]: of the first i items in p runs.
  std::vector<std::vector<Cut>> best(parts + 1, std::vector<Cut>(n + 1));
  best[0][0] = {0.0, 0.0, 0};
  for (int64_t p = 1; p <= parts; ++p) {
    for (int64_t i = p; i <= n; ++i) {
      for (int64_t last = 1; last <= i - p + 1; ++last) {
        const Cut& rest = best[p - 1][i - last];
        if (rest.dearest == kNever) continue;
        const double run = cost(p - 1, i - last, i);
        if (run == kNever) continue;
        best[p][i] = std::min(best[p][i], Cut{std::max(rest.dearest, run), rest.squares + run * run, last});
      }
    }
  }
  if (best[parts][n].dearest == kNever) return {};
  std::vector<int64_t> sizes(parts);
  for (int64_t p = parts, i = n; p > 0; i -= best[p][i].last, --p) sizes[p - 1] = best[p][i].last;
  return sizes;
}

/// What stages of a load take, each a run of blocks.
class Stages {
 public:
  Stages(const PipelineLoad& load, int64_t stages)
      : load_(load),
        blocks_(static_cast<int64_t>(load.work.size())),
        stages_(stages),
        work_(sums_before(load.work)),
        down_(sums_before(load.down)),
        bytes_(sums_before(load.bytes)) {}

  double work(int64_t first, int64_t end) const { return work_[end] - work_[first]; }

  /// E_s.
  double exposed(int64_t first, int64_t end) const {
    if (load_.update.empty()) return 0.0;
    double updated = has_embedding(first, end) ? load_.first_update : 0.0;
    double most = updated - down_[first];
    for (int64_t block = first; block < end; ++block) {
      updated += load_.update[block];
      most = std::max(most, updated - down_[block]);
    }
    if (end == blocks_) most = std::max(most, updated + load_.last_update - down_[end]);
    return std::max(0.0, most);
  }

  double bytes(int64_t stage, int64_t first, int64_t end) const {
    return bytes_[end] - bytes_[first] + (has_embedding(first, end) ? load_.first_bytes : 0.0) +
           (end == blocks_ ? load_.last_bytes : 0.0) +
           load_.input_bytes * static_cast<double>((end - first) * load_.in_flight.at(stage));
  }

  /// The most of any stage: of(stage, first, end).
  template <typename Of>
  static double most(const std::vector<int64_t>& blocks, const Of& of) {
    double most = 0.0;
    int64_t stage = 0, first = 0;
    for (const int64_t count : blocks) {
      most = std::max(most, of(stage++, first, first + count));
      first += count;
    }
    return most;
  }
  double exposed(const std::vector<int64_t>& blocks) const {
    return most(blocks, [&](int64_t, int64_t first, int64_t end) { return exposed(first, end); });
  }
  /// With its bubble, without E_s.
  double computing(const std::vector<int64_t>& blocks) const {
    const double turns = 1.0 + static_cast<double>(stages_ - 1) / static_cast<double>(load_.groups);
    return turns * most(blocks, [&](int64_t, int64_t first, int64_t end) { return work(first, end); });
  }

 private:
  bool has_embedding(int64_t first, int64_t end) const {
    return first == 0 || (end == blocks_ && load_.ends_share_first);
  }

  const PipelineLoad& load_;
  int64_t blocks_, stages_;
  std::vector<double> work_, down_, bytes_;  ///< of the blocks before each
};

}  // namespace

std::vector<int64_t> cut_by_cost(const std::vector<double>& costs, int64_t parts) {
  const std::vector<double> before = sums_before(costs);
  return cheapest_runs(static_cast<int64_t>(costs.size()), parts,
                       [&](int64_t, int64_t first, int64_t end) { return before[end] - before[first]; });
}

std::vector<int64_t> cut_pipeline(const PipelineLoad& load, int64_t stages) {
  const auto n = static_cast<int64_t>(load.work.size());
  std::vector<int64_t> best = cut_by_cost(load.work, stages);
  if (load.update.empty()) return best;
  const Stages of(load, stages);
  const double room =
      Stages::most(best, [&](int64_t stage, int64_t first, int64_t end) { return of.bytes(stage, first, end); });
  // Every cut that is the cheapest of those that expose less than the one before; the best is among them.
  double least = of.computing(best) + of.exposed(best), bound = of.exposed(best);
  while (bound > 0.0) {
    const std::vector<int64_t> tried = cheapest_runs(n, stages, [&](int64_t stage, int64_t first, int64_t end) {
      const bool may_be = of.exposed(first, end) < bound && of.bytes(stage, first, end) <= room;
      return may_be ? of.work(first, end) : kNever;
    });
    if (tried.empty() || of.computing(tried) >= least) break;
    bound = of.exposed(tried);
    const double step = of.computing(tried) + bound;
    if (step < least) {
      least = step;
      best = tried;
    }
  }
  return best;
}

}  // namespace moetune
