#include "moe/attention/ragged_attention.h"

#include <ATen/native/transformers/cuda/sdp_utils.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>

#include "moe/attention/ragged_pieces.h"
#include "parallel/device/upload.h"

namespace moetune {
namespace {

constexpr int64_t kFlashWidth = 256;    // greatest head width of FlashAttention-2
constexpr int64_t kFlashAlignment = 8;  // it wants widths in multiples of it, and reads that many numbers at a time

/// What is computed, but for the numbers.
struct Task {
  std::vector<int64_t> lengths;
  MaskSpec mask;
  double scale = 1.0;
  bool dense = false;  ///< long documents are the dense kernel's

  std::vector<RaggedPiece> pieces() const { return ragged_pieces(lengths, mask, dense); }
  void save(torch::autograd::AutogradContext* context) const {
    context->saved_data["lengths"] = lengths;
    context->saved_data["mask"] = static_cast<int64_t>(mask.kind);
    context->saved_data["size"] = mask.size;
    context->saved_data["scale"] = scale;
    context->saved_data["dense"] = dense;
  }
  static Task saved(torch::autograd::AutogradContext* context) {
    auto& data = context->saved_data;
    return {data["lengths"].toIntVector(),
            {static_cast<MaskSpec::Kind>(data["mask"].toInt()), data["size"].toInt()},
            data["scale"].toDouble(),
            data["dense"].toBool()};
  }
};

struct Output {
  at::Tensor y, lse;
};
struct Gradients {
  at::Tensor q, k, v;
};

/// Whether kernels may read it 16 bytes at a time, whatever row and head they begin at.
bool is_aligned(const at::Tensor& x_RHA) {
  return reinterpret_cast<uintptr_t>(x_RHA.data_ptr()) % 16 == 0 && x_RHA.stride(2) == 1 &&
         x_RHA.stride(1) % kFlashAlignment == 0 && x_RHA.stride(0) % kFlashAlignment == 0;
}

at::Tensor aligned(const at::Tensor& x_RHA) {
  return is_aligned(x_RHA) ? x_RHA : x_RHA.clone(at::MemoryFormat::Contiguous);
}

/// `width` features a head: zeros stand before those of x.
at::Tensor padded(const at::Tensor& x_RHA, int64_t width) {
  const int64_t missing = width - x_RHA.size(2);
  return aligned(missing == 0 ? x_RHA : at::constant_pad_nd(x_RHA, {missing, 0}));
}

/// FlashAttention-2 wants values as wide as keys. Where features of the same head lie before the values in memory, as
/// latent attention's keys do, these are taken along instead of zeros, without a copy: what they add to the output
/// stands before the output's own features, and is dropped; its gradient is zero.
at::Tensor padded_values(const at::Tensor& v_RGA, int64_t width) {
  const int64_t missing = width - v_RGA.size(2), offset = v_RGA.storage_offset() - missing;
  if (missing > 0 && v_RGA.stride(2) == 1 && v_RGA.stride(1) >= width && offset >= 0 &&
      v_RGA.storage_offset() % v_RGA.stride(1) >= missing) {
    const at::Tensor wider =
        v_RGA.as_strided({v_RGA.size(0), v_RGA.size(1), width}, {v_RGA.stride(0), v_RGA.stride(1), 1}, offset);
    if (is_aligned(wider)) return wider;
  }
  return padded(v_RGA, width);
}

/// FlashAttention-2 on documents as they lie; y and gradients have `width` features a head, lse is [H, rows].
struct RaggedKernel {
  const RaggedPiece& piece;
  const MaskSpec& mask;
  double scale;
  at::Tensor begins;  ///< int32 on the device, piece.begins

