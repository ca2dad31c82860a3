#include "trainer/plan/pictures/weights_picture.h"

#include <algorithm>
#include <array>
#include <string>
#include <utility>
#include <vector>

#include "parallel/base/error.h"
#include "parallel/base/units.h"
#include "parallel/bytes/weight_store.h"
#include "trainer/plan/pictures/svg.h"

namespace moetune {
namespace {

using Anchor = TextStyle::Anchor;

constexpr int64_t kMostRanks = 4;   // drawn of those that share a slab
constexpr int64_t kMostLayers = 6;  // drawn of those that are fetched
constexpr double kInside = Svg::kWidth - 2 * Svg::kMargin;
constexpr const char* kLight = "#e7ebee";

/// A stretch of time in which a buffer holds a slab, in uses of the step.
struct Stay {
  int64_t layer = 0;
  double fetched = 0.0, from = 0.0, to = 0.0;  ///< its fetch begins; it is there; the buffer may be overwritten
};

/// What `num_layers` slabs do in the buffers in a step that follows others, down through all of them and up again.
std::array<std::vector<Stay>, WeightStore::kBuffers> stays_of_step(int num_layers) {
  constexpr double kFetchLasts = 0.8;  // as it is drawn
  std::vector<int> uses;
  for (int layer = 0; layer < num_layers; ++layer) uses.push_back(layer);
  for (int layer = num_layers - 1; layer >= 0; --layer) uses.push_back(layer);
  const FetchRound round = fetches_of_round(uses);
  std::array<std::vector<Stay>, WeightStore::kBuffers> stays;
  for (int buffer = 0; buffer < WeightStore::kBuffers; ++buffer) {
    stays[buffer].push_back({round.before[buffer], 0.0, 0.0, 0.0});
  }
  for (const FetchRound::Timed& fetch : round.fetches) {
    const auto begin = static_cast<double>(fetch.time);
    stays[fetch.buffer].back().to = begin;
    stays[fetch.buffer].push_back({fetch.slab, begin, begin + kFetchLasts, begin + kFetchLasts});
  }
  for (auto& buffer : stays) buffer.back().to = static_cast<double>(uses.size());
  return stays;
}

class WeightsPicture {
 public:
  explicit WeightsPicture(const PlannedMesh& mesh)
      : mesh_(mesh),
        held_(mesh.plan.weights),
        shards_(held_.expert_shards),
        svg_(str("Frozen weights between host, ranks and buffers on ", to_string(mesh.shape))) {
    for (int64_t rank = 0; rank < mesh.shape.num_ranks(); ++rank) {
      if (coordinates_of(mesh.shape, rank).ep == 0 && static_cast<int64_t>(ranks_.size()) < shards_) {
        ranks_.push_back(rank);
      }
    }
  }

  std::string draw() {
    svg_.text(Svg::kMargin, 26, "Frozen weights: a slab, its shards, the buffers", {.bold = true, .size = 14});
    const int64_t moe_layers = mesh_.blueprint.num_layers() - mesh_.blueprint.num_dense_layers();
    const auto on_host = static_cast<int64_t>(held_.host_layers.size());
    svg_.text(Svg::kMargin, 44,
              str("Experts of ", moe_layers, " layers, ",
                  on_host == 0            ? "all on the device"
                  : on_host >= moe_layers ? "all in host memory"
                                          : str(on_host, " of them in host memory"),
                  shards_ > 1 ? str("; each slab in ", shards_, " shards") : "; each slab whole"),
              {.fill = colour::kSoft});
    double y = slab(64);
    y = shares(y + 20);
    svg_.text(Svg::kMargin, y + 34, "Along a step", {.bold = true});
    const int64_t fetched = shards_ > 1 ? moe_layers : on_host;
    if (fetched > WeightStore::kBuffers) {
      timeline(y + 44, fetched);
    } else {
      svg_.text(Svg::kMargin, y + 54,
                fetched == 0
                    ? "Every slab is whole and on the device: a step fetches nothing."
                    : str("Only ", fetched, " slabs are fetched, and stay in their buffers: once, for all steps."));
    }
    return svg_.finish();
  }

