// The multi-token prediction module (DeepSeek-V3 report section 2.2, depth 1): one more block after the last that
// predicts the token after the next.
//
//   at::Tensor z_TD = mtp.input(x_TD, mtp.embedding().embed(next_token));   // differentiable in both
//   ... one block of the sweep ...
//   HeadResult r = mtp.head().loss(out_UD, target_row, target, scale, true);
//
// For row i of a document, z_i = eh_proj([enorm(Emb(t_i+1)); hnorm(norm(x_L,i))]), embedding first as the checkpoint
// lays it out (the paper's eq. 21 writes the other order); target t_i+2. The last row of a document has no next token
// and does not take part.
#pragma once

#include <memory>

#include "lora/frozen_slab.h"
#include "lora/linear.h"
#include "moe/embedding.h"
#include "moe/head.h"
#include "moe/pass_context.h"

namespace moetune {

class Mtp {
 public:
  struct Parts {
    at::Tensor embedding_norm, hidden_norm;  ///< enorm, hnorm
    std::unique_ptr<Linear> projection;      ///< eh_proj [D, 2 D]
    FrozenSlab* slab = nullptr;              ///< of the projection; null where it trains
    Embedding embedding;                     ///< the trunk's own where the checkpoint's copy equals it
    at::Tensor trunk_norm;                   ///< model.norm
    std::unique_ptr<Head> head;
  };
  Mtp(Parts parts, double eps) : parts_(std::move(parts)), eps_(eps) {}

  /// x_TD: the last block's output at the rows that take part; next_embedding_TD: embedding of the token after each. ->
  /// [T, D].
  at::Tensor input(const at::Tensor& x_TD, const at::Tensor& next_embedding_TD) const;
  /// Whether anything of input() trains: projection, norms, an embedding.
  bool input_trains() const;
  Embedding& embedding() { return parts_.embedding; }
  Head& head() { return *parts_.head; }
  /// Makes the projection dense for one pass; release() gives the scratch back.
  void use(PassContext& pass);
  void release(PassContext& pass);
  const Parts& parts() const { return parts_; }

 private:
  Parts parts_;
  double eps_;
};

}  // namespace moetune
