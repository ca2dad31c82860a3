// Which documents each optimizer step takes, and which of them this rank takes: a function of (seed, step) alone.
//
//   Batches batches(documents, {.seed = 17, .batch = 64, .max_tokens = 4096});
//   const int64_t num_steps = batches.steps_of_epochs(1);
//   const RankBatch mine = batches.local(step, data_rank, num_data_ranks);
//   loss = loss_sum_over_mesh / mine.global.targets;
//
// An epoch takes documents as often as their weight says, orders them (shuffled_order, or as they lie), and packs them
// into sequences: whole documents, at most max_tokens tokens. Epoch follows epoch in one stream of sequences, and step
// s takes those numbered s * batch .. (s + 1) * batch - 1: every step has `batch` sequences, and a step may reach from
// one epoch into the next. Where the stream ends after some epochs, its last step is what is left.
//
// Of n documents with weight w, w = k + f with 0 <= f < 1, an epoch takes each k times, and of them f * n more, drawn
// anew in each epoch. Where f * n is not whole, epochs differ by one so that the sum over epochs is as near as can be.
//
// Packing is best fit over the newest open sequences (64 of them when shuffled, one when the order of the file must
// stay). Nothing is padded: a sequence shorter than max_tokens costs only what it holds.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "trainer/data/documents.h"

namespace moetune {

struct BatchOptions {
  std::uint64_t seed = 0;
  std::int64_t batch = 1;       ///< sequences per step over the whole mesh, at least 1
  std::int64_t max_tokens = 1;  ///< of one sequence; no document may be longer (Documents::truncate)
  bool packing = true;          ///< false: one document is one sequence
  bool shuffle = true;          ///< false: the documents' own order in every epoch
  std::int64_t epochs = 0;      ///< the stream ends after so many, its last step may be smaller; 0: it does not end
};

/// What the global batch of a step holds; the divisors of its losses.
struct BatchTotals {
  std::int64_t sequences = 0, documents = 0, tokens = 0;
  std::int64_t targets = 0;      ///< positions t with labels[t + 1] to be learnt
  std::int64_t mtp_targets = 0;  ///< positions t with labels[t + 2] to be learnt
  /// Sums of the weights of both; empty where each target counts 1.
  std::optional<double> target_weight = {}, mtp_target_weight = {};

  /// What the sum of the losses is divided by.
  double divisor() const { return target_weight.value_or(static_cast<double>(targets)); }
  double mtp_divisor() const { return mtp_target_weight.value_or(static_cast<double>(mtp_targets)); }
};

/// The global batch of a step: for each sequence the indices of its documents, in the order in which they lie in it.
struct Batch {
  std::vector<std::vector<std::int64_t>> sequences;
  BatchTotals totals;
};

/// What one rank takes of a step, flattened: its sequences in the order of the global batch, their documents one after
/// the other. All may be empty: a rank can get no sequence.
struct RankBatch {
  std::vector<std::int32_t> tokens;  ///< [T]
  /// [T] already shifted: labels[t + 1]; kNotTrained at the end of a document
  std::vector<std::int32_t> targets;
  std::vector<float> target_weights;          ///< [T] shifted likewise; empty where each target counts 1
  std::vector<std::int32_t> positions;        ///< [T] from 0 in every document
  std::vector<std::int64_t> global_tokens;    ///< [T] index in the global batch of the step, the same on every mesh
  std::vector<std::int64_t> documents;        ///< which each is of the data's
  std::vector<std::int64_t> document_begins;  ///< [documents + 1] in tokens of this rank; the last is T
  std::vector<std::int64_t> sequence_begins;  ///< [sequences + 1] likewise
  BatchTotals global;                         ///< of the step over all ranks
};

/// Not for several threads at once: plans of epochs are made when they are first needed.
class Batches {
 public:
  /// `documents` must outlive this object and stay as it is.
  Batches(const Documents& documents, const BatchOptions& options);

  /// Steps that take all sequences of the first `epochs` epochs: rounded up. In a stream that goes on the last of them
  /// may reach into another epoch.
  std::int64_t steps_of_epochs(std::int64_t epochs);
  /// Sequences of the first `epochs` epochs.
  std::int64_t sequences_of_epochs(std::int64_t epochs);
  /// Sequences that an epoch packs into.
  std::int64_t sequences_of_epoch(std::int64_t index) { return static_cast<std::int64_t>(epoch(index).tokens.size()); }

  /// The global batch of a step, from 0. Past the end of a stream that ends it is empty.
  Batch at(std::int64_t step);

  /// The part of rank `data_rank` of `num_data_ranks`. Sequences go, longest first, to the rank with the fewest tokens
  /// so far; of equals the lower index. The parts of all ranks make up the global batch.
  RankBatch local(std::int64_t step, std::int64_t data_rank, std::int64_t num_data_ranks);

  struct Peak {
    std::int64_t step = 0;
    std::int64_t tokens = 0;        ///< of the fullest rank in that step
    std::int64_t group_tokens = 0;  ///< of the fullest group of a rank in any step
  };
  /// The first step of 0 .. num_steps-1 in which the fullest rank has more tokens than in any other, and the tokens of
  /// the fullest of `groups` (group_ends) that a rank's part of a step is cut into. Walks the plans of all these steps:
  /// about 10 us for a step of 64 sequences, and the packing of each epoch.
  Peak fullest_step(std::int64_t num_steps, std::int64_t num_data_ranks, std::int64_t groups = 1);

 private:
  /// The sequences of an epoch: sequence i holds documents[begins[i] .. begins[i + 1]].
  struct Epoch {
    std::int64_t index = -1;
    std::vector<std::uint32_t> documents, begins;
    std::vector<std::int32_t> tokens;
  };
  /// One sequence of the stream; valid until an epoch other than its own and its neighbours is asked for.
  struct Sequence {
    std::span<const std::uint32_t> documents;
    std::int64_t tokens = 0;
  };

  const Epoch& epoch(std::int64_t index);
  /// The documents that an epoch takes, in their own order.
  std::vector<std::int64_t> documents_of(std::int64_t epoch) const;
  Epoch plan(std::int64_t index) const;
  /// Calls visit(sequence) for each sequence of a step, in order.
  template <typename Visit>
  void for_each_sequence(std::int64_t step, const Visit& visit);

  const Documents& documents_;
  BatchOptions options_;
  std::vector<Share> shares_;
  std::vector<std::int64_t> first_sequences_ = {0};  // of each epoch planned so far, and of the one after
  std::array<Epoch, 2> recent_;                      // the plan of epoch e, if it is held, at e % 2
};

/// The sequence of each document when documents of these lengths, in this order, are packed by best fit: each goes to
/// the open sequence with the least room that is enough, of equals the oldest, or begins a new one. A sequence is open
/// while it is among the newest `num_open`. O(documents * log num_open).
std::vector<std::int64_t> pack(std::span<const std::int64_t> lengths, std::int64_t max_tokens, std::int64_t num_open);

/// Cuts documents that begin and end at `begins` [documents + 1] into `count` runs, some of which may be empty: the end
/// of each, in documents. The longest run has the fewest tokens that any cut gives it, so at most the even share and a
/// document; within that they are as even as the middles of documents allow.
std::vector<std::int64_t> group_ends(std::span<const std::int64_t> begins, std::int64_t count);

/// The rank of each sequence when sequences of these lengths are dealt out as Batches::local says.
std::vector<std::int64_t> deal_out(std::span<const std::int64_t> sequence_tokens, std::int64_t num_ranks);

}  // namespace moetune
