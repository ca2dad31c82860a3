// Rate of the optimizer: AdamW of a rank's own numbers on its host, by trainer/update/optimizer.h, until the new values
// are back on the device.
//
//   measure_optimizer(meter);
#pragma once

#include "trainer/bench/meter.h"

namespace moetune {

/// "optimizer.adamw", numbers/s of a rank. Collective over the job.
void measure_optimizer(Meter& meter);

}  // namespace moetune
