// Weights of a layer that come when a way reaches it and go when it leaves, as a sweep sees them; frozen ones come with
// their block (moe/block.h).
#pragma once

#include <vector>

#include "lora/layer_id.h"

namespace moetune {

class LayerWeights {
 public:
  virtual ~LayerWeights() = default;
  /// The layer's weights are at hand between these two. In the order of the store's schedule.
  virtual void use(LayerId layer) = 0;
  virtual void release(LayerId layer) = 0;
  /// Ends all uses, behind a failure; the store is told by whoever else uses it.
  virtual void abandon() = 0;
  /// Numbers in the store of the slabs that use() uses, in its order.
  virtual std::vector<int> uses(LayerId layer) const = 0;
};

}  // namespace moetune
