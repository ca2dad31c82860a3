// Digests of bytes that a rank holds: any changed byte changes them, parts of a tensor add up to the whole, and nobody
// waits for the device.
//
//   DigestSum sum(device);
//   sum.add(stream_key(0, name), words, places);      // + sum of (odd hash of name and place) * word, modulo 2^64
//   sum.value();                                      // int64, still on the device
//
// They find accidents (a stray write, a stale copy, a wrong shard); SHA-256 in manifests is against tampering.
#pragma once

#include <torch/types.h>

#include <cstdint>
#include <string>
#include <vector>

#include "lora/adapters/parameter.h"

namespace moetune {

class DigestSum {
 public:
  explicit DigestSum(at::Device device);
  /// words: any integer type; place: int64 of the same shape, used up. At most words_at_a_time() of them.
  void add(uint64_t key, const at::Tensor& words, at::Tensor place);
  /// int64 scalar on the device.
  const at::Tensor& value() const { return sum_; }
  /// Temporaries are some five times as many numbers of 8 bytes: few MiB of a host's memory, and enough work for each
  /// launch on a GPU.
  static int64_t words_at_a_time(at::Device device) { return int64_t{1} << (device.is_cuda() ? 22 : 18); }

 private:
  at::Tensor sum_;
};

/// Digest of one tensor's bytes as if they began at byte `first_byte` of the tensor called `name`: int64 scalar on its
/// device. The digests of a tensor's parts add up to its own.
at::Tensor tensor_digest(const std::string& name, const at::Tensor& tensor, int64_t first_byte);

/// The digest of some bytes that this rank holds, and who else holds them.
struct HeldDigest {
  std::string name;                           ///< of the tensor
  std::string place;                          ///< which part of it: ranks that say the same hold copies
  Replicas replicas = Replicas::kEverywhere;  ///< the group within which there are copies
  bool all_of_group = true;                   ///< on each of its ranks; false: on those that keep the same range
  bool counts = true;                         ///< in a sum over all ranks, where of equal copies one counts
  at::Tensor digest;                          ///< int64 scalar on the device
  bool on_first_and_last_stage = false;       ///< both stages of a pipeline hold it alike
};

/// The digests of all, int64 [n] on the device.
at::Tensor stacked(const std::vector<HeldDigest>& held);

}  // namespace moetune