  Output forward(const at::Tensor& q_RHA, const at::Tensor& k_RGA, const at::Tensor& v_RGA) const {
    auto result = at::_flash_attention_forward(q_RHA, k_RGA, v_RGA, begins, begins, most_rows(), most_rows(), 0.0,
                                               is_causal(), /*return_debug_mask=*/false, scale, left(), right());
    return {std::get<0>(result), std::get<1>(result)};
  }
  Gradients backward(const at::Tensor& d_RHA, const at::Tensor& q_RHA, const at::Tensor& k_RGA, const at::Tensor& v_RGA,
                     const at::Tensor& y_RHA, const at::Tensor& lse_HR) const {
    // The state of dropout's generator, which nothing reads without dropout.
    const at::Tensor state = at::zeros({2}, q_RHA.options().dtype(at::kUInt64)),
                     unused = at::empty({}, state.options());
    auto [d_q, d_k, d_v] =
        at::_flash_attention_backward(d_RHA, q_RHA, k_RGA, v_RGA, y_RHA, lse_HR, begins, begins, most_rows(),
                                      most_rows(), 0.0, is_causal(), state, unused, scale, left(), right());
    return {d_q, d_k, d_v};
  }

 private:
  bool is_causal() const { return mask.kind != MaskSpec::Kind::kWindow || piece.longest <= mask.size; }
  // Hazard: with 1, the kernel takes grouped heads for rows and returns lse in another layout.
  int64_t most_rows() const { return std::max<int64_t>(2, piece.longest); }
  // Keys before and behind a query's own that it sees.
  std::optional<int64_t> left() const { return is_causal() ? std::nullopt : std::optional(mask.size - 1); }
  std::optional<int64_t> right() const { return is_causal() ? std::nullopt : std::optional<int64_t>(0); }
};

/// cuDNN's attention on one document. Hazard: it keeps its programs by sizes and strides of queries, keys and values
/// alone, so outputs and their gradients must always come in one layout, rows outermost.
///
/// The document's last rows are padding that no other row sees: whatever lies behind it. Its outputs are dropped and
/// their gradient is zero, which makes every gradient that comes of padding zero.
struct DenseKernel {
  const RaggedPiece& piece;
  double scale;

  static bool can(const at::Tensor& q_UHA, const at::Tensor& k_UGA, const at::Tensor& v_UGA) {
    return sdp::can_use_cudnn_attention({batch_of(q_UHA),
                                         batch_of(k_UGA),
                                         batch_of(v_UGA),
                                         {},
                                         0.0,
                                         /*is_causal=*/true,
                                         /*enable_gqa=*/q_UHA.size(1) != k_UGA.size(1)},
                                        /*debug=*/false);
  }

  /// Of all rows of the slice -> y [padded_rows, H, value]; lse is for the backward pass.
  Output forward(const at::Tensor& q_UHA, const at::Tensor& k_UGA, const at::Tensor& v_UGA) const {
    auto result = at::_scaled_dot_product_cudnn_attention(batch(q_UHA), batch(k_UGA), batch(v_UGA), {},
                                                          /*compute_log_sumexp=*/true, 0.0, /*is_causal=*/true,
                                                          /*return_debug_mask=*/false, scale);
    return {rows(std::get<0>(result)), std::get<1>(result)};
  }
  Gradients backward(const at::Tensor& d_UHA, const at::Tensor& q_UHA, const at::Tensor& k_UGA, const at::Tensor& v_UGA,
                     const at::Tensor& y_UHA, const at::Tensor& lse) const {
    at::Tensor d_RHA = d_UHA.narrow(0, piece.first_row, piece.num_rows);
    if (piece.padded_rows > piece.num_rows) d_RHA = with_zeros(d_RHA);
    const at::Tensor unused = at::zeros({}, q_UHA.options().dtype(at::kLong));  // the state of dropout's generator
    auto [d_q, d_k, d_v] = at::_scaled_dot_product_cudnn_attention_backward(
        batch_of(d_RHA), batch(q_UHA), batch(k_UGA), batch(v_UGA), batch(y_UHA), lse, unused, unused, {}, {}, {},
        piece.padded_rows, piece.padded_rows, 0.0, /*is_causal=*/true, scale);
    return {rows(d_q), rows(d_k), rows(d_v)};
  }

