#include "trainer/plan/pictures/mesh_picture.h"

#include <algorithm>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "moe/inventory.h"
#include "parallel/base/ceil_div.h"
#include "parallel/base/error.h"
#include "parallel/base/units.h"
#include "trainer/plan/pictures/svg.h"

namespace moetune {
namespace {

using Anchor = TextStyle::Anchor;

constexpr int64_t kMostRanks = 64, kMostColumns = 4;
constexpr double kGap = 8.0, kPad = 10.0;
constexpr const char* kDense = "#7c8a96";
constexpr const char* kExperts = "#b9c3cc";
constexpr const char* kHost = "#e7ebee";

/// Where each rank's box goes: hosts one below the other, ranks in rows of whole tensor axes.
class Grid {
 public:
  Grid(const PlannedMesh& mesh, double left, double width, double box_height, double gap, double host_title)
      : per_host_(mesh.ranks_per_host),
        shown_(std::min(mesh.shape.num_ranks(), kMostRanks)),
        left_(left),
        width_(width),
        box_height_(box_height),
        gap_(gap),
        host_title_(host_title) {
    columns_ = std::min(mesh.shape.tp, kMostColumns);
    while (columns_ * 2 <= std::min(kMostColumns, per_host_)) columns_ *= 2;
  }
  int64_t shown() const { return shown_; }
  int64_t hosts() const { return ceil_div(shown_, per_host_); }
  int64_t ranks_of_host(int64_t host) const { return std::min(per_host_, shown_ - host * per_host_); }
  double host_height(int64_t host) const {
    return host_title_ + static_cast<double>(ceil_div(ranks_of_host(host), columns_)) * (box_height_ + gap_) + gap_;
  }
  Rect host(int64_t host, double top) const {
    for (int64_t before = 0; before < host; ++before) top += host_height(before) + gap_;
    return {left_, top, width_, host_height(host)};
  }
  Rect rank(int64_t rank, double top) const {
    const int64_t place = rank % per_host_;
    const Rect around = host(rank / per_host_, top);
    const double box_width = (width_ - gap_) / static_cast<double>(columns_) - gap_;
    return {left_ + gap_ + static_cast<double>(place % columns_) * (box_width + gap_),
            around.y + host_title_ + gap_ + static_cast<double>(place / columns_) * (box_height_ + gap_), box_width,
            box_height_};
  }
  double bottom(double top) const {
    const Rect last = host(hosts() - 1, top);
    return last.y + last.height;
  }

 private:
  int64_t per_host_, shown_, columns_ = 1;
  double left_, width_, box_height_, gap_, host_title_;
};

class MeshPicture {
 public:
  explicit MeshPicture(const PlannedMesh& mesh) : mesh_(mesh), svg_(str("Who holds what on ", to_string(mesh.shape))) {}

  std::string draw() {
    const int64_t num_ranks = mesh_.shape.num_ranks(), hosts = ceil_div(num_ranks, mesh_.ranks_per_host);
    svg_.text(Svg::kMargin, 26,
              str(to_string(mesh_.shape), ": ", num_ranks, num_ranks == 1 ? " rank" : " ranks",
                  hosts > 1 ? str(" on ", hosts, " hosts") : ""),
              {.bold = true, .size = 14});
    svg_.text(Svg::kMargin, 44,
              str(mesh_.blueprint.model_type, ", ", count_text(count_parameters(mesh_.blueprint)),
                  " parameters: ", mesh_.blueprint.num_layers(), " layers, ", mesh_.blueprint.router.experts,
                  " experts, ", mesh_.blueprint.attention().heads, " heads"),
              {.fill = colour::kSoft});
    double y = ranks(56);
    y = legend(y);
    groups(y + 12);
    return svg_.finish();
  }

 private:
  double ranks(double top) {
    const Grid grid(mesh_, Svg::kMargin, Svg::kWidth - 2 * Svg::kMargin, 128, kGap, 18);
    for (int64_t host = 0; host < grid.hosts(); ++host) {
      const Rect around = grid.host(host, top);
      svg_.box(around, colour::kPaper, colour::kLine, 4);
      svg_.text(around.x + kPad, around.y + 17, str("host ", host), {.fill = colour::kSoft});
    }
    for (int64_t rank = 0; rank < grid.shown(); ++rank) holdings(rank, grid.rank(rank, top));
    if (grid.shown() == mesh_.shape.num_ranks()) return grid.bottom(top);
    svg_.text(Svg::kMargin, grid.bottom(top) + 16,
              str("... and ", mesh_.shape.num_ranks() - grid.shown(), " ranks more"), {.fill = colour::kSoft});
    return grid.bottom(top) + 16;
  }

  /// "shard 2 of 4", or "whole": counted from 1, in the order in which the group's ranks share.
  std::string shard(int64_t index, int64_t shards) const {
    return shards == 1 ? "whole" : str("shard ", index % shards + 1, " of ", shards);
  }

