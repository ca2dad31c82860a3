#include "trainer/data/step_batch.h"

#include "trainer/data/documents.h"

namespace moetune {
namespace {

at::Tensor on_device(const std::vector<int64_t>& values, at::Device device) {
  return at::tensor(values, at::kLong).to(device);
}

/// A value for each row of the documents, put where the rows are among all rows.
std::vector<int64_t> placed(const Stream& stream, const std::vector<int64_t>& places,
                            const std::vector<int64_t>& values, int64_t padding) {
  std::vector<int64_t> all(stream.num_gathered_rows, padding);
  for (size_t row = 0; row < values.size(); ++row) all[places[row]] = values[row];
  return all;
}

/// weight_of_row: empty where each target counts 1.
void set_targets(Stream& stream, const std::vector<int64_t>& places, const std::vector<int64_t>& target_of_row,
                 const std::vector<float>& weight_of_row, double divisor, at::Device device) {
  std::vector<int64_t> rows, targets;
  std::vector<float> weights;
  for (size_t row = 0; row < target_of_row.size(); ++row) {
    if (target_of_row[row] == kNotTrained) continue;
    rows.push_back(places[row]);
    targets.push_back(target_of_row[row]);
    if (!weight_of_row.empty()) weights.push_back(weight_of_row[row]);
  }
  stream.target_row = on_device(rows, device);
  stream.target = on_device(targets, device);
  if (!weights.empty()) stream.target_weight = at::tensor(weights, at::kFloat).to(device);
  stream.divisor = divisor;
}

Stream make_stream(const std::vector<int64_t>& lengths, const std::vector<int64_t>& positions,
                   const std::vector<int64_t>& tokens, const Model& model, int64_t slice_tokens, at::Device device,
                   at::ScalarType compute) {
  Stream stream;
  stream.slices = make_slices(lengths, positions, tokens, slice_tokens, device, model.axis);
  std::vector<at::Tensor> own_tokens;
  for (const Slice& slice : stream.slices) {
    stream.angles.push_back(model.rope.angles(slice.position_U, compute));
    own_tokens.push_back(slice.token_T);
  }
  stream.token_T = at::cat(own_tokens);
  stream.num_rows = static_cast<int64_t>(tokens.size());
  stream.num_gathered_rows = model.axis.size() * stream.token_T.size(0);
  return stream;
}

}  // namespace

StepBatch make_step_batch(const RankBatch& local, const Model& model, int64_t slice_tokens, at::Device device,
                          at::ScalarType compute) {
  StepBatch batch;
  batch.global = local.global;
  std::vector<int64_t> lengths;
  for (size_t i = 0; i + 1 < local.document_begins.size(); ++i) {
    lengths.push_back(local.document_begins[i + 1] - local.document_begins[i]);
  }
  batch.main = make_stream(lengths, {local.positions.begin(), local.positions.end()}, local.global_tokens, model,
                           slice_tokens, device, compute);
  const std::vector<int64_t> places = gathered_places(batch.main.slices);
  batch.main.place = on_device(places, device);
  batch.input_U = on_device(placed(batch.main, places, {local.tokens.begin(), local.tokens.end()}, -1), device);
  set_targets(batch.main, places, {local.targets.begin(), local.targets.end()}, local.target_weights,
              local.global.divisor(), device);
  if (!model.mtp) return batch;

  std::vector<int64_t> rows, next_tokens, positions, tokens, targets, mtp_lengths;
  std::vector<float> weights;
  int64_t begin = 0;
  for (int64_t length : lengths) {
    for (int64_t row = begin; row + 1 < begin + length; ++row) {
      rows.push_back(places[row]);
      next_tokens.push_back(local.tokens[row + 1]);
      positions.push_back(local.positions[row]);
      tokens.push_back(local.global_tokens[row]);
      // The target of the next row is the token after the next; the last row of a document has none.
      targets.push_back(local.targets[row + 1]);
      if (!local.target_weights.empty()) weights.push_back(local.target_weights[row + 1]);
    }
    if (length > 1) mtp_lengths.push_back(length - 1);
    begin += length;
  }
  batch.mtp = make_stream(mtp_lengths, positions, tokens, model, slice_tokens, device, compute);
  const std::vector<int64_t> mtp_places = gathered_places(batch.mtp.slices);
  batch.mtp.place = on_device(mtp_places, device);
  set_targets(batch.mtp, mtp_places, targets, weights, local.global.mtp_divisor(), device);
  const int64_t own_rows = batch.mtp.token_T.size(0);
  batch.mtp_row =
      on_device(placed(batch.mtp, mtp_places, rows, 0), device).narrow(0, model.axis.index() * own_rows, own_rows);
  batch.mtp_next_token = on_device(placed(batch.mtp, mtp_places, next_tokens, -1), device);
  return batch;
}

}  // namespace moetune
