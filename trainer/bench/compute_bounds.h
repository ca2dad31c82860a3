// Rates of what a layer computes: products of all rows with one matrix, products grouped by expert, attention, and
// making packed weights dense. Through the program's own functions, at the shapes of DeepSeek-V3 and Qwen3-30B-A3B in
// bf16 on a GPU; on a CPU in fp32 and a quarter as wide.
//
//   measure_products(meter);  measure_grouped_products(meter);  measure_attention(meter);  measure_dequantising(meter);
#pragma once

#include "trainer/bench/meter.h"

namespace moetune {

// Collective over the job, as all of a Meter.

/// "dense.*", FLOP/s: x W^T of linear maps.
void measure_products(Meter& meter);
/// "grouped.*.rowsN", FLOP/s: the same by experts of N rows each.
void measure_grouped_products(Meter& meter);
/// "attention.*", FLOP/s: one long document, causal. The pairs that a query sees count, backwards two and a half times.
void measure_attention(Meter& meter);
/// "nf4.dequantise", numbers/s, and "nf4.dequantise_bytes", B/s read and written.
void measure_dequantising(Meter& meter);

}  // namespace moetune