  void holdings(int64_t rank, const Rect& box) {
    const MeshShape& shape = mesh_.shape;
    const MeshCoordinates place = coordinates_of(shape, rank);
    const WeightPlacement& held = mesh_.plan.weights;
    svg_.box(box, colour::kGround, colour::kLine, 3);
    const double x = box.x + kPad, right = box.x + box.width - kPad;
    svg_.text(x, box.y + 18, str("rank ", rank), {.bold = true});
    svg_.text(right, box.y + 18, str("dp ", place.dp, "  ep ", place.ep, "  tp ", place.tp),
              {.fill = colour::kSoft, .size = 11, .anchor = Anchor::kEnd});
    part(x, box.y + 38, colour::of(place.ep),
         str("experts ", run_of(place.ep, shape.ep, mesh_.blueprint.router.experts)));
    const bool in_parts = shape.expert_tp > 1;
    const std::string slabs = in_parts ? str("F ", expert_features_of(mesh_, place.tp), ": ") : "their slabs: ";
    svg_.text(x + 14, box.y + 51,
              slabs + shard(in_parts ? place.dp : place.dp * shape.tp + place.tp, held.expert_shards),
              {.fill = colour::kSoft, .size = 11});
    part(x, box.y + 69, colour::of(place.tp),
         str("heads ", run_of(place.tp, shape.tp, mesh_.blueprint.attention().heads)));
    svg_.text(x + 14, box.y + 82, str("dense slabs: ", shard(place.dp * shape.ep + place.ep, held.dense_shards)),
              {.fill = colour::kSoft, .size = 11});
    bytes({x, box.y + 92, box.width - 2 * kPad, 12});
    svg_.text(x, box.y + 119, str("device ", bytes_text(held.dense_bytes + held.expert_bytes)), {.size = 10});
    if (held.host_bytes > 0) {
      svg_.text(right, box.y + 119, str("host ", bytes_text(held.host_bytes)),
                {.fill = colour::kSoft, .size = 10, .anchor = Anchor::kEnd});
    }
  }

  void part(double x, double y, const char* fill, const std::string& words) {
    svg_.box({x, y - 9, 10, 10}, fill, colour::kNone, 2);
    svg_.text(x + 14, y, words);
  }

  /// Frozen bytes of a rank as a bar: dense maps and experts on the device, and what lies in host memory.
  void bytes(const Rect& bar) {
    const WeightPlacement& held = mesh_.plan.weights;
    const auto total =
        static_cast<double>(std::max<int64_t>(1, held.dense_bytes + held.expert_bytes + held.host_bytes));
    double x = bar.x;
    for (const auto& [amount, fill] :
         {std::pair{held.dense_bytes, kDense}, {held.expert_bytes, kExperts}, {held.host_bytes, kHost}}) {
      if (amount == 0) continue;
      const double width = bar.width * static_cast<double>(amount) / total;
      svg_.box({x, bar.y, width, bar.height}, fill, colour::kSoft);
      x += width;
    }
  }

  double legend(double y) {
    double x = Svg::kMargin;
    svg_.text(x, y + 22, "Frozen weights of a rank:", {.fill = colour::kSoft});
    x += 150;
    for (const auto& [fill, words] : {std::pair{kDense, "dense maps on the device"},
                                      {kExperts, "experts on the device"},
                                      {kHost, "in host memory"}}) {
      svg_.box({x, y + 12, 14, 11}, fill, colour::kSoft);
      svg_.text(x + 20, y + 22, words, {.fill = colour::kSoft});
      x += 36 + Svg::text_width(words);
    }
    return y + 26;
  }

  /// The ranks once more for each kind of group, in the colour of their group.
  void groups(double top) {
    const MeshShape& s = mesh_.shape;
    struct Kind {
      std::string name, first, second;
      std::function<int64_t(const MeshCoordinates&)> group;
    };
    const std::vector<Kind> kinds = {
        {"ep", "tokens travel to experts", "and back", [&](const auto& at) { return at.dp * s.tp + at.tp; }},
        {"tp", "the same documents: rows are", "gathered, partial sums summed",
         [&](const auto& at) { return at.dp * s.ep + at.ep; }},
        {"expert_replicas", s.expert_tp > 1 ? "the same experts, in parts:" : "the same experts: slabs",
         s.expert_tp > 1 ? "gradients of whole halves" : "sharded, gradients summed",
         [&](const auto& at) { return at.ep; }},
        {"data", "the same heads: dense slabs", "sharded, gradients summed", [&](const auto& at) { return at.tp; }},
    };
    svg_.text(Svg::kMargin, top + 16,
              "Groups: ranks of one colour talk to each other, grey ones are alone; world and stage are all ranks",
              {.bold = true});
    const double width = (Svg::kWidth - 2 * Svg::kMargin - 3 * kGap) / 4;
    double bottom = top;
    bool repeated = false;
    for (size_t i = 0; i < kinds.size(); ++i) {
      const double x = Svg::kMargin + static_cast<double>(i) * (width + kGap), y = top + 24;
      svg_.text(x, y + 16, kinds[i].name, {.bold = true});
      svg_.text(x, y + 31, kinds[i].first, {.fill = colour::kSoft, .size = 11});
      svg_.text(x, y + 45, kinds[i].second, {.fill = colour::kSoft, .size = 11});
      const Grid grid(mesh_, x, width, 18, 4, 0);
      for (int64_t host = 0; host < grid.hosts(); ++host) {
        svg_.box(grid.host(host, y + 53), colour::kPaper, colour::kLine, 3);
      }
      std::map<int64_t, int64_t> sizes;
      for (int64_t rank = 0; rank < s.num_ranks(); ++rank) ++sizes[kinds[i].group(coordinates_of(s, rank))];
      repeated = repeated || (sizes.size() > colour::kCount && sizes.begin()->second > 1);
      for (int64_t rank = 0; rank < grid.shown(); ++rank) {
        const int64_t group = kinds[i].group(coordinates_of(s, rank));
        svg_.chip(grid.rank(rank, y + 53), sizes.at(group) > 1 ? colour::of(group) : kHost, str(rank), {.size = 11});
      }
      bottom = grid.bottom(y + 53);
    }
    if (repeated) {
      svg_.text(Svg::kMargin, bottom + 18,
                str("There are more groups than colours: each comes back after ", colour::kCount, "."),
                {.fill = colour::kSoft});
    }
  }

  const PlannedMesh& mesh_;
  Svg svg_;
};

}  // namespace

std::string mesh_picture(const PlannedMesh& mesh) { return MeshPicture(mesh).draw(); }

}  // namespace moetune
