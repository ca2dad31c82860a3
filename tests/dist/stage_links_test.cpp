// What stages send each other, in whole numbers that tell sender, message and place apart.
#include "parallel/comm/stage_links.h"

#include "parallel/base/error.h"
#include "parallel/comm/mpi_communicator.h"
#include "tests/support/catch.h"
#include "tests/support/dist.h"

using namespace moetune;

namespace {

/// Message number `message` of stage `stage`, at this rank's place of the other axes.
at::Tensor message_of_stage(const Mesh& mesh, int64_t stage, bool down, int64_t message, int64_t rows) {
  const int64_t first = 1000 * message + 100 * stage + 10 * mesh.here().tp + (down ? 1 : 2);
  return (at::arange(rows * 3, test_options(at::kFloat)) * 0.0 + static_cast<double>(first)).view({rows, 3});
}

void exchange_with_neighbours(const MeshShape& shape) {
  Mesh mesh(test_launch(), shape);
  StageLinks links(test_launch(), mesh);
  const int64_t stage = mesh.here().pp, stages = mesh.shape().pp;
  // Both neighbours send before either receives, several messages each, one of them empty.
  const std::vector<int64_t> rows = {4, 0, 1, 70000};
  for (size_t i = 0; i < rows.size(); ++i) {
    const auto message = static_cast<int64_t>(i);
    if (stage + 1 < stages) links.send_down(message_of_stage(mesh, stage, true, message, rows[i]));
    if (stage > 0) links.send_up(message_of_stage(mesh, stage, false, message, rows[i]));
  }
  for (size_t i = 0; i < rows.size(); ++i) {
    const auto message = static_cast<int64_t>(i);
    if (stage > 0) {
      CHECK(at::equal(links.receive_down({rows[i], 3}, at::kFloat),
                      message_of_stage(mesh, stage - 1, true, message, rows[i])));
    }
    if (stage + 1 < stages) {
      CHECK(at::equal(links.receive_up({rows[i], 3}, at::kFloat),
                      message_of_stage(mesh, stage + 1, false, message, rows[i])));
    }
  }
  links.settle();
  const int64_t neighbours = (stage > 0 ? 1 : 0) + (stage + 1 < stages ? 1 : 0);
  CHECK(links.bytes_sent() == neighbours * 70005 * 3 * 4);
}

}  // namespace

TEST_CASE("stages send down and up at once", "[stage_links]") {
  const auto ranks = static_cast<int64_t>(test_launch().world_size());
  exchange_with_neighbours({ranks, 1, 1, 1});
  if (ranks % 2 == 0) exchange_with_neighbours({2, 1, 1, ranks / 2});
  if (ranks % 2 == 0) exchange_with_neighbours({ranks / 2, 1, 1, 2});
}

TEST_CASE("the ends of a pipeline are its first and last stage", "[mesh]") {
  const auto ranks = static_cast<int64_t>(test_launch().world_size());
  Mesh mesh(test_launch(), {ranks, 1, 1, 1});
  CHECK(mesh.pp().size() == ranks);
  CHECK(mesh.pp().rank() == mesh.here().pp);
  const at::Tensor sum = at::ones({1}, test_options(at::kLong));
  mesh.ends().all_reduce_sum(sum);
  const bool end = mesh.here().pp == 0 || mesh.here().pp == ranks - 1;
  CHECK(sum.item<int64_t>() == (end && ranks > 1 ? 2 : 1));
  CHECK(mesh.stage().size() == 1);
}

TEST_CASE("messages between two ranks come in their order and in pieces", "[communicator]") {
  if (!test_launch().device().is_cpu() || test_launch().world_size() < 2) return;
  auto group = MpiCommunicator::split_world(0, test_launch().rank(), "test pieces", /*max_count=*/8);
  const int next = (group->rank() + 1) % group->size(), before = (group->rank() + group->size() - 1) % group->size();
  for (const int64_t length : {1, 3, 17}) {
    group->send(at::arange(length, at::kLong) + 100 * group->rank(), next);
  }
  for (const int64_t length : {1, 3, 17}) {
    const at::Tensor got = at::empty({length}, at::kLong);
    group->receive(got, before);
    CHECK(at::equal(got, at::arange(length, at::kLong) + 100 * before));
  }
  group->wait_sent();
  CHECK(group->bytes_sent() == 21 * 8);
  CHECK_THROWS_AS(group->send(at::zeros({1}), group->rank()), InternalError);
}
