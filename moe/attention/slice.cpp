#include "moe/attention/slice.h"

#include <algorithm>
#include <numeric>

#include "parallel/base/error.h"

namespace moetune {

std::vector<Slice> make_slices(const std::vector<int64_t>& document_lengths, const std::vector<int64_t>& position_U,
                               const std::vector<int64_t>& token_U, int64_t slice_tokens, at::Device device,
                               const TensorAxis& axis) {
  const int64_t total = std::accumulate(document_lengths.begin(), document_lengths.end(), int64_t{0});
  MT_CHECK(total == static_cast<int64_t>(position_U.size()) && position_U.size() == token_U.size(), total,
           " rows in documents, ", position_U.size(), " positions, ", token_U.size(), " tokens");
  std::vector<Slice> slices;
  size_t next = 0;
  int64_t row = 0, first_row = 0;
  do {
    Slice slice;
    std::vector<int64_t> lengths, document;
    while (next < document_lengths.size() &&
           (lengths.empty() || slice.num_all_rows + document_lengths[next] <= slice_tokens)) {
      document.insert(document.end(), document_lengths[next], static_cast<int64_t>(lengths.size()));
      lengths.push_back(document_lengths[next]);
      slice.num_all_rows += document_lengths[next++];
    }
    const std::vector<int64_t> token(token_U.begin() + row, token_U.begin() + row + slice.num_all_rows);
    slice.num_documents = static_cast<int64_t>(lengths.size());
    slice.first_row = first_row;
    slice.num_rows = axis.rows_of(slice.num_all_rows);
    const int64_t begin = std::min(slice.num_all_rows, axis.index() * slice.num_rows);
    const int64_t end = std::min(slice.num_all_rows, begin + slice.num_rows);
    slice.num_padding = slice.num_rows - (end - begin);
    auto on_device = [&](const std::vector<int64_t>& values) { return at::tensor(values, at::kLong).to(device); };
    auto own_rows = [&](const std::vector<int64_t>& values, int64_t padding) {
      std::vector<int64_t> own(values.begin() + begin, values.begin() + end);
      own.resize(slice.num_rows, padding);
      return on_device(own);
    };
    slice.token_T = own_rows(token, 0);
    slice.document_T = own_rows(document, slice.num_documents);
    slice.document_length = on_device(lengths);
    slice.position_U = on_device({position_U.begin() + row, position_U.begin() + row + slice.num_all_rows});
    slice.token_U = axis.size() == 1 ? slice.token_T : on_device(token);
    slice.lengths = std::move(lengths);
    row += slice.num_all_rows;
    first_row += slice.num_rows;
    slices.push_back(std::move(slice));
  } while (next < document_lengths.size());
  return slices;
}

std::vector<int64_t> gathered_places(const std::vector<Slice>& slices) {
  const int64_t local_rows = slices.back().first_row + slices.back().num_rows;
  std::vector<int64_t> places;
  for (const Slice& slice : slices) {
    for (int64_t row = 0; row < slice.num_all_rows; ++row) {
      places.push_back(row / slice.num_rows * local_rows + slice.first_row + row % slice.num_rows);
    }
  }
  return places;
}

}  // namespace moetune