 private:
  static at::Tensor batch_of(const at::Tensor& x_RHA) { return x_RHA.unsqueeze(0).transpose(1, 2); }
  static at::Tensor rows(const at::Tensor& x_BHRA) { return x_BHRA.transpose(1, 2).squeeze(0); }
  /// The piece's rows and padding as a batch of one: a view where the slice has enough rows behind the document.
  at::Tensor batch(const at::Tensor& x_UHA) const {
    return batch_of(piece.first_row + piece.padded_rows <= x_UHA.size(0)
                        ? x_UHA.narrow(0, piece.first_row, piece.padded_rows)
                        : with_zeros(x_UHA.narrow(0, piece.first_row, piece.num_rows)));
  }
  /// With its strides kept: others would be another program.
  at::Tensor with_zeros(const at::Tensor& x_RHA) const {
    at::Tensor longer =
        at::empty_strided({piece.padded_rows, x_RHA.size(1), x_RHA.size(2)}, x_RHA.strides(), x_RHA.options());
    longer.narrow(0, 0, piece.num_rows).copy_(x_RHA);
    longer.narrow(0, piece.num_rows, piece.padded_rows - piece.num_rows).zero_();
    return longer;
  }
};

/// [] where no piece is ragged.
at::Tensor begins_of(const std::vector<RaggedPiece>& pieces, at::Device device) {
  std::vector<int32_t> begins;
  for (const RaggedPiece& piece : pieces) begins.insert(begins.end(), piece.begins.begin(), piece.begins.end());
  return uploaded(at::tensor(begins, at::kInt), device);
}

// Sinks on top of kernels that know none. A kernel gives y' = sum_j exp(s_ij - lse) v_j; with the sink in the
// denominator, l = ln(exp(lse) + exp(sink)), it is y = y' exp(lse - l). Backward kernels compute their probabilities
// from the log-sum-exp that they are handed, and dy . y in place of the softmax's inner sum: with l and y they give the
// exact gradients of softmax with a sink as they stand. The sink's own: d sink = -sum_i exp(sink - l_i) (dy_i . y_i).
struct RaggedAttention : torch::autograd::Function<RaggedAttention> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& q_UHA, const at::Tensor& k_UGA,
                            const at::Tensor& v_UGA, const std::optional<at::Tensor>& sinks_H, const Task& task,
                            KeptAttention* kept) {
    const std::vector<RaggedPiece> pieces = task.pieces();
    const at::Tensor begins = begins_of(pieces, q_UHA.device());
    KeptAttention found;
    if (kept != nullptr && kept->y_UHA.defined()) {
      found = {kept->y_UHA.detach(), kept->lse, task.dense};
    } else {
      found = attended(q_UHA, k_UGA, v_UGA, sinks_H, task, pieces, begins);
      if (kept != nullptr) *kept = found;
    }
    MT_CHECK(found.lse.size() == pieces.size(), "sums of ", found.lse.size(), " pieces were kept, of ", pieces.size());
    std::vector<at::Tensor> saved{q_UHA, k_UGA, v_UGA, sinks_H.value_or(at::Tensor()), begins, found.y_UHA};
    saved.insert(saved.end(), found.lse.begin(), found.lse.end());
    context->save_for_backward(std::move(saved));
    task.save(context);
    return found.y_UHA;
  }

