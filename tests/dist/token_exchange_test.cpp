// The exchange of rows between ranks: closed forms in numbers that sums represent exactly, uneven and empty loads,
// rounds.
#include "parallel/comm/token_exchange.h"

#include "parallel/comm/communicator.h"

#include "tests/support/catch.h"
#include "tests/support/dist.h"

using namespace moetune;

namespace {

/// Token t of rank r, as a number that no other token has.
double token_value(int64_t rank, int64_t token) { return static_cast<double>(1000 * rank + token); }

/// Which ranks token t of rank r wants: a pattern with tokens that want all ranks, one, and none.
bool wants(int64_t rank, int64_t token, int64_t destination, int64_t num_ranks) {
  switch (token % 4) {
    case 0: return true;
    case 1: return destination == (rank + token) % num_ranks;
    case 2: return false;
    default: return destination != rank;
  }
}

constexpr int64_t kLocalExperts = 3;

/// Which experts of a rank the token chooses: one or two of the first two where it wants the rank, never the last.
std::vector<int64_t> experts_at(int64_t rank, int64_t token, int64_t destination, int64_t num_ranks) {
  if (!wants(rank, token, destination, num_ranks)) return {};
  return token % 3 == 0 ? std::vector<int64_t>{1, 0} : std::vector<int64_t>{token % 2};
}

/// Rank r holds 3 r tokens: rank 0 none at all.
int64_t num_tokens(int64_t rank) { return 3 * rank; }

void check_exchange(int64_t buffer_rows) {
  Launch& launch = test_launch();
  auto group = launch.make_group(0, launch.rank(), "exchange");
  auto exchange = make_token_exchange(*group, buffer_rows);
  const int64_t ranks = group->size(), me = group->rank(), tokens = num_tokens(me), num_experts = kLocalExperts * ranks;
  at::Tensor expert = at::full({tokens, 2 * ranks}, num_experts, at::kLong);
  at::Tensor rows = at::zeros({tokens, 2}, at::kDouble);
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t p = 0; p < ranks; ++p) {
      const std::vector<int64_t> chosen = experts_at(me, t, p, ranks);
      for (size_t i = 0; i < chosen.size(); ++i) {
        expert[t][2 * p + static_cast<int64_t>(i)] = kLocalExperts * p + chosen[i];
      }
    }
    rows[t][0] = token_value(me, t);
    rows[t][1] = -token_value(me, t);
  }
  expert = expert.to(launch.device());
  rows = rows.to(launch.device());
  const auto rounds = exchange->plan(expert, num_experts);
  if (buffer_rows == 0) CHECK(rounds.size() == 1);

  // What this rank must receive over all rounds, ordered by source and token within a round.
  std::vector<double> expected, received;
  std::vector<int64_t> expected_loads(kLocalExperts), loads(kLocalExperts);
  for (int64_t source = 0; source < ranks; ++source) {
    for (int64_t t = 0; t < num_tokens(source); ++t) {
      if (wants(source, t, me, ranks)) expected.push_back(token_value(source, t));
      for (const int64_t e : experts_at(source, t, me, ranks)) ++expected_loads[e];
    }
  }
  at::Tensor sum = at::zeros_like(rows);
  for (const ExchangeRound& round : rounds) {
    const std::vector<at::Tensor> arrived =
        exchange->receive(exchange->send(round, {rows, rows.narrow(1, 0, 1).to(at::kInt)}));
    REQUIRE(arrived.size() == 2);
    const at::Tensor got = arrived[0];
    CHECK(got.size(0) == round.num_received);
    CHECK(at::equal(got.narrow(1, 0, 1).to(at::kInt), arrived[1]));
    for (int64_t e = 0; e < kLocalExperts; ++e) loads[e] += round.rows_of_expert.at(e);
    if (buffer_rows > 0) CHECK(got.size(0) <= std::max(buffer_rows, ranks));
    at::Tensor host = got.cpu();
    for (int64_t i = 0; i < host.size(0); ++i) {
      received.push_back(host[i][0].item<double>());
      CHECK(host[i][1].item<double>() == -host[i][0].item<double>());
    }
    exchange->back(round, got * 2, sum);
  }
  if (rounds.size() > 1) std::sort(received.begin(), received.end());
  CHECK(received == expected);
  CHECK(loads == expected_loads);
  // The transpose: each token gets back twice itself from every rank it went to.
  at::Tensor host_sum = sum.cpu();
  for (int64_t t = 0; t < tokens; ++t) {
    int64_t copies = 0;
    for (int64_t p = 0; p < ranks; ++p) copies += wants(me, t, p, ranks);
    CHECK(host_sum[t][0].item<double>() == 2.0 * static_cast<double>(copies) * token_value(me, t));
  }
}

}  // namespace

TEST_CASE("Each token goes once to each rank it wants and comes home as a sum") { check_exchange(0); }

TEST_CASE("A small buffer is kept to by rounds that all ranks agree on") {
  check_exchange(1);
  check_exchange(5);
  check_exchange(1000000);
}

TEST_CASE("An exchange in which nobody wants anything") {
  Launch& launch = test_launch();
  auto group = launch.make_group(0, launch.rank(), "exchange");
  auto exchange = make_token_exchange(*group, 0);
  const auto options = at::TensorOptions().device(launch.device());
  const auto rounds = exchange->plan(at::full({5, 2}, group->size(), options.dtype(at::kLong)), group->size());
  REQUIRE(rounds.size() == 1);
  CHECK(rounds[0].rows_of_expert == std::vector<int64_t>{0});
  CHECK(exchange->receive(exchange->send(rounds[0], {at::ones({5, 3}, options)})).at(0).size(0) == 0);
}

TEST_CASE(
    "The sent rows are counted: each routed token once a destination, whatever number of its experts live there") {
  Launch& launch = test_launch();
  auto group = launch.make_group(0, launch.rank(), "exchange");
  auto exchange = make_token_exchange(*group, 0);
  const int64_t width = 16;
  const int64_t num_experts = 2 * group->size();
  const at::Tensor all_experts = at::arange(num_experts, at::TensorOptions(at::kLong).device(launch.device()));
  const int64_t planning = group->bytes_sent();
  const auto rounds = exchange->plan(all_experts.expand({4, num_experts}), num_experts);
  CHECK(group->bytes_sent() - planning == (1 + 2) * 8 * (group->size() - 1));
  const int64_t before = group->bytes_sent();
  exchange->receive(
      exchange->send(rounds[0], {at::ones({4, width}, at::TensorOptions(at::kFloat).device(launch.device()))}));
  CHECK(group->bytes_sent() - before == 4 * width * 4 * (group->size() - 1));
}
