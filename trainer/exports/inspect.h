// What lies at a path, in words: a model folder, an adapter, a data file, a token cache, a run folder, a checkpoint or
// packed weights.
//
//   std::cout << inspect("/models/DeepSeek-V3");
//   std::cout << inspect("runs/v3-attention", /*digests=*/true);
#pragma once

#include <filesystem>
#include <string>

namespace moetune {

/// A description of several lines. SHA-256 of files is part of it where a file has less than a gigabyte, or of all with
/// `digests`. Files of a checkpoint are checked against its manifest. UserError for a path that is nothing of the
/// above.
std::string inspect(const std::filesystem::path& path, bool digests = false);

}  // namespace moetune