 private:
  double slab(double y) {
    const int64_t experts = mesh_.blueprint.router.experts / mesh_.shape.ep;
    svg_.text(Svg::kMargin, y + 12,
              str("The slab of one layer's experts at ep 0: ", experts, " records of packed gate, up and down, ",
                  bytes_text(held_.expert_slab_bytes)));
    const Rect whole{Svg::kMargin, y + 20, kInside, 26};
    const double width = whole.width / static_cast<double>(shards_);
    for (int64_t shard = 0; shard < shards_; ++shard) {
      const double x = whole.x + static_cast<double>(shard) * width;
      svg_.box({x, whole.y, width, whole.height}, colour::of(shard), colour::kSoft);
    }
    const int64_t records = std::min<int64_t>(experts, 64);
    for (int64_t record = 1; record < records; ++record) {
      const double x = whole.x + whole.width * static_cast<double>(record) / static_cast<double>(records);
      svg_.line(x, whole.y, x, whole.y + 5, colour::kSoft);
    }
    const bool labels = shards_ <= 16;
    for (int64_t shard = 0; labels && shard < shards_; ++shard) {
      svg_.text(whole.x + (static_cast<double>(shard) + 0.5) * width, whole.y + 20,
                shards_ <= 8 && shards_ > 1 ? str("shard ", shard + 1)
                : shards_ > 1               ? str(shard + 1)
                                            : "whole",
                {.size = 11, .anchor = Anchor::kMiddle});
    }
    return whole.y + whole.height;
  }

  /// A column for each rank: where its shard lies, and the buffer in which all shards come together.
  double shares(double y) {
    const auto shown = std::min<int64_t>(kMostRanks, static_cast<int64_t>(ranks_.size()));
    const double gap = 12, width = (kInside - gap * static_cast<double>(shown - 1)) /
                                   static_cast<double>(std::max<int64_t>(shown, 2));
    const int64_t kept = WeightStore::shard_bytes(held_.expert_slab_bytes, shards_);
    const bool host = !held_.host_layers.empty(), buffered = host || shards_ > 1;
    const double store_y = y + 24, buffer_y = store_y + 34 + (shards_ > 1 ? 74 : 48);
    for (int64_t column = 0; column < shown; ++column) {
      const double x = Svg::kMargin + static_cast<double>(column) * (width + gap), middle = x + width / 2;
      svg_.text(x, y + 14, str("rank ", ranks_[column]), {.bold = true});
      svg_.box({x, store_y, width, 34}, colour::of(column), colour::kNone, 3);
      svg_.text(middle, store_y + 14,
                shards_ > 1 ? str("keeps shard ", column + 1, ": ", bytes_text(kept))
                            : str("keeps it whole: ", bytes_text(kept)),
                {.size = 11, .anchor = Anchor::kMiddle});
      svg_.text(middle, store_y + 28, host ? "pinned host memory, or device" : "on the device",
                {.size = 11, .anchor = Anchor::kMiddle});
      if (!buffered) continue;
      const double piece = width / static_cast<double>(shards_), own = x + (static_cast<double>(column) + 0.5) * piece;
      svg_.arrow(own, store_y + 34, own, buffer_y, colour::kFetch);
      for (int64_t shard = 0; shard < shards_; ++shard) {
        svg_.box({x + static_cast<double>(shard) * piece, buffer_y, piece, 22}, colour::of(shard),
                 shard == column ? colour::kFetch : colour::kLine);
      }
      svg_.text(middle, buffer_y + 36, str("a buffer: the whole slab, ", bytes_text(kept * shards_)),
                {.size = 11, .anchor = Anchor::kMiddle});
      svg_.text(middle, buffer_y + 50, "a second one for what is next",
                {.fill = colour::kSoft, .size = 11, .anchor = Anchor::kMiddle});
    }
    if (!buffered) return store_y + 34;
    if (shards_ > 1) {
      const double line_y = store_y + 34 + 34;
      const std::string words =
          str(host ? "own shard: from the host over PCIe, or on the device; " : "own shard: on the device; ",
              "the other ", shards_ - 1, ": all-gather of packed bytes over the group");
      svg_.box({Svg::kMargin, line_y - 12, kInside, 20}, kLight, colour::kNone, 3);
      svg_.text(Svg::kWidth / 2, line_y + 2, words, {.size = 11, .anchor = Anchor::kMiddle});
    }
    const int64_t more = static_cast<int64_t>(ranks_.size()) - shown;
    if (more == 0) return buffer_y + 54;
    svg_.text(Svg::kMargin, buffer_y + 72, str("... and ", more, more == 1 ? " rank more" : " ranks more"),
              {.fill = colour::kSoft});
    return buffer_y + 76;
  }

