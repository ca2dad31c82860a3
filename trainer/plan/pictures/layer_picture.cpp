#include "trainer/plan/pictures/layer_picture.h"

#include <algorithm>
#include <vector>

#include "parallel/base/error.h"
#include "parallel/base/units.h"
#include "parallel/bytes/weight_store.h"
#include "trainer/plan/pictures/svg.h"

namespace moetune {
namespace {

using Anchor = TextStyle::Anchor;
using Lines = std::vector<std::string>;

constexpr double kDownX = 272, kUpX = 468;      // the two ways, as lines
constexpr double kBoxX = 284, kBoxWidth = 172;  // what is computed, between them
constexpr double kChipWidth = 56, kChipHeight = 17, kLineHeight = 14;
constexpr const char* kTensorAxis = "#a9d3a1";
constexpr const char* kExchange = "#b9b4e4";
constexpr const char* kReplicas = "#93d1cc";

struct Chip {
  const char* fill;
  std::string name;
};

/// A stage of the layer, as it lies in the way down.
struct Stage {
  std::string title, detail;  ///< what is computed; empty: only moves
  std::vector<Chip> chips;    ///< groups that talk
  Lines down, up;             ///< what they say on each way
};

std::string grouped(int64_t count) {
  std::string digits = str(count);
  for (auto place = static_cast<int64_t>(digits.size()) - 3; place > 0; place -= 3) {
    digits.insert(static_cast<size_t>(place), ",");
  }
  return digits;
}

class LayerPicture {
 public:
  explicit LayerPicture(const PlannedMesh& mesh)
      : mesh_(mesh),
        blueprint_(mesh.blueprint),
        shape_(mesh.shape),
        T_(mesh.plan.held_rows),
        b_(mesh.compute_bytes),
        svg_(str("What one expert layer computes and sends on ", to_string(mesh.shape))) {}

  std::string draw() {
    svg_.text(Svg::kMargin, 26, "One expert layer of a step: what a rank computes, and what it sends in which group",
              {.bold = true, .size = 14});
    svg_.text(Svg::kMargin, 44,
              str(to_string(shape_), "; T = ", grouped(T_), " rows a rank",
                  shape_.tp > 1 ? str(", ", shape_.tp, " T on its tensor axis") : "",
                  ", D = ", grouped(blueprint_.width), ", C = ", grouped(latents()), " latents, b = ", b_, " bytes"),
              {.fill = colour::kSoft});
    const double top = 84;
    double y = top;
    for (const Stage& stage : stages()) y = put(stage, y);
    way(kDownX, top - 8, y, colour::kDown);
    way(kUpX, y, top - 8, colour::kUp);
    head(kDownX - 8, top - 16, Anchor::kEnd, "Down: forward");
    head(kUpX + 8, top - 16, Anchor::kStart, "Up: recompute, then backward");
    svg_.text(kBoxX + kBoxWidth / 2, top - 16, "layer l", {.bold = true, .anchor = Anchor::kMiddle});
    return svg_.finish();
  }

 private:
  int64_t latents() const {
    const AttentionSpec& attention = blueprint_.attention();
    return attention.q_lora.value_or(blueprint_.width) + attention.kv_lora + attention.rotary_dim;
  }

  /// Other ranks that a token goes to at the most.
  int64_t most_sends() const {
    int64_t ranks = std::min(blueprint_.router.top_k, shape_.ep - 1);
    if (blueprint_.router.num_groups > 1 &&
        (shape_.ep % blueprint_.router.num_groups == 0 || blueprint_.router.num_groups % shape_.ep == 0)) {
      ranks = std::min(ranks,
                       blueprint_.router.top_groups * std::max<int64_t>(1, shape_.ep / blueprint_.router.num_groups));
    }
    return ranks;
  }

