// The exchange of rows between ranks: closed forms in numbers that sums represent exactly, uneven and empty loads, rounds.
#include "parallel/token_exchange.h"

#include "parallel/communicator.h"

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

/// Rank r holds 3 r tokens: rank 0 none at all.
int64_t num_tokens(int64_t rank) { return 3 * rank; }

void check_exchange(int64_t buffer_rows) {
  Launch& launch = test_launch();
  auto group = launch.make_group(0, launch.rank(), "exchange");
  auto exchange = make_token_exchange(*group, buffer_rows);
  const int64_t ranks = group->size(), me = group->rank(), tokens = num_tokens(me);
  at::Tensor wanted = at::zeros({tokens, ranks}, at::kBool);
  at::Tensor rows = at::zeros({tokens, 2}, at::kDouble);
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t p = 0; p < ranks; ++p) wanted[t][p] = wants(me, t, p, ranks);
    rows[t][0] = token_value(me, t);
    rows[t][1] = -token_value(me, t);
  }
  wanted = wanted.to(launch.device());
  rows = rows.to(launch.device());
  const auto rounds = exchange->plan(wanted);
  if (buffer_rows == 0) CHECK(rounds.size() == 1);

  // What this rank must receive over all rounds, ordered by source and token within a round.
  std::vector<double> expected, received;
  for (int64_t source = 0; source < ranks; ++source) {
    for (int64_t t = 0; t < num_tokens(source); ++t) {
      if (wants(source, t, me, ranks)) expected.push_back(token_value(source, t));
    }
  }
  at::Tensor sum = at::zeros_like(rows);
  for (const ExchangeRound& round : rounds) {
    at::Tensor got = exchange->out(round, rows);
    CHECK(got.size(0) == round.num_received);
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
  const auto rounds = exchange->plan(at::zeros({5, group->size()}, at::TensorOptions(at::kBool).device(launch.device())));
  REQUIRE(rounds.size() == 1);
  CHECK(exchange->out(rounds[0], at::ones({5, 3}, at::TensorOptions().device(launch.device()))).size(0) == 0);
}

TEST_CASE("The sent rows are counted: each routed token once a destination, whatever number of its experts live there") {
  Launch& launch = test_launch();
  auto group = launch.make_group(0, launch.rank(), "exchange");
  auto exchange = make_token_exchange(*group, 0);
  const int64_t width = 16;
  const auto rounds = exchange->plan(at::ones({4, group->size()}, at::TensorOptions(at::kBool).device(launch.device())));
  const int64_t before = group->bytes_sent();
  exchange->out(rounds[0], at::ones({4, width}, at::TensorOptions(at::kFloat).device(launch.device())));
  CHECK(group->bytes_sent() - before == 4 * width * 4 * (group->size() - 1));
}
