// Rows out to the ranks that hold their experts, and rows back: a linear map and its transpose.
//
//   // collective; once a layer, on the way down
//   std::vector<ExchangeRound> rounds = exchange.plan(expert_TK, num_experts);
//   for (const ExchangeRound& round : rounds) {
//     // each token goes to a rank once, whatever it wants there
//     RowsUnderway underway = exchange.send(round, {x_TC, weight_TK});
//     ...                                  // work that does not need what others send
//     std::vector<at::Tensor> received = exchange.receive(std::move(underway));  // [Y, C], [Y, K]
//     exchange.back(round, y_YC, sum_TC);  // sum_TC[token] += every row that came back for it
//   }
//
// `send` with `receive`, and `back`, are each other's transpose, so gradients travel by the same calls. They are plain
// functions, called between autograd segments: no collective hides in a graph that ranks could prune differently.
#pragma once

#include <torch/types.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "parallel/device/side_stream.h"

namespace moetune {

class Communicator;

/// What one round of an exchange sends where; kept from the way down and replayed on the way up without exchanging
/// counts.
struct ExchangeRound {
  /// int32: local token of each row sent, ordered by destination rank, then token
  at::Tensor sent_token_S;
  std::vector<int64_t> send_counts;     ///< rows to each rank
  std::vector<int64_t> recv_counts;     ///< rows from each rank
  int64_t num_received = 0;             ///< Y, rows this rank holds after receive()
  std::vector<int64_t> rows_of_expert;  ///< of each local expert: how many of the received rows chose it
};

/// Rows on their way.
struct RowsUnderway {
  std::vector<at::Tensor> sent;  ///< what is read until `arrived`
  std::vector<at::Tensor> received;
  StreamPoint arrived;
};

class TokenExchange {
 public:
  virtual ~TokenExchange() = default;
  /// Ranks of the group; experts are spread over them in equal runs.
  virtual int64_t num_ranks() const = 0;
  /// Rounds of the exchange in which each local token goes to the ranks of its experts: expert_TK [T, K] int64,
  /// `num_experts` for a choice that goes nowhere. All ranks of the group get the same number of rounds. Rounds keep
  /// the rows received at a time within the buffer: one round when every rank's rows fit, else as many as bound them
  /// for any routing. Collective over the group. Counts are made and exchanged on the device; the host waits once for
  /// those of a round.
  virtual std::vector<ExchangeRound> plan(const at::Tensor& expert_TK, int64_t num_experts) = 0;
  /// Matrices of rows [T, C] of any dtypes begin to travel, beside whatever is given to the current stream from here
  /// on. Collective.
  virtual RowsUnderway send(const ExchangeRound& round, std::vector<at::Tensor> rows_TC) = 0;
  /// The rows received [Y, C], ordered by source rank, then its token: what the current stream does from here on finds
  /// them there.
  virtual std::vector<at::Tensor> receive(RowsUnderway underway) = 0;
  /// Adds to sum_TC each row of rows_YC at the token it came from. Collective.
  virtual void back(const ExchangeRound& round, const at::Tensor& rows_YC, at::Tensor& sum_TC) = 0;
  /// Seconds that the device's current stream stood for exchanges since the last call, waiting for other ranks
  /// included.
  virtual double take_s() = 0;
};

/// One rank holds all experts: rows stay where they are.
std::unique_ptr<TokenExchange> make_local_exchange();
/// Experts over the ranks of `group`. `buffer_rows`: rows a rank receives at a time at most; 0: one round always.
std::unique_ptr<TokenExchange> make_token_exchange(Communicator& group, int64_t buffer_rows);

}  // namespace moetune
