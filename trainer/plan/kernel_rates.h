// The rates of a machine at the shapes of a model: figures of `moetune bench` between the shapes that were measured.
// A host's cores and memory are shared by its ranks: each has as much less of them as there are more ranks than have
// measured a figure at once.
//
//   const KernelRates rates(machine, network, mesh, Confidence::kExpected);
//   rates.grouped(/*rows=*/300, /*outputs=*/4096, /*inputs=*/7168);      // FLOP/s
//   rates.seconds_to_send(bytes, rates.expert_axis());
#pragma once

#include <array>
#include <cstdint>

#include "moe/blueprint.h"
#include "parallel/comm/mesh.h"
#include "trainer/plan/machine_profile.h"

namespace moetune {

/// How a plan looks at its figures: the fastest of their repeats, their medians, the slowest, each less sure where the
/// machine that is planned for was not measured itself.
enum class Outlook { kLow, kExpected, kHigh };

/// Ranks that talk: how many, how many of them are on one host.
struct RankAxis {
  int64_t ranks = 1, on_host = 1;
};

class KernelRates {
 public:
  KernelRates(const MachineProfile& machine, const NetworkProfile& network, const MeshShape& mesh, Outlook outlook);

  /// FLOP/s of x W^T with all rows of a slice.
  double dense(int64_t outputs, int64_t inputs) const;
  /// FLOP/s of the same by experts of `rows` rows each.
  double grouped(double rows, int64_t outputs, int64_t inputs) const;
  /// FLOP/s over the pairs that queries see in documents of `length` tokens.
  double attention_forward(const AttentionSpec& spec, double length) const;
  double attention_backward(const AttentionSpec& spec, double length) const;
  double memory() const { return rate("device_copy"); }            ///< B/s, read and written
  double dequantise() const { return rate("nf4.dequantise"); }     ///< numbers/s
  double from_device() const { return rate("copy_from_device"); }  ///< B/s; of GPUs
  double to_device() const;                                        ///< B/s
  double adamw() const { return rate("optimizer.adamw"); }         ///< numbers/s
  double small_blocks() const { return rate("small_blocks"); }     ///< that a host walks down and up in a second
  bool starts_beside() const { return machine_.on_gpu(); }         ///< operators run while the host starts the next

  const RankAxis& tensor_axis() const { return tensor_; }
  const RankAxis& expert_axis() const { return expert_; }
  const RankAxis& data_axis() const { return data_; }
  /// Ranks that hold a layer's dense maps, or its experts, alike: what shards are gathered among.
  RankAxis replicas(int64_t ranks, int64_t stride) const;
  /// A rank sends so many bytes in all to the others of an axis, each the same, in so many collectives.
  double seconds_to_send(double bytes, const RankAxis& axis, double calls = 1.0) const;
  /// The same of rows on their way to experts, or of their sums home.
  double seconds_to_exchange(double bytes, double calls = 1.0) const;

 private:
  double rate(const std::string& figure) const;
  /// A rate of as many ranks on a host as measured it, as one of this mesh has it.
  double shared(const std::string& figure, double rate, int64_t at_once) const;
  double attention(const AttentionSpec& spec, const char* way, double length) const;
  double across_hosts() const;
  /// Of so many bytes on links of GPUs and on the network, at once.
  double seconds_on_links(double bytes, const RankAxis& axis, double inside_rate) const;
  /// By the way of sending that is sooner there; `ring`: through all ranks of the axis, else to each at once.
  double seconds_of_calls(double calls, double bytes_s, const RankAxis& axis, bool ring) const;

  const MachineProfile& machine_;
  NetworkProfile network_;
  Outlook outlook_;
  double doubt_ = 0.0;   ///< share that a rate may be off beside the spread of its repeats
  int64_t on_host_ = 1;  ///< ranks of the mesh on one host
  RankAxis tensor_, expert_, data_;
};

}  // namespace moetune
