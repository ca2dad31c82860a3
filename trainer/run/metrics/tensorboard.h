// TensorBoard event files: scalars over steps, written without protobuf. W&B reads the same files.
//
//   TensorBoard board(run_dir + "/tensorboard", std::nullopt);   // or the step that the run resumes from
//   board.write(step, {{"train/loss", loss}, {"train/lr", lr}});
//
// A file is a row of records: u64 length, u32 masked CRC-32C of those 8 bytes, the data, u32 masked CRC-32C of the
// data, all little-endian, where mask(c) = rotate_right(c, 15) + 0xa282ead8. The data of a record is an Event of
// TensorBoard's event.proto; the first one says file_version "brain.Event:2".
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "trainer/run/metrics/append_file.h"

namespace moetune {

class TensorBoard {
 public:
  /// Creates `folder` if needed and in it a new file events.out.tfevents.SECONDS.HOST.N. On a resume the file begins
  /// with SessionLog START at resumed_step + 1: readers then drop the points from that step on which earlier files
  /// hold. Throws UserError when the file cannot be made.
  TensorBoard(const std::string& folder, std::optional<std::int64_t> resumed_step);

  /// One point of each scalar, as (tag, value). Flushed. Throws UserError when it cannot be written.
  void write(std::int64_t step, const std::vector<std::pair<std::string, float>>& scalars);

  const std::string& path() const { return file_.path(); }

 private:
  AppendFile file_;
};

/// The bytes of one record around `data`.
std::string tensorboard_record(std::string_view data);

}  // namespace moetune
