#include "parallel/comm/mesh.h"

#include <vector>

#include "parallel/base/error.h"
#include "parallel/comm/launch.h"

namespace moetune {
namespace {

/// "1, 2, 4 and 8" for 8.
std::string divisors_of(int64_t number) {
  std::vector<int64_t> divisors;
  for (int64_t candidate = 1; candidate <= number; ++candidate) {
    if (number % candidate == 0) divisors.push_back(candidate);
  }
  std::string text = str(divisors.front());
  for (size_t i = 1; i < divisors.size(); ++i) text += str(i + 1 == divisors.size() ? " and " : ", ", divisors[i]);
  return text;
}

}  // namespace

std::string to_string(const MeshShape& shape) {
  return str("pp ", shape.pp, " x dp ", shape.dp > 0 ? str(shape.dp) : "auto", " x ep ", shape.ep, " x tp ", shape.tp,
             shape.expert_tp > 1 ? str(" (expert tp ", shape.expert_tp, ")") : "");
}

MeshShape resolve_mesh(MeshShape requested, int64_t world_size, std::vector<std::string> mistakes) {
  MT_CHECK(world_size >= 1, "world of ", world_size, " ranks");
  const bool dp_auto = requested.dp == 0;
  bool in_range = true;
  const auto check_axis = [&](const char* axis, int64_t value, int64_t most, const std::string& reason) {
    if (value >= 1 && value <= most) return;
    mistakes.push_back(str("mesh.", axis, " is ", value, "; allowed is 1 to ", most, reason));
    in_range = in_range && value >= 1 && value <= world_size;
  };
  const std::string ranks_reason = str(" (the job has ", world_size, world_size == 1 ? " rank)" : " ranks)");
  check_axis("pp", requested.pp, world_size, ranks_reason);
  if (!dp_auto) check_axis("dp", requested.dp, world_size, ranks_reason + ", or auto");
  check_axis("ep", requested.ep, world_size, ranks_reason);
  check_axis("tp", requested.tp, world_size, ranks_reason);

  // The product means something only where every axis does; each is at most world_size, and it is followed only so far.
  if (in_range) {
    int64_t product = 1;
    for (const int64_t value : {requested.pp, dp_auto ? int64_t{1} : requested.dp, requested.ep, requested.tp}) {
      if (product <= world_size) product *= value;
    }
    if (dp_auto && world_size % product != 0) {
      const bool tp_fits = world_size % requested.tp == 0;
      mistakes.push_back(str("mesh ", to_string(requested), ": ", world_size,
                             " ranks cannot be divided by pp x ep x tp", "; set ", tp_fits ? "mesh.ep" : "mesh.tp",
                             " to one of ", divisors_of(tp_fits ? world_size / requested.tp : world_size),
                             ", or start a multiple of pp x ep x tp ranks with mpirun -np"));
    } else if (!dp_auto && product != world_size) {
      mistakes.push_back(str("mesh ", to_string(requested), ": the product must be the number of ranks, ", world_size,
                             "; set mesh.dp to auto, or start that many ranks with mpirun -np"));
    } else if (dp_auto) {
      requested.dp = world_size / product;
    }
  }
  if (!mistakes.empty()) {
    std::string message = mistakes.front();
    for (size_t i = 1; i < mistakes.size(); ++i) message += "\n" + mistakes[i];
    throw UserError(message);
  }
  return requested;
}

MeshCoordinates coordinates_of(const MeshShape& shape, int64_t rank) {
  MeshCoordinates place;
  place.tp = rank % shape.tp;
  rank /= shape.tp;
  place.ep = rank % shape.ep;
  rank /= shape.ep;
  place.dp = rank % shape.dp;
  place.pp = rank / shape.dp;
  return place;
}

int64_t rank_at(const MeshShape& shape, const MeshCoordinates& place) {
  return ((place.pp * shape.dp + place.dp) * shape.ep + place.ep) * shape.tp + place.tp;
}

Mesh::Mesh(Launch& launch, const MeshShape& shape)
    : first_rank_(launch.rank() < shape.num_ranks() ? 0 : launch.rank()),
      shape_(first_rank_ == 0 ? shape : MeshShape{1, 1, 1, 1, 1}),
      here_(coordinates_of(shape_, launch.rank() - first_rank_)) {
  MT_CHECK(shape.num_ranks() <= launch.world_size(), "mesh ", to_string(shape), " on ", launch.world_size(), " ranks");
  MT_CHECK(shape.expert_tp == 1 || shape.expert_tp == shape.tp, "mesh ", to_string(shape));
  // A group is named by its first rank: this rank's place with the group's own axes at zero.
  const auto group = [&](MeshCoordinates first, const char* name) {
    return launch.make_group(static_cast<int>(first_rank_ + rank_at(shape_, first)), launch.rank(), name);
  };
  const auto [pp, dp, ep, tp] = here_;
  world_ = group({}, "world");
  ep_ = group({.pp = pp, .dp = dp, .ep = 0, .tp = tp}, "ep");
  tp_ = group({.pp = pp, .dp = dp, .ep = ep, .tp = 0}, "tp");
  dp_ = group({.pp = pp, .dp = 0, .ep = ep, .tp = tp}, "dp");
  expert_replicas_ = group({.pp = pp, .dp = 0, .ep = ep, .tp = 0}, "expert_replicas");
  data_ = group({.pp = pp, .dp = 0, .ep = 0, .tp = tp}, "data");
  stage_ = group({.pp = pp, .dp = 0, .ep = 0, .tp = 0}, "stage");
  pp_ = group({.pp = 0, .dp = dp, .ep = ep, .tp = tp}, "pp");
  ends_ = group({.pp = pp == shape_.pp - 1 ? 0 : pp, .dp = dp, .ep = ep, .tp = tp}, "ends");
}

}  // namespace moetune