  std::vector<Stage> stages() const {
    const int64_t D = blueprint_.width, K = blueprint_.router.top_k, others = shape_.tp - 1, parts = shape_.expert_tp,
                  S = parts * T_ * most_sends(), local = blueprint_.router.experts / shape_.ep;
    const Chip tp{kTensorAxis, "tp"}, ep{kExchange, "ep"};
    const auto axis_bytes = [&](int64_t a_row) { return bytes_text(others * T_ * a_row); };
    const auto axis = [&](int64_t numbers) { return axis_bytes(numbers * b_); };
    const auto twice = [&](int64_t numbers) { return bytes_text(2 * others * T_ * numbers * b_); };
    const std::string rows = shape_.tp > 1 ? str(shape_.tp, " T rows") : "T rows";
    std::vector<Stage> list = {trained(), frozen(), {"norm, maps to latents", "T rows", {}, {}, {}}};
    if (others > 0) {
      list.push_back({"",
                      "",
                      {tp},
                      {"latents all-gathered", str("(TP-1) T C b = ", axis(latents()))},
                      {"again; gradients reduce-scattered", str("twice that: ", twice(latents()))}});
    }
    list.push_back(
        {"attention",
         str(blueprint_.attention().heads / shape_.tp, " of ", blueprint_.attention().heads, " heads, ", rows),
         {},
         {},
         {}});
    if (others > 0) {
      list.push_back({"",
                      "",
                      {tp},
                      {"outputs reduce-scattered", str("(TP-1) T D b = ", axis(D))},
                      {"again; gradients all-gathered", str("twice that: ", twice(D))}});
    }
    list.push_back({"norm, router", str(K, " of ", blueprint_.router.experts, " experts a row"), {}, {}, {}});
    const auto at_most = [](int64_t bytes) { return str("at most ", bytes_text(bytes)); };
    if (parts > 1) {
      list.push_back({"",
                      "",
                      {tp},
                      {"z, weights, experts all-gathered", axis_bytes(D * b_ + K * (b_ + 2))},
                      {"z, weights, d y all-gathered", axis_bytes((2 * D + K) * b_)}});
    }
    if (shape_.ep > 1) {
      list.push_back({"",
                      "",
                      {ep},
                      {"all-to-all: z, weights, experts", at_most(S * (D * b_ + K * (b_ + 2)))},
                      {"the same and d y, again", at_most(S * (2 * D * b_ + K * (b_ + 2)))}});
    }
    if (blueprint_.experts.shared_width > 0) {
      const std::string meanwhile = shape_.ep > 1 ? "meanwhile " : "";
      Stage shared{"shared expert",
                   meanwhile + (shape_.tp > 1 ? str("1/", shape_.tp, " of its features, ", rows) : rows),
                   {},
                   {},
                   {}};
      if (others > 0) {
        shared.chips = {tp};
        shared.down = {"z all-gathered, output summed", str("(TP-1) T 2 D b = ", axis(2 * D))};
        shared.up = {"both again, and their transposes", str("twice that: ", twice(2 * D))};
      }
      list.push_back(shared);
    }
    list.push_back({"routed experts",
                    str(grouped(local), " of ", grouped(blueprint_.router.experts),
                        parts > 1 ? str(", 1/", parts, " of features") : ", a chunk at a time"),
                    {},
                    {},
                    {}});
    if (shape_.ep > 1) {
      list.push_back({"",
                      "",
                      {ep},
                      {"all-to-all: one sum a row, back", at_most(S * D * b_)},
                      {"d z and d weights, back", at_most(S * (D + K) * b_)}});
    }
    if (parts > 1) {
      list.push_back({"",
                      "",
                      {tp},
                      {"outputs reduce-scattered", str("(TP-1) T D b = ", axis(D))},
                      {"d z and d weights likewise", axis(D + K)}});
    }
    list.push_back({"sum", "x of layer l + 1", {}, {}, {}});
    return list;
  }

  Stage trained() const {
    Stage stage;
    const int64_t all = shape_.num_ranks() / shape_.pp, data = shape_.dp * shape_.ep, replicas = shape_.dp * shape_.tp;
    if (all > 1) stage.chips.push_back({kReplicas, str("stage ", all)});
    if (shape_.tp > 1 && data > 1) stage.chips.push_back({kReplicas, str("data ", data)});
    if (replicas > 1) stage.chips.push_back({kReplicas, str("replicas ", replicas)});
    stage.title = "what trains";
    stage.detail = stage.chips.empty() ? "on this rank alone" : "copies in groups of P ranks";
    stage.down = {"AdamW's new values all-gathered", "n/P from each of P ranks:", str(b_, " n (P-1)/P bytes")};
    stage.up = {"gradients reduce-scattered",
                "n/P to the host of each rank:", str(std::max<int64_t>(4, b_), " n (P-1)/P bytes")};
    if (stage.chips.empty()) {
      stage.down = {"AdamW's new values"};
      stage.up = {"gradients, to the host"};
    }
    return stage;
  }

