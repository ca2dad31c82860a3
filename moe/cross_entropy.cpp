#include "moe/cross_entropy.h"

#include "lora/adapters/parameter.h"
#include "moe/cross_entropy_kernels.h"
#include "parallel/device/row_kernels.h"

namespace moetune {

at::Tensor log_sum_exp(const at::Tensor& logits_CV) {
  const at::ScalarType wide = accumulate_dtype(logits_CV.scalar_type());
  if (!has_row_kernels(logits_CV)) return logits_CV.to(wide).logsumexp(-1, /*keepdim=*/true);
  const at::Tensor rows = logits_CV.contiguous();
  const at::Tensor log_sum_C1 = at::empty({rows.size(0), 1}, rows.options().dtype(wide));
  launch_rows(rows, [&](auto number, cudaStream_t stream) {
    using Number = decltype(number);
    log_sum_exp_cuda(numbers_of<const Number>(rows), rows.size(0), rows.size(1), numbers_of<Wide<Number>>(log_sum_C1),
                     stream);
  });
  return log_sum_C1;
}

at::Tensor cross_entropy_gradient(at::Tensor logits_CV, const at::Tensor& log_sum_C1, const TargetColumns& target,
                                  double scale, const at::Tensor& weight_C1) {
  const at::NoGradGuard no_grad;
  const at::ScalarType compute = logits_CV.scalar_type(), wide = accumulate_dtype(compute);
  if (!has_row_kernels(logits_CV)) {
    at::Tensor d_logits_CV = logits_CV.to(wide);
    logits_CV.reset();
    d_logits_CV.sub_(log_sum_C1).exp_();
    d_logits_CV.scatter_add_(1, target.column_C1, target.own_C1.to(wide).neg_());
    d_logits_CV.mul_(scale);
    if (weight_C1.defined()) d_logits_CV.mul_(weight_C1);
    return d_logits_CV.to(compute);
  }
  const at::Tensor rows = logits_CV.contiguous(), log_sum_C = log_sum_C1.contiguous(),
                   column_C = target.column_C1.contiguous(), own_C = target.own_C1.contiguous();
  const at::Tensor weight_C = weight_C1.defined() ? weight_C1.contiguous() : at::Tensor();
  launch_rows(rows, [&](auto number, cudaStream_t stream) {
    using Number = decltype(number);
    CrossEntropyGradient<Number> arguments;
    arguments.logits = numbers_of<Number>(rows);
    arguments.rows = rows.size(0);
    arguments.vocab = rows.size(1);
    arguments.log_sum = numbers_of<const Wide<Number>>(log_sum_C);
    arguments.target = column_C.const_data_ptr<int64_t>();
    arguments.own = own_C.const_data_ptr<bool>();
    arguments.weight = numbers_of<const Wide<Number>>(weight_C);
    arguments.scale = scale;
    cross_entropy_gradient_cuda(arguments, stream);
  });
  return rows;
}

}  // namespace moetune
