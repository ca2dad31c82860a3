#include "moe/attention/dense_attention.h"

#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>

#include "parallel/base/error.h"

namespace moetune {
namespace {

constexpr int64_t kRowsAtATime = 128;  // queries of a block in BlockAttention

at::ScalarType wide_dtype(const at::Tensor& x) { return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat; }

at::Tensor padded(const at::Tensor& x, int64_t width) {
  return x.size(-1) == width ? x : at::constant_pad_nd(x, {0, width - x.size(-1)});
}

/// Key and value heads once for each query head that reads them.
at::Tensor repeated(const at::Tensor& x_BLGA, int64_t heads) {
  const int64_t kv_heads = x_BLGA.size(2);
  if (heads == kv_heads) return x_BLGA;
  return x_BLGA.unsqueeze(3).expand({-1, -1, -1, heads / kv_heads, -1}).flatten(2, 3);
}

// Fused kernels on the CPU want one head width: values are padded with zero features, which add nothing. They read
// grouped heads where they lie; on GPUs LibTorch would fall back to a matrix of all scores for them, so keys and values
// are repeated.
at::Tensor causal_attention(const at::Tensor& q_BLHA, const at::Tensor& k_BLGA, const at::Tensor& v_BLGA,
                            double scale) {
  const int64_t value_dim = v_BLGA.size(-1);
  const int64_t missing = q_BLHA.size(-1) - value_dim;
  at::Tensor k = k_BLGA, v = q_BLHA.is_cuda() || missing <= 0 ? v_BLGA : at::constant_pad_nd(v_BLGA, {0, missing});
  if (q_BLHA.is_cuda()) {
    k = repeated(k, q_BLHA.size(2));
    v = repeated(v, q_BLHA.size(2));
  }
  at::Tensor out =
      at::scaled_dot_product_attention(q_BLHA.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), {}, 0.0,
                                       /*is_causal=*/true, scale, /*enable_gqa=*/k.size(2) != q_BLHA.size(2));
  return out.transpose(1, 2).narrow(-1, 0, value_dim);
}

/// What every kernel below computes: causal attention, of the last `window` keys where that is not 0.
struct Task {
  double scale = 1.0;
  int64_t window = 0;
};
struct Output {
  at::Tensor y_BLHA;   ///< without sinks
  at::Tensor lse_BHL;  ///< ln sum_j exp(s_ij), fp32 or fp64
};
struct Gradients {
  at::Tensor q, k, v;
};

/// The written-out softmax, a block of queries and their range of keys at a time, in fp32 (fp64): the forward pass
/// keeps one number a row, the backward pass computes the probabilities anew. For what the fused kernels lack: windows
/// on CPUs, and on GPUs what ragged_attention() does not compute: fp32 and fp64, which serve comparisons.
struct BlockAttention {
  static Output forward(const at::Tensor& q_BLHA, const at::Tensor& k_BLGA, const at::Tensor& v_BLGA, Task task) {
    const Blocks blocks(q_BLHA, k_BLGA, v_BLGA, task);
    std::vector<at::Tensor> outputs, sums;
    for (int64_t begin = 0; begin < blocks.length; begin += kRowsAtATime) {
      const Block b = blocks.at(begin);
      at::Tensor score = blocks.scores(b);
      sums.push_back(score.logsumexp(-1, /*keepdim=*/true));
      outputs.push_back(blocks.ungrouped(score.sub_(sums.back()).exp_().matmul(b.v)));
      sums.back() = blocks.ungrouped(sums.back());
    }
    return {at::cat(outputs, 1), at::cat(sums, 1).squeeze(-1).transpose(1, 2).contiguous()};
  }