  Stage frozen() const {
    const WeightPlacement& held = mesh_.plan.weights;
    Stage stage{"frozen weights", "made dense for this way", {}, {}, {}};
    const int64_t kept = WeightStore::shard_bytes(held.expert_slab_bytes, held.expert_shards);
    if (held.expert_shards > 1 || held.dense_shards > 1) stage.chips.push_back({colour::kFetch, "shards"});
    if (!held.host_layers.empty()) stage.chips.push_back({colour::kFetch, "host"});
    if (held.expert_shards > 1) {
      stage.down.push_back(str("experts gathered: ", bytes_text((held.expert_shards - 1) * kept)));
    } else if (held.dense_shards > 1) stage.down.push_back(str("dense maps gathered, 1/", held.dense_shards, " each"));
    if (!held.host_layers.empty()) stage.down.push_back(str("own part from host: ", bytes_text(kept)));
    if (stage.down.empty()) stage.down = {"on the device: nothing moves"};
    stage.up = stage.down;
    return stage;
  }

  double put(const Stage& stage, double y) {
    const auto count = [&](const Lines& lines) { return static_cast<double>(lines.size()) * kLineHeight; };
    const double chips = static_cast<double>(stage.chips.size()) * (kChipHeight + 3) - 3;
    const double height = std::max({stage.title.empty() ? 0.0 : 38.0, count(stage.down), count(stage.up), chips}) + 6;
    const double middle = y + height / 2;
    if (!stage.title.empty()) {
      svg_.box({kBoxX, middle - 19, kBoxWidth, 38}, colour::kPaper, colour::kLine, 4);
      svg_.text(kBoxX + kBoxWidth / 2, middle - 3, stage.title, {.bold = true, .anchor = Anchor::kMiddle});
      svg_.text(kBoxX + kBoxWidth / 2, middle + 11, stage.detail,
                {.fill = colour::kSoft, .size = 11, .anchor = Anchor::kMiddle});
    }
    for (size_t i = 0; i < stage.chips.size(); ++i) {
      const Chip& chip = stage.chips[i];
      const double top = middle - chips / 2 + static_cast<double>(i) * (kChipHeight + 3);
      const TextStyle style{.fill = chip.fill == colour::kFetch ? colour::kGround : colour::kText, .size = 11};
      for (const double x : {kDownX - 10 - kChipWidth, kUpX + 10}) {
        svg_.chip({x, top, kChipWidth, kChipHeight}, chip.fill, chip.name, style);
      }
    }
    const double beside = stage.chips.empty() ? 0.0 : kChipWidth + 8;
    say(stage.down, kDownX - 10 - beside, middle, Anchor::kEnd);
    say(stage.up, kUpX + 10 + beside, middle, Anchor::kStart);
    return y + height;
  }

  void say(const Lines& lines, double x, double middle, Anchor anchor) {
    double y = middle - static_cast<double>(lines.size()) * kLineHeight / 2 + 11;
    for (const std::string& line : lines) {
      svg_.text(x, y, line,
                {.fill = &line == &lines.front() ? colour::kText : colour::kSoft, .size = 11, .anchor = anchor});
      y += kLineHeight;
    }
  }

  void way(double x, double from, double to, const char* fill) {
    svg_.arrow(x - 1, from, x - 1, to, fill);
    svg_.box({x - 2.5, std::min(from, to) + (to < from ? 6 : 0), 3, std::abs(to - from) - 6}, fill);
  }

  void head(double x, double y, Anchor anchor, const std::string& words) {
    svg_.text(x, y, words, {.bold = true, .anchor = anchor});
  }

  const PlannedMesh& mesh_;
  const Blueprint& blueprint_;
  const MeshShape& shape_;
  int64_t T_, b_;
  Svg svg_;
};

}  // namespace

std::string layer_picture(const PlannedMesh& mesh) { return LayerPicture(mesh).draw(); }

}  // namespace moetune
