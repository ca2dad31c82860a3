#include "trainer/plan/mesh_drawing.h"

#include <algorithm>
#include <vector>

#include "parallel/base/error.h"
#include "parallel/base/units.h"
#include "trainer/plan/model_banner.h"

namespace moetune {
namespace {

constexpr int64_t kMostRowsDrawn = 32;

std::string padded(std::string text, size_t columns) {
  text.resize(std::max(text.size(), columns), ' ');
  return text;
}

class Drawing {
 public:
  explicit Drawing(const PlannedMesh& mesh)
      : mesh_(mesh), blueprint_(mesh.blueprint), shape_(mesh.shape), plan_(mesh.plan) {}

  std::string text() const { return grid() + "\n" + groups() + weights(); }

 private:
  /// A row for each replica of each part of the experts, a column for each tensor-parallel part.
  std::string grid() const {
    const bool parts = shape_.expert_tp > 1;
    const auto heads_of = [&](int64_t tp) {
      return str("heads ", run_of(tp, shape_.tp, blueprint_.attention().heads));
    };
    const auto features_of = [&](int64_t tp) { return str("features ", expert_features_of(mesh_, tp)); };
    size_t cell = std::max(str("rank ", shape_.num_ranks() - 1).size(), heads_of(shape_.tp - 1).size());
    for (int64_t tp = 0; parts && tp < shape_.tp; ++tp) cell = std::max(cell, features_of(tp).size());
    cell += 2;
    std::string header = padded("", 16), heads = padded("", 16), features = padded("", 16), rows;
    for (int64_t tp = 0; tp < shape_.tp; ++tp) {
      header += padded(str("tp ", tp), cell);
      heads += padded(heads_of(tp), cell);
      features += padded(features_of(tp), cell);
    }
    const int64_t num_rows = shape_.dp * shape_.ep;
    for (int64_t row = 0; row < std::min(num_rows, kMostRowsDrawn); ++row) {
      const int64_t dp = row / shape_.ep, ep = row % shape_.ep;
      rows += padded(str("  ", ep == 0 ? padded(str("dp ", dp), 7) : padded("", 7), "ep ", ep), 16);
      for (int64_t tp = 0; tp < shape_.tp; ++tp) {
        rows += padded(str("rank ", rank_at(shape_, {.pp = 0, .dp = dp, .ep = ep, .tp = tp})), cell);
      }
      rows += str("experts ", run_of(ep, shape_.ep, blueprint_.router.experts), "\n");
    }
    if (num_rows > kMostRowsDrawn) rows += str("  ... and ", num_rows - kMostRowsDrawn, " rows more\n");
    return header + "\n" + rows + heads + "\n" + (parts ? features + "of each expert\n" : "");
  }

  /// The ranks for which `same` holds, of the group that rank 0 is in.
  template <typename Same>
  std::string ranks_where(const Same& same) const {
    std::string text;
    int64_t count = 0;
    for (int64_t rank = 0; rank < shape_.num_ranks(); ++rank) {
      if (!same(coordinates_of(shape_, rank))) continue;
      if (++count <= 8) text += str(count == 1 ? "" : " ", rank);
    }
    return str(count, count == 1 ? " rank: " : " ranks: ", text, count > 8 ? " ..." : "");
  }

  std::string groups() const {
    const auto data = [](const MeshCoordinates& place) { return place.pp == 0 && place.tp == 0; };
    const bool parts = shape_.expert_tp > 1;
    const auto experts = [&](const MeshCoordinates& place) {
      return place.pp == 0 && place.ep == 0 && (place.tp == 0 || !parts);
    };
    const auto exchange = [](const MeshCoordinates& place) { return place.pp == 0 && place.dp == 0 && place.tp == 0; };
    return banner_line("data", str("a step's sequences are dealt out over dp x ep = ", shape_.dp * shape_.ep,
                                   " parts; the ranks of a tp group work on the same")) +
           banner_line("dense", str("the same weights on ", ranks_where(data))) +
           banner_line("experts", str("the same on ", ranks_where(experts))) +
           banner_line("exchange", str(parts ? "those of a whole tp group travel among " : "tokens travel among ",
                                       ranks_where(exchange)));
  }

  std::string weights() const {
    const WeightPlacement& placed = plan_.weights;
    const TrainedPlacement& trained = plan_.trained;
    const auto shared = [](int64_t shards) {
      return shards == 1 ? std::string("whole") : str("1/", shards, " of each layer's");
    };
    std::string text =
        banner_line("holds", str("of dense maps ", shared(placed.dense_shards), ", ", bytes_text(placed.dense_bytes),
                                 shape_.expert_tp > 1 ? "; of its parts of experts " : "; of its experts ",
                                 shared(placed.expert_shards), ", ", bytes_text(placed.expert_bytes)));
    if (placed.host_bytes > 0) {
      text +=
          banner_line("", str("in host memory ", bytes_text(placed.host_bytes), ": experts of ",
                              placed.host_layers.size(), " layers", placed.dense_on_host ? ", all dense maps" : ""));
    }
    if (placed.buffer_bytes > 0) {
      text += banner_line("", str("buffers for what is on its way ", bytes_text(placed.buffer_bytes)));
    }
    if (!trained.slabs.empty()) {
      const std::string on_host =
          trained.host_bytes > 0 ? str(", ", bytes_text(trained.host_bytes), " on the host") : "";
      text += banner_line("trains", str("working copies of its weights, ", bytes_text(trained.device_bytes), on_host));
    }
    text +=
        banner_line("a step", str("copies ", bytes_text(placed.copied_bytes_per_step + trained.copied_bytes_per_step),
                                  " of weights from the host and receives ",
                                  bytes_text(placed.gathered_bytes_per_step + trained.gathered_bytes_per_step),
                                  " from other ranks"));
    return text;
  }

  const PlannedMesh& mesh_;
  const Blueprint& blueprint_;
  const MeshShape& shape_;
  const MemoryPlan& plan_;
};

}  // namespace

std::string draw_mesh(const PlannedMesh& mesh, const std::string& recipe_path) {
  const int64_t num_ranks = mesh.shape.num_ranks();
  return banner_line("recipe", recipe_path) +
         banner_line("mesh", str(to_string(mesh.shape), ": ", num_ranks, num_ranks == 1 ? " rank" : " ranks")) +
         pipeline_lines(mesh.plan.pipeline) +
         (mesh.shape.pp > 1
              ? banner_line("", str("below: stage 0; of stage s the ranks are ", num_ranks / mesh.shape.pp,
                                    " s higher; bytes are those of stage ", mesh.plan.stage, ", the fullest"))
              : "") +
         "\n" + Drawing(mesh).text();
}

}  // namespace moetune