  /// y, and the sums that the backward pass takes, of each piece.
  static KeptAttention attended(const at::Tensor& q_UHA, const at::Tensor& k_UGA, const at::Tensor& v_UGA,
                                const std::optional<at::Tensor>& sinks_H, const Task& task,
                                const std::vector<RaggedPiece>& pieces, const at::Tensor& begins) {
    const int64_t value_dim = v_UGA.size(2);
    const Widened x(pieces, q_UHA, k_UGA, v_UGA);
    KeptAttention all{.dense = task.dense};
    at::Tensor& y_UHA = all.y_UHA;
    int64_t begin = 0;  // of the piece's numbers in `begins`
    for (const RaggedPiece& piece : pieces) {
      Output output;
      if (piece.dense) {
        output = DenseKernel{piece, task.scale}.forward(q_UHA, k_UGA, v_UGA);
      } else {
        const RaggedKernel kernel{piece, task.mask, task.scale, piece_begins(begins, piece, begin)};
        output = kernel.forward(x.rows(x.q, piece), x.rows(x.k, piece), x.rows(x.v, piece));
      }
      at::Tensor found = output.y.narrow(0, 0, piece.num_rows);
      found = found.narrow(2, found.size(2) - value_dim, value_dim);
      if (pieces.size() == 1 && !sinks_H && found.is_contiguous()) {
        y_UHA = found;
      } else {
        if (!y_UHA.defined()) y_UHA = at::empty({q_UHA.size(0), q_UHA.size(1), value_dim}, q_UHA.options());
        at::Tensor part = y_UHA.narrow(0, piece.first_row, piece.num_rows);
        if (sinks_H) {
          const at::Tensor with_sink = at::logaddexp(output.lse, sinks_H->to(output.lse.scalar_type()).unsqueeze(1));
          at::mul_out(part, found, (output.lse - with_sink).exp_().t().unsqueeze(-1));
          output.lse = with_sink;
        } else {
          part.copy_(found);
        }
      }
      all.lse.push_back(output.lse);
    }
    return all;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list d_y) {
    const auto saved = context->get_saved_variables();
    const at::Tensor &q_UHA = saved[0], &k_UGA = saved[1], &v_UGA = saved[2], &sinks_H = saved[3], &begins = saved[4],
                     &y_UHA = saved[5];
    const Task task = Task::saved(context);
    const std::vector<RaggedPiece> pieces = task.pieces();
    const at::Tensor d_UHA = d_y[0].contiguous();
    const Widened x(pieces, q_UHA, k_UGA, v_UGA);
    const bool wants_sinks = sinks_H.defined() && context->needs_input_grad(3);
    Gradients all;
    at::Tensor d_sinks;
    int64_t begin = 0;
    for (size_t i = 0; i < pieces.size(); ++i) {
      const RaggedPiece& piece = pieces[i];
      const at::Tensor& lse = saved[6 + i];
      const auto rows = [&](const at::Tensor& of_all) { return of_all.narrow(0, piece.first_row, piece.num_rows); };
      Gradients found;
      if (piece.dense) {
        found = DenseKernel{piece, task.scale}.backward(d_UHA, q_UHA, k_UGA, v_UGA, y_UHA, lse);
      } else {
        const RaggedKernel kernel{piece, task.mask, task.scale, piece_begins(begins, piece, begin)};
        found = kernel.backward(padded(rows(d_UHA), x.width), x.rows(x.q, piece), x.rows(x.k, piece),
                                x.rows(x.v, piece), padded(rows(y_UHA), x.width), lse);
      }
      if (wants_sinks) {
        const at::Tensor delta_HR = (rows(d_UHA).to(lse.scalar_type()) * rows(y_UHA)).sum(-1).t();
        const at::Tensor sum = ((sinks_H.to(lse.scalar_type()).unsqueeze(1) - lse).exp_() * delta_HR).sum(1);
        d_sinks = d_sinks.defined() ? d_sinks.sub_(sum) : sum.neg();
      }
      const bool alone = pieces.size() == 1;
      put(found.q, piece, q_UHA, alone, all.q);
      put(found.k, piece, k_UGA, alone, all.k);
      put(found.v, piece, v_UGA, alone, all.v);
    }
    if (d_sinks.defined()) d_sinks = d_sinks.to(sinks_H.scalar_type());
    return {all.q, all.k, all.v, d_sinks, at::Tensor(), at::Tensor()};
  }

