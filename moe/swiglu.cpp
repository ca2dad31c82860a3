#include "moe/swiglu.h"

#include <torch/csrc/autograd/custom_function.h>

#include "moe/swiglu_kernels.h"
#include "parallel/device/row_kernels.h"

namespace moetune {
namespace {

at::Tensor forward(const at::Tensor& gate, const at::Tensor& up) {
  if (!has_row_kernels(gate)) return at::silu(gate) * up;
  const at::Tensor own_gate = gate.contiguous(), own_up = up.contiguous();
  const at::Tensor h = at::empty(gate.sizes(), gate.options());
  launch_rows(gate, [&](auto number, cudaStream_t stream) {
    using Number = decltype(number);
    swiglu_forward_cuda(numbers_of<const Number>(own_gate), numbers_of<const Number>(own_up), h.numel(),
                        numbers_of<Number>(h), stream);
  });
  return h;
}

struct Gradients {
  at::Tensor d_gate, d_up;
};

Gradients backward(const at::Tensor& gate, const at::Tensor& up, const at::Tensor& d_h) {
  if (!has_row_kernels(gate)) return {at::silu_backward(d_h * up, gate), d_h * at::silu(gate)};
  const at::Tensor own_gate = gate.contiguous(), own_up = up.contiguous(), own_d_h = d_h.contiguous();
  const at::Tensor d_gate = at::empty(gate.sizes(), gate.options()), d_up = at::empty_like(d_gate);
  launch_rows(gate, [&](auto number, cudaStream_t stream) {
    using Number = decltype(number);
    swiglu_backward_cuda(numbers_of<const Number>(own_gate), numbers_of<const Number>(own_up),
                         numbers_of<const Number>(own_d_h), d_gate.numel(), numbers_of<Number>(d_gate),
                         numbers_of<Number>(d_up), stream);
  });
  return {d_gate, d_up};
}

struct Swiglu : torch::autograd::Function<Swiglu> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& gate, const at::Tensor& up) {
    context->save_for_backward({gate, up});
    return moetune::forward(gate, up);
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list d_h) {
    const auto saved = context->get_saved_variables();
    const Gradients d = moetune::backward(saved[0], saved[1], d_h[0]);
    return {d.d_gate, d.d_up};
  }
};

}  // namespace

at::Tensor swiglu(const at::Tensor& gate, const at::Tensor& up) {
  MT_CHECK(gate.sizes() == up.sizes() && gate.scalar_type() == up.scalar_type(), "gate is ", gate.toString(), " ",
           gate.sizes(), ", up ", up.toString(), " ", up.sizes());
  return Swiglu::apply(gate, up);
}

}  // namespace moetune
