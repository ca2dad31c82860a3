#include "moe/mtp.h"

#include "moe/rms_norm.h"

namespace moetune {

void Mtp::use(PassContext& pass) {
  if (parts_.slab == nullptr) return;
  parts_.slab->use();
  parts_.projection->frozen()->use(pass.scratch, pass.dequantised);
}

void Mtp::release(PassContext& pass) {
  if (parts_.slab == nullptr) return;
  parts_.slab->release();
  pass.scratch.reset();
}

bool Mtp::input_trains() const {
  const Linear& projection = *parts_.projection;
  return projection.trained() != nullptr || projection.adapter() != nullptr || parts_.embedding_norm.requires_grad() ||
         parts_.hidden_norm.requires_grad() || parts_.embedding.trains();
}

at::Tensor Mtp::input(const at::Tensor& x_TD, const at::Tensor& next_embedding_TD) const {
  at::Tensor hidden = rms_norm(rms_norm(x_TD, parts_.trunk_norm, eps_), parts_.hidden_norm, eps_);
  at::Tensor embedding = rms_norm(next_embedding_TD, parts_.embedding_norm, eps_);
  return parts_.projection->forward(at::cat({embedding, hidden}, -1), at::Tensor(), StepRandom{});
}

}  // namespace moetune
