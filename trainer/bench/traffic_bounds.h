// Rates at which bytes move: within the device, within the host, between both, and between ranks.
//
//   measure_copies(meter);  measure_traffic(meter);
#pragma once

#include "trainer/bench/meter.h"

namespace moetune {

/// "device_copy" and "host_copy", B/s read and written; on a GPU "copy_to_device" and "copy_from_device", B/s from and
/// to pinned memory. Collective over the job.
void measure_copies(Meter& meter);
/// "exchange.out", "exchange.back" and "all_gather", B/s that each rank gets from the others and sends to them, and
/// "all_gather.small", collectives of a few bytes a second; nothing where a rank is alone. Collective over the job.
void measure_traffic(Meter& meter);

}  // namespace moetune
