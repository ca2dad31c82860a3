#include "lora/expert_chunk.h"

#include <algorithm>

#include "parallel/device/upload.h"

namespace moetune {

ListedRun::ListedRun(const std::vector<int64_t>& experts, int64_t first_expert, int64_t num_experts) {
  const auto begin = std::lower_bound(experts.begin(), experts.end(), first_expert),
             end = std::lower_bound(begin, experts.end(), first_expert + num_experts);
  first = begin - experts.begin();
  count = end - begin;
}

// Rows lie by expert, so those of a listed expert are a range: its begin here less its begin among the listed ones,
// repeated, takes numbers of the latter to the former. Two short lists go to the device, however many rows there are.
ListedRows::ListedRows(const std::vector<int64_t>& experts, const ExpertChunk& chunk)
    : run_(experts, chunk.first, chunk.count) {
  if (run_.count == chunk.count) {
    groups_ = chunk.groups;
    return;
  }
  if (none()) return;
  std::vector<int64_t> counts, offsets;
  int64_t num_rows = 0;
  for (int64_t i = run_.first; i < run_.first + run_.count; ++i) {
    counts.push_back(chunk.groups.count(experts[i] - chunk.first));
    offsets.push_back(chunk.groups.begin(experts[i] - chunk.first) - num_rows);
    num_rows += counts.back();
  }
  const at::Device device = chunk.groups.ends_e.device();
  groups_ = RowGroups::from_counts(counts, device);
  groups_.one_kernel = chunk.groups.one_kernel;
  const at::Tensor lists_2e =
      uploaded(at::stack({at::tensor(offsets, at::kLong), at::tensor(counts, at::kLong)}), device);
  row_X_ = at::repeat_interleave(lists_2e[0], lists_2e[1], 0, num_rows) +
           at::arange(num_rows, at::TensorOptions(at::kLong).device(device));
}

void lay_over(at::Tensor out, int64_t first_expert, const std::vector<int64_t>& experts, const at::Tensor& stack) {
  const ListedRun run(experts, first_expert, out.size(0));
  if (run.count == 0) return;
  std::vector<int64_t> places;
  for (int64_t i = run.first; i < run.first + run.count; ++i) places.push_back(experts[i] - first_expert);
  // One copy, however many experts there are.
  out.index_copy_(0, uploaded(at::tensor(places, at::kLong), out.device()), run.of_stack(stack));
}

}  // namespace moetune