 private:
  /// What the ragged kernel reads, of all rows of the slice.
  struct Widened {
    Widened(const std::vector<RaggedPiece>& pieces, const at::Tensor& q_UHA, const at::Tensor& k_UGA,
            const at::Tensor& v_UGA) {
      if (std::all_of(pieces.begin(), pieces.end(), [](const RaggedPiece& piece) { return piece.dense; })) return;
      width = std::max(q_UHA.size(2), v_UGA.size(2));
      width = (width + kFlashAlignment - 1) / kFlashAlignment * kFlashAlignment;
      q = padded(q_UHA, width);
      k = padded(k_UGA, width);
      v = padded_values(v_UGA, width);
    }
    static at::Tensor rows(const at::Tensor& of_all, const RaggedPiece& piece) {
      return of_all.narrow(0, piece.first_row, piece.num_rows);
    }
    int64_t width = 0;
    at::Tensor q, k, v;
  };

  /// `begin` moves on to the next piece's.
  static at::Tensor piece_begins(const at::Tensor& begins, const RaggedPiece& piece, int64_t& begin) {
    const int64_t count = piece.num_documents() + 1;
    begin += count;
    return begins.narrow(0, begin - count, count);
  }

  /// A piece's gradient among those of all rows; where it is the only one it is they.
  static void put(const at::Tensor& found, const RaggedPiece& piece, const at::Tensor& like_UHA, bool alone,
                  at::Tensor& all_UHA) {
    const int64_t width = like_UHA.size(2);
    const at::Tensor part = found.narrow(0, 0, piece.num_rows).narrow(2, found.size(2) - width, width);
    if (alone) {
      all_UHA = part;
      return;
    }
    if (!all_UHA.defined()) all_UHA = at::empty(like_UHA.sizes(), like_UHA.options());
    all_UHA.narrow(0, piece.first_row, piece.num_rows).copy_(part);
  }
};

}  // namespace

bool has_ragged_attention(const at::Tensor& q_UHA, const at::Tensor& v_UGA) {
  return q_UHA.is_cuda() && (q_UHA.scalar_type() == at::kBFloat16 || q_UHA.scalar_type() == at::kHalf) &&
         std::max(q_UHA.size(2), v_UGA.size(2)) <= kFlashWidth;
}

at::Tensor ragged_attention(const at::Tensor& q_UHA, const at::Tensor& k_UGA, const at::Tensor& v_UGA,
                            const std::vector<int64_t>& lengths, const AttentionSpec& spec, const at::Tensor& sinks_H,
                            KeptAttention* kept) {
  const at::Tensor q = aligned(q_UHA), k = aligned(k_UGA), v = aligned(v_UGA);
  const bool was_kept = kept != nullptr && kept->y_UHA.defined();
  const bool dense = was_kept ? kept->dense : !sinks_H.defined() && DenseKernel::can(q, k, v);
  const Task task{lengths, spec.mask, spec.softmax_scale, dense};
  return RaggedAttention::apply(q, k, v, sinks_H.defined() ? std::optional(sinks_H) : std::nullopt, task, kept);
}

int64_t warm_up_ragged_attention(const AttentionSpec& spec, int64_t heads, int64_t kv_heads,
                                 const std::set<int64_t>& rows, at::TensorOptions options) {
  AttentionSpec causal = spec;
  causal.mask = {};
  int64_t made = 0;
  for (const int64_t length : rows) {
    // The layout in which each kind of attention hands them over. Numbers, for a kernel may take its time over others.
    const at::Tensor q = at::randn({length, heads, spec.key_dim()}, options).requires_grad_(),
                     k = at::randn({length, kv_heads, spec.key_dim()}, options).requires_grad_();
    const int64_t before = spec.kind == AttentionSpec::Kind::kLatent ? spec.nope_dim : 0;
    const at::Tensor kv = at::randn({length, kv_heads, before + spec.value_dim}, options).requires_grad_();
    const at::Tensor v = kv.narrow(2, before, spec.value_dim);
    if (!has_ragged_attention(q, v) || !DenseKernel::can(q, k, v)) return 0;
    const at::Tensor y = ragged_attention(q, k, v, {length}, causal);
    torch::autograd::grad({y}, {q, k, kv}, {at::randn_like(y)});
    ++made;
  }
  if (made > 0) c10::cuda::CUDACachingAllocator::emptyCache();
  return made;
}

}  // namespace moetune