  // ds_ij = p_ij (dy_i . v_j - dy_i . y_i)
  static Gradients backward(const at::Tensor& d_BLHA, const at::Tensor& q_BLHA, const at::Tensor& k_BLGA,
                            const at::Tensor& v_BLGA, const at::Tensor& y_BLHA, const at::Tensor& lse_BHL, Task task) {
    const Blocks blocks(q_BLHA, k_BLGA, v_BLGA, task);
    const at::Tensor d = d_BLHA.to(blocks.q.scalar_type());
    const at::Tensor delta = (d * y_BLHA).sum(-1, true), lse = lse_BHL.transpose(1, 2).unsqueeze(-1);
    std::vector<at::Tensor> d_q;
    at::Tensor d_k = at::zeros_like(blocks.k), d_v = at::zeros_like(blocks.v);
    for (int64_t begin = 0; begin < blocks.length; begin += kRowsAtATime) {
      const Block b = blocks.at(begin);
      const auto rows = [&](const at::Tensor& x) { return blocks.grouped(x.narrow(1, begin, b.rows)); };
      const at::Tensor p = blocks.scores(b).sub_(rows(lse)).exp_(), d_y = rows(d);
      d_v.narrow(2, b.first_key, b.keys).add_(p.transpose(-1, -2).matmul(d_y));
      const at::Tensor d_score = d_y.matmul(b.v.transpose(-1, -2)).sub_(rows(delta)).mul_(p).mul_(task.scale);
      d_k.narrow(2, b.first_key, b.keys).add_(d_score.transpose(-1, -2).matmul(b.q));
      d_q.push_back(blocks.ungrouped(d_score.matmul(b.k)));
    }
    const auto narrowed = [&](const at::Tensor& wide_BGLA) {
      return wide_BGLA.transpose(1, 2).to(k_BLGA.scalar_type());
    };
    return {at::cat(d_q, 1).to(q_BLHA.scalar_type()), narrowed(d_k), narrowed(d_v)};
  }

 private:
  struct Block {
    at::Tensor q;       ///< [B, G, H / G * rows, A]
    at::Tensor k, v;    ///< [B, G, keys, A]
    at::Tensor hidden;  ///< [rows, keys]: keys that a query does not see
    int64_t rows, first_key, keys;
  };
  struct Blocks {
    Blocks(const at::Tensor& q_BLHA, const at::Tensor& k_BLGA, const at::Tensor& v_BLGA, Task task)
        : task(task),
          length(q_BLHA.size(1)),
          kv_heads(k_BLGA.size(2)),
          q(q_BLHA.to(wide_dtype(q_BLHA))),
          k(k_BLGA.to(q.scalar_type()).transpose(1, 2).contiguous()),
          v(v_BLGA.to(q.scalar_type()).transpose(1, 2).contiguous()) {}

