#include "parallel/comm/mesh.h"

#include "parallel/base/error.h"
#include "tests/support/catch.h"
#include "tests/support/message_of.h"

using namespace moetune;

namespace {

std::string mistake_of(const MeshShape& requested, int64_t world_size) {
  return message_of<UserError>([&] { resolve_mesh(requested, world_size); });
}

}  // namespace

TEST_CASE("dp auto takes what the other axes leave", "[mesh]") {
  CHECK(resolve_mesh({.pp = 1, .dp = 0, .ep = 1, .tp = 1}, 1) == MeshShape{1, 1, 1, 1});
  CHECK(resolve_mesh({.pp = 1, .dp = 0, .ep = 4, .tp = 1}, 12) == MeshShape{1, 3, 4, 1});
  CHECK(resolve_mesh({.pp = 1, .dp = 0, .ep = 8, .tp = 1}, 8) == MeshShape{1, 1, 8, 1});
  CHECK(resolve_mesh({.pp = 1, .dp = 0, .ep = 2, .tp = 2}, 12) == MeshShape{1, 3, 2, 2});
}

TEST_CASE("a complete shape stays as it is", "[mesh]") {
  CHECK(resolve_mesh({.pp = 1, .dp = 2, .ep = 3, .tp = 1}, 6) == MeshShape{1, 2, 3, 1});
}

TEST_CASE("a shape that does not fill the job says which ep would", "[mesh]") {
  const std::string uneven = mistake_of({.pp = 1, .dp = 0, .ep = 3, .tp = 1}, 8);
  CHECK(contains(uneven, "pp 1 x dp auto x ep 3 x tp 1"));
  CHECK(contains(uneven, "mesh.ep to one of 1, 2, 4 and 8"));
  CHECK(contains(mistake_of({.pp = 1, .dp = 0, .ep = 3, .tp = 2}, 8), "mesh.ep to one of 1, 2 and 4"));
  CHECK(contains(mistake_of({.pp = 1, .dp = 0, .ep = 1, .tp = 3}, 8), "mesh.tp to one of 1, 2, 4 and 8"));
  CHECK(contains(mistake_of({.pp = 1, .dp = 2, .ep = 2, .tp = 1}, 8), "the number of ranks, 8"));
  CHECK(contains(mistake_of({.pp = 1, .dp = 4, .ep = 4, .tp = 1}, 8), "the number of ranks, 8"));
}

TEST_CASE("every mistake of a mesh is in one error", "[mesh]") {
  const std::string all = mistake_of({.pp = 10, .dp = -1, .ep = 0, .tp = 9}, 8);
  CHECK(contains(all, "mesh.pp is 10; allowed is 1 to 8"));
  CHECK(contains(all, "mesh.dp is -1"));
  CHECK(contains(all, "mesh.ep is 0"));
  CHECK(contains(all, "mesh.tp is 9"));
  CHECK(contains(mistake_of({.pp = 2, .dp = 0, .ep = 8, .tp = 1}, 8), "8 ranks cannot be divided"));
  CHECK(resolve_mesh({.pp = 2, .dp = 0, .ep = 2, .tp = 1}, 8) == MeshShape{2, 2, 2, 1});
  // What the caller knows comes first.
  const std::string more =
      message_of<UserError>([] { resolve_mesh({.pp = 1, .dp = 0, .ep = 3, .tp = 1}, 8, {"heads: 4"}); });
  CHECK(contains(more, "heads: 4\nmesh pp 1"));
}

TEST_CASE("huge axes do not overflow", "[mesh]") {
  const int64_t huge = int64_t{1} << 62;
  CHECK(contains(mistake_of({.pp = 1, .dp = 4, .ep = huge, .tp = 1}, 4), "mesh.ep is 4611686018427387904"));
  CHECK(contains(mistake_of({.pp = huge, .dp = huge, .ep = huge, .tp = huge}, 4), "mesh.dp is 4611686018427387904"));
}

TEST_CASE("TP varies fastest, then EP, DP, PP", "[mesh]") {
  const MeshShape shape{.pp = 2, .dp = 3, .ep = 5, .tp = 7};
  CHECK(coordinates_of(shape, 0) == MeshCoordinates{0, 0, 0, 0});
  CHECK(coordinates_of(shape, 1) == MeshCoordinates{0, 0, 0, 1});
  CHECK(coordinates_of(shape, 7) == MeshCoordinates{0, 0, 1, 0});
  CHECK(coordinates_of(shape, 35) == MeshCoordinates{0, 1, 0, 0});
  CHECK(coordinates_of(shape, 105) == MeshCoordinates{1, 0, 0, 0});
  CHECK(coordinates_of(shape, 209) == MeshCoordinates{1, 2, 4, 6});
  for (int64_t rank = 0; rank < shape.num_ranks(); ++rank) CHECK(rank_at(shape, coordinates_of(shape, rank)) == rank);
}
