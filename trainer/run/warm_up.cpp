#include "trainer/run/warm_up.h"

#include <algorithm>
#include <chrono>
#include <set>

#include "moe/attention/ragged_attention.h"
#include "moe/attention/ragged_pieces.h"
#include "parallel/base/clock.h"
#include "parallel/base/log.h"
#include "parallel/base/text.h"
#include "parallel/base/units.h"

namespace moetune {
namespace {

/// Lengths of documents, each once.
std::set<int64_t> lengths_of(const std::vector<const Documents*>& data) {
  std::set<int64_t> lengths;
  for (const Documents* documents : data) {
    for (int64_t i = 0; documents != nullptr && i < documents->size(); ++i) lengths.insert(documents->length(i));
  }
  return lengths;
}

/// Of a layer's attention what its programs depend on.
AttentionSpec shape_of(const AttentionSpec& layer) {
  const bool latent = layer.kind == AttentionSpec::Kind::kLatent;
  AttentionSpec shape;
  shape.kind = layer.kind;
  shape.heads = layer.heads;
  shape.kv_heads = layer.kv_heads;
  shape.nope_dim = latent ? layer.nope_dim : layer.key_dim();
  shape.rotary_dim = latent ? layer.rotary_dim : 0;
  shape.value_dim = layer.value_dim;
  shape.softmax_scale = layer.softmax_scale;
  return shape;
}

}  // namespace

void warm_up_attention(const Assembly& run, const std::vector<const Documents*>& data) {
  if (!run.device.is_cuda()) return;
  const auto start = std::chrono::steady_clock::now();
  struct Programs {
    AttentionSpec shape;
    std::set<int64_t> rows;
  };
  std::vector<Programs> programs;
  const std::set<int64_t> lengths = lengths_of(data);
  for (const LayerId layer : run.blueprint.blocks(run.model->mtp != nullptr)) {
    const AttentionSpec& spec = run.blueprint.layer(layer).attention;
    if (spec.sinks) continue;
    const AttentionSpec shape = shape_of(spec);
    auto same = std::find_if(programs.begin(), programs.end(), [&](const Programs& p) { return p.shape == shape; });
    if (same == programs.end()) same = programs.insert(same, {shape, {}});
    // The MTP module has all rows of a document but the last.
    for (const int64_t length : lengths) add_dense_rows(length - (layer.is_mtp() ? 1 : 0), spec.mask, same->rows);
  }
  int64_t made = 0;
  const int64_t ranks = run.model->axis.size();
  for (const Programs& p : programs) {
    made += warm_up_ragged_attention(p.shape, p.shape.heads / ranks, std::max<int64_t>(1, p.shape.kv_heads / ranks),
                                     p.rows, at::TensorOptions(run.compute).device(run.device));
  }
  if (made == 0) return;
  log_info(str("attention: programs for ", made, made == 1 ? " length" : " lengths", " of long documents made in ",
               duration_text(seconds_since(start))));
}

}  // namespace moetune