    Block at(int64_t begin) const {
      Block b;
      b.rows = std::min(kRowsAtATime, length - begin);
      b.first_key = task.window == 0 ? 0 : std::max(int64_t{0}, begin - task.window + 1);
      b.keys = begin + b.rows - b.first_key;
      b.q = grouped(q.narrow(1, begin, b.rows));
      b.k = k.narrow(2, b.first_key, b.keys);
      b.v = v.narrow(2, b.first_key, b.keys);
      const at::Tensor row = at::arange(begin, begin + b.rows, k.options().dtype(at::kLong)).unsqueeze(1);
      const at::Tensor distance = row - at::arange(b.first_key, b.first_key + b.keys, row.options());
      b.hidden = distance < 0;
      if (task.window > 0) b.hidden.logical_or_(distance >= task.window);
      return b;
    }
    /// [B, rows, H, C] -> [B, G, H / G * rows, C]: all queries that read a key head are rows of one product.
    at::Tensor grouped(const at::Tensor& x) const {
      return x.unflatten(2, {kv_heads, -1}).permute({0, 2, 3, 1, 4}).flatten(2, 3);
    }
    at::Tensor ungrouped(const at::Tensor& x) const {
      return x.unflatten(2, {q.size(2) / kv_heads, -1}).permute({0, 3, 1, 2, 4}).flatten(2, 3);
    }
    at::Tensor scores(const Block& b) const {
      at::Tensor score = b.q.matmul(b.k.transpose(-1, -2)).mul_(task.scale);
      score.unflatten(2, {q.size(2) / kv_heads, b.rows}).masked_fill_(b.hidden, -INFINITY);
      return score;
    }
    Task task;
    int64_t length, kv_heads;
    at::Tensor q;     // [B, L, H, A]
    at::Tensor k, v;  // [B, G, L, A]
  };
};

/// LibTorch's fused kernel on the CPU: causal, one width for queries, keys and values.
struct CpuFlash {
  static Output forward(const at::Tensor& q_BLHA, const at::Tensor& k_BLGA, const at::Tensor& v_BLGA, Task task) {
    auto [y, lse] = at::_scaled_dot_product_flash_attention_for_cpu(q_BLHA.transpose(1, 2), k_BLGA.transpose(1, 2),
                                                                    v_BLGA.transpose(1, 2), 0.0, /*is_causal=*/true, {},
                                                                    task.scale);
    return {y.transpose(1, 2), lse};
  }
  static Gradients backward(const at::Tensor& d_BLHA, const at::Tensor& q_BLHA, const at::Tensor& k_BLGA,
                            const at::Tensor& v_BLGA, const at::Tensor& y_BLHA, const at::Tensor& lse_BHL, Task task) {
    auto [d_q, d_k, d_v] = at::_scaled_dot_product_flash_attention_for_cpu_backward(
        d_BLHA.transpose(1, 2), q_BLHA.transpose(1, 2), k_BLGA.transpose(1, 2), v_BLGA.transpose(1, 2),
        y_BLHA.transpose(1, 2), lse_BHL, 0.0, /*is_causal=*/true, {}, task.scale);
    return {d_q.transpose(1, 2), d_k.transpose(1, 2), d_v.transpose(1, 2)};
  }
};

enum class Kernel : int64_t { kBlocks, kCpuFlash };

// Sinks and windows on top of kernels that know no sinks. A kernel gives y' = sum_j exp(s_ij - lse) v_j; with the sink
// in the denominator, l = ln(exp(lse) + exp(sink)), it is y = y' exp(lse - l). Backward kernels compute their
// probabilities from the log-sum-exp that they are handed, and dy . y in place of the softmax's inner sum: with l and y
// they give the exact gradients of softmax with a sink as they stand. The sink's own: d sink = -sum_i exp(sink - l_i)
// (dy_i . y_i).
struct KernelAttention : torch::autograd::Function<KernelAttention> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& q, const at::Tensor& k,
                            const at::Tensor& v, const std::optional<at::Tensor>& sinks_H, Kernel kernel, Task task) {
    Output output =
        kernel == Kernel::kBlocks ? BlockAttention::forward(q, k, v, task) : CpuFlash::forward(q, k, v, task);
    at::Tensor lse = output.lse_BHL, y = output.y_BLHA;
    if (sinks_H) {
      at::Tensor with_sink = at::logaddexp(lse, of_heads(*sinks_H, lse));
      y = y * (lse - with_sink).exp_().transpose(1, 2).unsqueeze(-1);
      lse = with_sink;
    }
    y = y.to(q.scalar_type());
    context->save_for_backward({q, k, v, y, lse, sinks_H.value_or(at::Tensor())});
    context->saved_data["kernel"] = static_cast<int64_t>(kernel);
    context->saved_data["scale"] = task.scale;
    context->saved_data["window"] = task.window;
    return y;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list d_y) {
    const auto saved = context->get_saved_variables();
    const at::Tensor &q = saved[0], &k = saved[1], &v = saved[2], &y = saved[3], &lse = saved[4], &sinks_H = saved[5];
    const Kernel kernel = static_cast<Kernel>(context->saved_data["kernel"].toInt());
    const Task task{context->saved_data["scale"].toDouble(), context->saved_data["window"].toInt()};
    const at::Tensor d = d_y[0].contiguous();
    Gradients g = kernel == Kernel::kBlocks ? BlockAttention::backward(d, q, k, v, y, lse, task)
                                            : CpuFlash::backward(d, q, k, v, y, lse, task);
    at::Tensor d_sinks;
    if (sinks_H.defined() && context->needs_input_grad(3)) {
      const at::Tensor delta_BHL = (d.to(lse.scalar_type()) * y).sum(-1).transpose(1, 2);
      d_sinks = ((of_heads(sinks_H, lse) - lse).exp_() * delta_BHL)
                    .sum(at::IntArrayRef({0, 2}))
                    .neg_()
                    .to(sinks_H.scalar_type());
    }
    return {g.q, g.k, g.v, d_sinks, at::Tensor(), at::Tensor()};
  }

 private:
  static at::Tensor of_heads(const at::Tensor& sinks_H, const at::Tensor& lse_BHL) {
    return sinks_H.to(lse_BHL.scalar_type()).view({1, -1, 1});
  }
};

