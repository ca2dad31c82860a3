#include "parallel/comm/token_exchange.h"

#include <algorithm>
#include <numeric>

#include "parallel/base/error.h"
#include "parallel/comm/communicator.h"
#include "parallel/device/stream_timer.h"
#include "parallel/device/tally.h"

namespace moetune {
namespace {

std::vector<int64_t> on_host(const at::Tensor& counts) {
  const at::Tensor host = counts.cpu().contiguous();
  return {host.data_ptr<int64_t>(), host.data_ptr<int64_t>() + host.numel()};
}

class LocalExchange final : public TokenExchange {
 public:
  int64_t num_ranks() const override { return 1; }
  std::vector<ExchangeRound> plan(const at::Tensor& expert_TK, int64_t num_experts) override {
    ExchangeRound round;
    round.num_received = expert_TK.size(0);
    round.rows_of_expert = on_host(tally(expert_TK, num_experts));
    return {round};
  }
  RowsUnderway send(const ExchangeRound&, std::vector<at::Tensor> rows_TC) override {
    return {{}, std::move(rows_TC), {}};
  }
  std::vector<at::Tensor> receive(RowsUnderway underway) override { return std::move(underway.received); }
  void back(const ExchangeRound&, const at::Tensor& rows_YC, at::Tensor& sum_TC) override { sum_TC.add_(rows_YC); }
  double take_s() override { return 0.0; }
};

class GroupExchange final : public TokenExchange {
 public:
  GroupExchange(Communicator& group, int64_t buffer_rows)
      : group_(group), buffer_rows_(buffer_rows), side_(group.device()), timer_(group.device()) {}
  int64_t num_ranks() const override { return group_.size(); }

  std::vector<ExchangeRound> plan(const at::Tensor& expert_TK, int64_t num_experts) override {
    at::NoGradGuard no_grad;
    const StreamTimer::Piece piece(timer_);
    const int64_t num_tokens = expert_TK.size(0);
    ExchangeRound whole = plan_round(expert_TK, num_experts, 0, num_tokens);
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
      rounds.push_back(plan_round(expert_TK, num_experts, begin, std::min(begin + tokens_a_round, num_tokens)));
    }
    return rounds;
  }

  RowsUnderway send(const ExchangeRound& round, std::vector<at::Tensor> rows_TC) override {
    at::NoGradGuard no_grad;
    const StreamTimer::Piece piece(timer_);  // on a CPU the exchange itself
    RowsUnderway underway;
    underway.sent = std::move(rows_TC);
    underway.arrived = side_.run(StreamPoint::of_current(group_.device()), [&] {
      for (const at::Tensor& rows : underway.sent) {
        at::Tensor sent_SC = rows.index_select(0, round.sent_token_S);
        underway.received.push_back(at::empty({round.num_received, rows.size(1)}, rows.options().requires_grad(false)));
        group_.all_to_all_v(underway.received.back(), sent_SC, round.recv_counts, round.send_counts);
      }
    });
    return underway;
  }

  std::vector<at::Tensor> receive(RowsUnderway underway) override {
    const StreamTimer::Piece piece(timer_);
    // Memory of either stream is taken again only behind this point: what was sent by the current one, and what was
    // received by the side stream, whose next work waits for the current one.
    underway.arrived.hold_current();
    return std::move(underway.received);
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
  ExchangeRound plan_round(const at::Tensor& expert_TK, int64_t num_experts, int64_t begin, int64_t end) {
    const int64_t ranks = group_.size(), local_experts = num_experts / ranks;
    const at::Tensor expert_KT = expert_TK.narrow(0, begin, end - begin).t();
    // A row for each rank, and one for what goes nowhere.
    const at::Tensor wanted_PT = at::zeros({ranks + 1, end - begin}, expert_KT.options().dtype(at::kBool))
                                     .scatter_(0, expert_KT.floor_divide(local_experts), true)
                                     .narrow(0, 0, ranks);
    // To each rank: how many rows it gets from here, and how many of them chose each of its experts. One wait for all
    // counts.
    const at::Tensor told_PC =
        at::cat({wanted_PT.sum(1, /*keepdim=*/true), tally(expert_KT, num_experts).view({ranks, local_experts})}, 1);
    const at::Tensor heard_PC = at::empty_like(told_PC);
    const std::vector<int64_t> one_each(ranks, 1);
    group_.all_to_all_v(heard_PC, told_PC, one_each, one_each);
    const std::vector<int64_t> counts =
        on_host(at::cat({told_PC.select(1, 0), heard_PC.select(1, 0), heard_PC.narrow(1, 1, local_experts).sum(0)}));

    ExchangeRound round;
    round.send_counts.assign(counts.begin(), counts.begin() + ranks);
    round.recv_counts.assign(counts.begin() + ranks, counts.begin() + 2 * ranks);
    round.rows_of_expert.assign(counts.begin() + 2 * ranks, counts.end());
    round.num_received = std::accumulate(round.recv_counts.begin(), round.recv_counts.end(), int64_t{0});
    const int64_t num_sent = std::accumulate(round.send_counts.begin(), round.send_counts.end(), int64_t{0});
    round.sent_token_S = at::nonzero_static(wanted_PT, num_sent).select(1, 1).add(begin).to(at::kInt);
    return round;
  }

  Communicator& group_;
  int64_t buffer_rows_;
  SideStream side_;
  StreamTimer timer_;
};

}  // namespace

std::unique_ptr<TokenExchange> make_local_exchange() { return std::make_unique<LocalExchange>(); }

std::unique_ptr<TokenExchange> make_token_exchange(Communicator& group, int64_t buffer_rows) {
  MT_CHECK(buffer_rows >= 0, "buffer of ", buffer_rows, " rows");
  return std::make_unique<GroupExchange>(group, buffer_rows);
}

}  // namespace moetune
