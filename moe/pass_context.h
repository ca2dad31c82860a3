// What every layer of one pass shares: the buffer for dense weights, the count of work on them, and where randomness
// stands.
#pragma once

#include "lora/adapters/adapter.h"
#include "lora/frozen_weight.h"
#include "lora/scratch.h"

namespace moetune {

struct PassContext {
  Scratch& scratch;
  DequantCounters& dequantised;
  StepRandom random;
};

}  // namespace moetune