at::Tensor kernel_attention(const at::Tensor& q_BLHA, const at::Tensor& k_BLGA, const at::Tensor& v_BLGA, Task task,
                            const at::Tensor& sinks_H) {
  const std::optional<at::Tensor> sinks = sinks_H.defined() ? std::optional(sinks_H) : std::nullopt;
  const int64_t value_dim = v_BLGA.size(-1);
  if (!q_BLHA.is_cpu() || task.window > 0) {
    return KernelAttention::apply(q_BLHA, k_BLGA, v_BLGA, sinks, Kernel::kBlocks, task);
  }
  const int64_t width = std::max(q_BLHA.size(-1), value_dim);
  // Zero features add nothing to a score and to no other feature of a value.
  return KernelAttention::apply(padded(q_BLHA, width), padded(k_BLGA, width), padded(v_BLGA, width), sinks,
                                Kernel::kCpuFlash, task)
      .narrow(-1, 0, value_dim);
}

at::Tensor causal_attention(const at::Tensor& q_BLHA, const at::Tensor& k_BLGA, const at::Tensor& v_BLGA, double scale,
                            const at::Tensor& sinks_H) {
  return sinks_H.defined() ? kernel_attention(q_BLHA, k_BLGA, v_BLGA, {scale}, sinks_H)
                           : causal_attention(q_BLHA, k_BLGA, v_BLGA, scale);
}

// A chunk is a document of its own: the full ones become rows of a larger batch, what is left behind them is another.
at::Tensor chunked_attention(const at::Tensor& q_BLHA, const at::Tensor& k_BLGA, const at::Tensor& v_BLGA,
                             int64_t chunk, double scale, const at::Tensor& sinks_H) {
  const int64_t batch = q_BLHA.size(0), length = q_BLHA.size(1), full = length / chunk, left = length % chunk;
  const auto chunks = [&](const at::Tensor& x) {
    return x.narrow(1, 0, full * chunk).unflatten(1, {full, chunk}).flatten(0, 1);
  };
  at::Tensor out = causal_attention(chunks(q_BLHA), chunks(k_BLGA), chunks(v_BLGA), scale, sinks_H)
                       .unflatten(0, {batch, full})
                       .flatten(1, 2);
  if (left == 0) return out;
  const auto rest = [&](const at::Tensor& x) { return x.narrow(1, full * chunk, left); };
  return at::cat({out, causal_attention(rest(q_BLHA), rest(k_BLGA), rest(v_BLGA), scale, sinks_H)}, 1);
}

}  // namespace

at::Tensor dense_attention(const at::Tensor& q_BLHA, const at::Tensor& k_BLGA, const at::Tensor& v_BLGA,
                           const MaskSpec& mask, double softmax_scale, const at::Tensor& sinks_H) {
  MT_CHECK(q_BLHA.size(2) % k_BLGA.size(2) == 0, q_BLHA.size(2), " query heads on ", k_BLGA.size(2), " key heads");
  if (mask.is_causal_up_to(q_BLHA.size(1))) return causal_attention(q_BLHA, k_BLGA, v_BLGA, softmax_scale, sinks_H);
  MT_CHECK(mask.size > 0, "a window or chunk of ", mask.size, " tokens");
  if (mask.kind == MaskSpec::Kind::kChunk) {
    return chunked_attention(q_BLHA, k_BLGA, v_BLGA, mask.size, softmax_scale, sinks_H);
  }
  return kernel_attention(q_BLHA, k_BLGA, v_BLGA, {softmax_scale, mask.size}, sinks_H);
}

}  // namespace moetune
