#include "trainer/data/step_batch.h"

#include "trainer/data/documents.h"

namespace moetune {
namespace {

at::Tensor on_device(const std::vector<int64_t>& values, at::Device device) { return at::tensor(values, at::kLong).to(device); }

void set_targets(Stream& stream, const std::vector<int64_t>& target_of_row, at::Device device) {
  std::vector<int64_t> rows, targets;
  for (size_t row = 0; row < target_of_row.size(); ++row) {
    if (target_of_row[row] == kNotTrained) continue;
    rows.push_back(static_cast<int64_t>(row));
    targets.push_back(target_of_row[row]);
  }
  stream.target_row = on_device(rows, device);
  stream.target = on_device(targets, device);
}

Stream make_stream(const std::vector<int64_t>& lengths, const std::vector<int64_t>& positions, const std::vector<int64_t>& tokens,
                   const Model& model, int64_t slice_tokens, at::Device device, at::ScalarType compute) {
  Stream stream;
  stream.slices = make_slices(lengths, positions, tokens, slice_tokens, device);
  for (const Slice& slice : stream.slices) stream.angles.push_back(model.rope.angles(slice.position_T, compute));
  stream.token_T = on_device(tokens, device);
  stream.num_rows = static_cast<int64_t>(tokens.size());
  return stream;
}

}  // namespace

StepBatch make_step_batch(const RankBatch& local, const Model& model, int64_t slice_tokens, at::Device device, at::ScalarType compute) {
  StepBatch batch;
  batch.global = local.global;
  batch.input_T = on_device({local.tokens.begin(), local.tokens.end()}, device);
  std::vector<int64_t> lengths;
  for (size_t i = 0; i + 1 < local.document_begins.size(); ++i) lengths.push_back(local.document_begins[i + 1] - local.document_begins[i]);
  batch.main = make_stream(lengths, {local.positions.begin(), local.positions.end()}, local.global_tokens, model, slice_tokens, device, compute);
  set_targets(batch.main, {local.targets.begin(), local.targets.end()}, device);
  batch.main.global_targets = local.global.targets;
  if (!model.mtp) return batch;

  std::vector<int64_t> rows, next_tokens, positions, tokens, targets, mtp_lengths;
  int64_t begin = 0;
  for (int64_t length : lengths) {
    for (int64_t row = begin; row + 1 < begin + length; ++row) {
      rows.push_back(row);
      next_tokens.push_back(local.tokens[row + 1]);
      positions.push_back(local.positions[row]);
      tokens.push_back(local.global_tokens[row]);
      // The target of the next row is the token after the next; the last row of a document has none.
      targets.push_back(local.targets[row + 1]);
    }
    if (length > 1) mtp_lengths.push_back(length - 1);
    begin += length;
  }
  batch.mtp = make_stream(mtp_lengths, positions, tokens, model, slice_tokens, device, compute);
  set_targets(batch.mtp, targets, device);
  batch.mtp.global_targets = local.global.mtp_targets;
  batch.mtp_row = on_device(rows, device);
  batch.mtp_next_token = on_device(next_tokens, device);
  return batch;
}

}  // namespace moetune
