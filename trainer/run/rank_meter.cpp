#include "trainer/run/rank_meter.h"

#include <ATen/ATen.h>

#include <cmath>
#include <utility>

#include "parallel/device/device_memory.h"
#include "trainer/assemble.h"

namespace moetune {
namespace {

int64_t microseconds(double seconds) { return static_cast<int64_t>(std::llround(seconds * 1e6)); }

RankFigures of_row(const at::Tensor& figures) {
  const auto* value = figures.const_data_ptr<int64_t>();
  const auto seconds = [&](int index) { return 1e-6 * static_cast<double>(value[index]); };
  return {value[0],   value[1],   value[2],   value[3],   value[4],   value[5],
          seconds(6), seconds(7), seconds(8), seconds(9), seconds(10)};
}

}  // namespace

at::Tensor RankFigures::row_among(int64_t rank, int64_t num_ranks) const {
  const at::Tensor own =
      at::tensor({memory_bytes, weights_copied_bytes, weights_gathered_bytes, exchange_sent_bytes,
                  tensor_axis_sent_bytes, stage_sent_bytes, microseconds(weights_wait_s), microseconds(exchange_s),
                  microseconds(tensor_axis_s), microseconds(stage_wait_s), microseconds(optimizer_wait_s)},
                 at::kLong);
  at::Tensor table = at::zeros({num_ranks, own.numel()}, at::kLong);
  table[rank].copy_(own);
  return table;
}

RankFigures RankFigures::most(const at::Tensor& table) { return of_row(table.amax(0)); }

RankFigures RankFigures::of_least_waiting(const at::Tensor& table) {
  RankFigures least = of_row(table[0]);
  for (int64_t rank = 1; rank < table.size(0); ++rank) {
    const RankFigures other = of_row(table[rank]);
    if (other.waits_s() < least.waits_s()) least = other;
  }
  return least;
}

RankFigures RankMeter::take() {
  const auto since = [](int64_t& last, int64_t now) { return now - std::exchange(last, now); };
  RankFigures figures;
  figures.memory_bytes = peak_memory_bytes(run_.device);
  figures.weights_copied_bytes = since(copied_, run_.store->traffic().copied);
  figures.weights_gathered_bytes = since(gathered_, run_.store->traffic().gathered);
  figures.exchange_sent_bytes = since(exchanged_, run_.mesh->ep().bytes_sent());
  figures.tensor_axis_sent_bytes = since(shared_, run_.mesh->tp().bytes_sent());
  figures.stage_sent_bytes = since(sent_, run_.links->bytes_sent());
  figures.stage_wait_s = run_.links->take_wait_s();
  figures.weights_wait_s = run_.store->take_exposed_s();
  figures.exchange_s = run_.exchange->take_s();
  figures.tensor_axis_s = run_.model->axis.take_s();
  return figures;
}

}  // namespace moetune
