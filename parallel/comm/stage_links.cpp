#include "parallel/comm/stage_links.h"

#include <ATen/ATen.h>

#include "parallel/base/error.h"
#include "parallel/comm/launch.h"

namespace moetune {

StageLinks::Link::Link(std::unique_ptr<Communicator> of_two, at::Device device, bool sends)
    : group(std::move(of_two)), beside(device) {
  const at::Tensor greeting = at::zeros({1}, at::TensorOptions(at::kByte).device(device));
  sends ? group->send(greeting, 1 - group->rank()) : group->receive(greeting, 1 - group->rank());
  group->wait_sent();
  greeting_bytes = group->bytes_sent();
}

StageLinks::StageLinks(Launch& launch, const Mesh& mesh) : waits_(launch.device()) {
  const MeshShape& shape = mesh.shape();
  MeshCoordinates place = mesh.here();
  const int64_t stage = place.pp;
  // Two rounds: in each, stages pair up, those that begin with an even stage first. Who has no partner is alone.
  for (const int64_t parity : {0, 1}) {
    const bool lower = stage % 2 == parity, paired = lower ? stage + 1 < shape.pp : stage > 0;
    place.pp = paired && !lower ? stage - 1 : stage;
    const auto color = static_cast<int>(mesh.first_rank() + rank_at(shape, place));
    const auto link = [&](const char* name, bool sends) {
      auto group = launch.make_group(color, launch.rank(), name);
      return paired ? std::make_unique<Link>(std::move(group), launch.device(), sends) : nullptr;
    };
    (lower ? down_out_ : down_in_) = link("to the next stage", lower);
    (lower ? up_in_ : up_out_) = link("to the stage before", !lower);
  }
}

void StageLinks::send(Link& link, const at::Tensor& tensor) {
  const at::Tensor sent = tensor.detach().contiguous();
  link.beside.run(StreamPoint::of_current(link.group->device()),
                  [&] { link.group->send(sent, 1 - link.group->rank()); });
  link.beside.keep_until_done(sent);
}

at::Tensor StageLinks::receive(Link& link, at::IntArrayRef shape, at::ScalarType dtype) {
  at::Tensor tensor = at::empty(shape, at::TensorOptions(dtype).device(link.group->device()));
  const StreamTimer::Piece piece(waits_);
  link.group->receive(tensor, 1 - link.group->rank());
  return tensor;
}

void StageLinks::settle() {
  for (const Link* link : {down_out_.get(), up_out_.get()}) {
    if (link != nullptr) link->group->wait_sent();
  }
}

int64_t StageLinks::bytes_sent() const {
  int64_t bytes = 0;
  for (const Link* link : {down_out_.get(), up_out_.get()}) {
    if (link != nullptr) bytes += link->group->bytes_sent() - link->greeting_bytes;
  }
  return bytes;
}

}  // namespace moetune
