// What a step takes where there is next to nothing to compute: starting operators, autograd, waits of the host.
//
//   measure_small_blocks(meter);
#pragma once

#include "trainer/bench/meter.h"

namespace moetune {

/// "small_blocks", 1/s: blocks of a tiny model that a rank walks down and up in training steps of few tokens, what
/// begins and ends a step shared out among them. Collective over the job, as all of a Meter.
void measure_small_blocks(Meter& meter);

}  // namespace moetune