  void timeline(double y, int64_t fetched) {
    const int64_t layers = std::min(kMostLayers, fetched), uses = 2 * layers;
    const double left = 92, unit = (Svg::kWidth - Svg::kMargin - left) / static_cast<double>(uses);
    const auto at = [&](double time) { return left + time * unit; };
    const auto row = [&](double top, const std::string& words) {
      svg_.text(left - 10, top + 13, words, {.fill = colour::kSoft, .anchor = Anchor::kEnd});
    };
    row(y + 6, "computes");
    for (int64_t use = 0; use < uses; ++use) {
      const int64_t layer = use < layers ? use : uses - 1 - use;
      svg_.chip({at(static_cast<double>(use)) + 1, y + 6, unit - 2, 18}, use < layers ? colour::kDown : colour::kUp,
                str("layer ", layer), {.size = 11});
    }
    const auto stays = stays_of_step(static_cast<int>(layers));
    int64_t fetches = 0;
    for (size_t buffer = 0; buffer < stays.size(); ++buffer) {
      const double top = y + 32 + static_cast<double>(buffer) * 24;
      row(top, str("buffer ", buffer));
      for (const Stay& stay : stays[buffer]) {
        const bool fetch = stay.from > stay.fetched;
        fetches += fetch;
        if (fetch) svg_.box({at(stay.fetched) + 1, top, at(stay.from) - at(stay.fetched) - 1, 18}, colour::kFetch);
        if (stay.to <= stay.from) continue;
        svg_.box({at(stay.from) + (fetch ? 0 : 1), top, at(stay.to) - at(stay.from) - 1, 18}, kLight, colour::kNone, 3);
        svg_.text(at(stay.from) + 8, top + 13, str(stay.layer), {.size = 11});
      }
    }
    const double turn = at(static_cast<double>(layers));
    svg_.line(turn, y + 2, turn, y + 76, colour::kFetch, /*dashed=*/true);
    svg_.text(turn, y - 2, "turn: head and loss", {.size = 11, .anchor = Anchor::kMiddle});
    double x = left;
    for (const auto& [fill, words] : {std::pair{colour::kDown, "down"},
                                      {colour::kUp, "up"},
                                      {colour::kFetch, "fetched: copied, gathered, beside computing"},
                                      {kLight, "in the buffer"}}) {
      svg_.box({x, y + 86, 14, 11}, fill);
      svg_.text(x + 20, y + 96, words, {.fill = colour::kSoft});
      x += 36 + Svg::text_width(words);
    }
    svg_.text(Svg::kMargin, y + 118,
              str("Of ", layers, " slabs ", fetches, " = 2 x (", layers,
                  " - 2) are fetched a step: those at either turn are still there. ",
                  fetched > layers ? str("This recipe has ", fetched, ": ", 2 * (fetched - 2), " fetches.") : ""));
    svg_.text(Svg::kMargin, y + 135,
              str("A step copies ", bytes_text(held_.copied_bytes_per_step), " from the host and receives ",
                  bytes_text(held_.gathered_bytes_per_step), " from other ranks, dense maps included."));
  }

  const PlannedMesh& mesh_;
  const WeightPlacement& held_;
  int64_t shards_;
  std::vector<int64_t> ranks_;
  Svg svg_;
};

}  // namespace

std::string weights_picture(const PlannedMesh& mesh) {
  if (mesh.plan.weights.expert_slab_bytes == 0) {
    throw UserError(
        "--picture weights: with adapter: none the weights train, and none are frozen; ask for --picture mesh or "
        "layer");
  }
  return WeightsPicture(mesh).draw();
}

}  // namespace moetune
