#include "moe/stage.h"

#include <numeric>

#include "parallel/base/error.h"

namespace moetune {

bool Stage::holds(LayerId layer) const {
  if (layer.is_block() && !layer.is_mtp()) return layer.number() >= first_ && layer.number() < end_;
  return layer == LayerId::embedding() ? is_first() : is_last();
}

bool Stage::has_embedding(const Blueprint& blueprint, bool with_mtp) const {
  return is_first() || (is_last() && end_uses_embedding(blueprint, with_mtp));
}

std::vector<LayerId> Stage::blocks(const Blueprint& blueprint, bool with_mtp) const {
  std::vector<LayerId> blocks = blueprint.blocks(with_mtp);
  std::erase_if(blocks, [this](LayerId layer) { return !holds(layer); });
  return blocks;
}

bool end_uses_embedding(const Blueprint& blueprint, bool with_mtp) { return with_mtp || blueprint.tied_embeddings; }

std::vector<Stage> stages_of(const std::vector<int64_t>& blocks) {
  const int64_t all = std::accumulate(blocks.begin(), blocks.end(), int64_t{0});
  std::vector<Stage> stages;
  int64_t first = 0;
  for (const int64_t count : blocks) {
    MT_CHECK(count >= 1, "a stage of ", count, " blocks");
    stages.emplace_back(first, first + count, all);
    first += count;
  }
  return stages;
}

std::string to_string(const Stage& stage) {
  const int64_t first = stage.first_block().number(), last = first + stage.num_blocks() - 1;
  return str(stage.is_first() ? "embedding, " : "", first == last ? "layer " : "layers ", first,
             first == last ? "" : str(" to ", last), stage.is_last() ? ", head" : "");
}

}  // namespace moetune
