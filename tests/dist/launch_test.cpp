#include "parallel/comm/launch.h"

#include "parallel/comm/communicator.h"
#include "parallel/comm/mesh.h"
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
  const int64_t P = launch.world_size(), me = launch.rank();
  for (int64_t place = 0; place < P * P; ++place) {
    const int64_t tp = place / P + 1, ep = place % P + 1;
    if (P % (ep * tp) != 0) continue;
    INFO("ep " << ep << ", tp " << tp);
    Mesh mesh(launch, resolve_mesh({.pp = 1, .dp = 0, .ep = ep, .tp = tp}, P));
    CHECK(mesh.shape().dp == P / ep / tp);
    CHECK(mesh.here().tp == me % tp);
    CHECK(mesh.here().ep == me / tp % ep);
    CHECK(mesh.here().dp == me / tp / ep);
    CHECK(mesh.world().size() == P);
    CHECK(mesh.data().rank() == me / tp);
    CHECK(mesh.ep().rank() == mesh.here().ep);
    CHECK(mesh.tp().rank() == mesh.here().tp);

    // The members of a group: neighbours in tp, every tp-th rank of one replica in ep, those of one place in ep in
    // expert_replicas, of one in ep and tp in dp.
    const auto members = [&](Communicator& group) {
      const at::Tensor ranks = at::empty({group.size()}, test_options(at::kInt));
      group.all_gather(ranks, at::full({1}, me, test_options(at::kInt)));
      return to_vector<int>(ranks);
    };
    const auto ranks_where = [&](const auto& belongs) {
      std::vector<int> ranks;
      for (int64_t r = 0; r < P; ++r) {
        if (belongs(r % tp, r / tp % ep, r / tp / ep)) ranks.push_back(static_cast<int>(r));
      }
      return ranks;
    };
    const int64_t own_tp = me % tp, own_ep = me / tp % ep, own_dp = me / tp / ep;
    CHECK(members(mesh.tp()) == ranks_where([&](int64_t, int64_t e, int64_t d) { return e == own_ep && d == own_dp; }));
    CHECK(members(mesh.ep()) == ranks_where([&](int64_t t, int64_t, int64_t d) { return t == own_tp && d == own_dp; }));
    CHECK(members(mesh.dp()) == ranks_where([&](int64_t t, int64_t e, int64_t) { return t == own_tp && e == own_ep; }));
    CHECK(members(mesh.expert_replicas()) == ranks_where([&](int64_t, int64_t e, int64_t) { return e == own_ep; }));
    CHECK(members(mesh.data()) == ranks_where([&](int64_t t, int64_t, int64_t) { return t == own_tp; }));
    CHECK(members(mesh.stage()) == ranks_where([](int64_t, int64_t, int64_t) { return true; }));
  }
}
