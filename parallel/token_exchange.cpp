#include "parallel/token_exchange.h"

#include <algorithm>
#include <numeric>

#include "parallel/base/error.h"
#include "parallel/communicator.h"
#include "parallel/stream_timer.h"

namespace moetune {
namespace {

class LocalExchange final : public TokenExchange {
 public:
  int64_t num_ranks() const override { return 1; }
  std::vector<ExchangeRound> plan(const at::Tensor& wanted_TP) override {
    ExchangeRound round;
    round.num_received = wanted_TP.size(0);
    return {round};
  }
  at::Tensor out(const ExchangeRound&, const at::Tensor& rows_TC) override { return rows_TC; }
  void back(const ExchangeRound&, const at::Tensor& rows_YC, at::Tensor& sum_TC) override { sum_TC.add_(rows_YC); }
  double take_s() override { return 0.0; }
};

class GroupExchange final : public TokenExchange {
 public:
  GroupExchange(Communicator& group, int64_t buffer_rows) : group_(group), buffer_rows_(buffer_rows), timer_(group.device()) {}
  int64_t num_ranks() const override { return group_.size(); }

  std::vector<ExchangeRound> plan(const at::Tensor& wanted_TP) override {
    at::NoGradGuard no_grad;
    const StreamTimer::Piece piece(timer_);
    const int64_t num_tokens = wanted_TP.size(0);
    ExchangeRound whole = plan_round(wanted_TP, 0, num_tokens);
    if (buffer_rows_ == 0) return {whole};
    at::Tensor most = at::tensor({whole.num_received, num_tokens}, at::kLong).to(group_.device());
    group_.all_reduce_max(most);
    most = most.cpu();
    if (most[0].item<int64_t>() <= buffer_rows_) return {whole};
    // A rank receives at most one row a token of each rank: this many tokens a rank fit whatever the routing.
    const int64_t tokens_a_round = std::max<int64_t>(1, buffer_rows_ / group_.size());
    std::vector<ExchangeRound> rounds;
    for (int64_t first = 0; first < most[1].item<int64_t>(); first += tokens_a_round) {
      const int64_t begin = std::min(first, num_tokens);
      rounds.push_back(plan_round(wanted_TP, begin, std::min(begin + tokens_a_round, num_tokens)));
    }
    return rounds;
  }

  at::Tensor out(const ExchangeRound& round, const at::Tensor& rows_TC) override {
    at::NoGradGuard no_grad;
    const StreamTimer::Piece piece(timer_);
    at::Tensor sent_SC = rows_TC.index_select(0, round.sent_token_S);
    at::Tensor received_YC = at::empty({round.num_received, rows_TC.size(1)}, rows_TC.options().requires_grad(false));
    group_.all_to_all_v(received_YC, sent_SC, round.recv_counts, round.send_counts);
    return received_YC;
  }

  void back(const ExchangeRound& round, const at::Tensor& rows_YC, at::Tensor& sum_TC) override {
    at::NoGradGuard no_grad;
    const StreamTimer::Piece piece(timer_);
    at::Tensor returned_SC = at::empty({round.sent_token_S.size(0), rows_YC.size(1)}, rows_YC.options());
    group_.all_to_all_v(returned_SC, rows_YC.contiguous(), round.send_counts, round.recv_counts);
    sum_TC.index_add_(0, round.sent_token_S, returned_SC);
  }

  double take_s() override { return timer_.take_s(); }

 private:
  /// The round of local tokens begin .. end - 1.
  ExchangeRound plan_round(const at::Tensor& wanted_TP, int64_t begin, int64_t end) {
    ExchangeRound round;
    at::Tensor wanted_PT = wanted_TP.narrow(0, begin, end - begin).t();
    at::Tensor counts = wanted_PT.sum(1).cpu();
    round.send_counts.assign(counts.data_ptr<int64_t>(), counts.data_ptr<int64_t>() + counts.numel());
    round.sent_token_S = wanted_PT.nonzero().select(1, 1).add(begin).to(at::kInt);
    round.recv_counts = group_.all_to_all_counts(round.send_counts);
    round.num_received = std::accumulate(round.recv_counts.begin(), round.recv_counts.end(), int64_t{0});
    return round;
  }

  Communicator& group_;
  int64_t buffer_rows_;
  StreamTimer timer_;
};

}  // namespace

std::unique_ptr<TokenExchange> make_local_exchange() { return std::make_unique<LocalExchange>(); }

std::unique_ptr<TokenExchange> make_token_exchange(Communicator& group, int64_t buffer_rows) {
  MT_CHECK(buffer_rows >= 0, "buffer of ", buffer_rows, " rows");
  return std::make_unique<GroupExchange>(group, buffer_rows);
}

}  // namespace moetune
