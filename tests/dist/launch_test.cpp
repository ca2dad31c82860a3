#include "parallel/launch.h"

#include "parallel/communicator.h"
#include "parallel/mesh.h"
#include "tests/support/catch.h"
#include "tests/support/dist.h"

using namespace moetune;

TEST_CASE("all ranks of this job share one host", "[launch]") {
  CHECK(test_launch().local_rank() == test_launch().rank());
  CHECK(test_launch().local_size() == test_launch().world_size());
}

TEST_CASE("host values reach every rank", "[launch]") {
  Launch& launch = test_launch();
  CHECK(launch.max_over_world(-10 - launch.rank()) == -10);
  CHECK(launch.max_over_world((int64_t{1} << 50) + launch.rank()) == (int64_t{1} << 50) + launch.world_size() - 1);
  const std::string text("from rank 0\0, with a zero", 24);
  CHECK(launch.broadcast_string(launch.rank() == 0 ? text : "ignored") == text);
  CHECK(launch.broadcast_string(launch.rank() == 0 ? "" : "ignored") == "");
}

TEST_CASE("a mesh holds the groups of its axes", "[mesh]") {
  Launch& launch = test_launch();
  const int P = launch.world_size();
  for (int64_t ep = 1; ep <= P; ++ep) {
    if (P % ep != 0) continue;
    INFO("ep " << ep);
    Mesh mesh(launch, resolve_mesh({.pp = 1, .dp = 0, .ep = ep, .tp = 1}, P));
    CHECK(mesh.shape().dp == P / ep);
    CHECK(mesh.here().ep == launch.rank() % ep);
    CHECK(mesh.here().dp == launch.rank() / ep);
    CHECK(mesh.world().size() == P);
    CHECK(mesh.data().rank() == launch.rank());
    REQUIRE(mesh.ep().size() == ep);
    CHECK(mesh.ep().rank() == mesh.here().ep);
    REQUIRE(mesh.expert_replicas().size() == P / ep);
    CHECK(mesh.expert_replicas().rank() == mesh.here().dp);

    // The members of a group: neighbours in ep, and every ep-th rank in expert_replicas.
    const auto members = [&](Communicator& group) {
      const at::Tensor ranks = at::empty({group.size()}, test_options(at::kInt));
      group.all_gather(ranks, at::full({1}, launch.rank(), test_options(at::kInt)));
      return to_vector<int>(ranks);
    };
    std::vector<int> neighbours;
    for (int64_t i = 0; i < ep; ++i) neighbours.push_back(static_cast<int>(mesh.here().dp * ep + i));
    std::vector<int> replicas;
    for (int64_t i = 0; i < P / ep; ++i) replicas.push_back(static_cast<int>(i * ep + mesh.here().ep));
    CHECK(members(mesh.ep()) == neighbours);
    CHECK(members(mesh.expert_replicas()) == replicas);
  }
}
