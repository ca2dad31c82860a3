// Rows gathered and partial results scattered over the ranks of a tensor axis, forward and backward, in whole numbers.
#include "parallel/comm/tensor_axis.h"

#include <torch/csrc/autograd/autograd.h>

#include "parallel/comm/communicator.h"
#include "tests/support/catch.h"
#include "tests/support/dist.h"

using namespace moetune;

namespace {

struct Axis {
  std::unique_ptr<Communicator> group = test_launch().make_group(0, test_launch().rank(), "axis");
  TensorAxis axis{*group};
  int64_t P = group->size(), me = group->rank();
};

at::Tensor counted(int64_t first, int64_t rows, double factor = 1.0) {
  return ((at::arange(first, first + rows, test_options(at::kDouble)) + 1) * factor).unsqueeze(1) *
         at::tensor({1.0, -2.0}, test_options(at::kDouble));
}

/// This rank's rows of `num_rows` counted ones; zeros in place of padding.
at::Tensor own_rows(const Axis& a, int64_t num_rows, double factor = 1.0) {
  const int64_t T = a.axis.rows_of(num_rows);
  at::Tensor rows = counted(a.me * T, T, factor);
  rows.masked_fill_(
      (at::arange(a.me * T, a.me * T + T, test_options(at::kDouble)) >= static_cast<double>(num_rows)).unsqueeze(1), 0);
  return rows;
}

}  // namespace

TEST_CASE("rows are gathered in the order of the ranks, and each rank's gradient counts", "[tensor_axis]") {
  const Axis a;
  for (const int64_t num_rows : {0L, 1L, 2L, 5L, 8L, 13L}) {
    INFO(num_rows << " rows");
    at::Tensor x = own_rows(a, num_rows).requires_grad_();
    at::Tensor all = a.axis.gather_rows(x, num_rows);
    CHECK(at::equal(all, counted(0, num_rows)));
    // Rank r has the gradient (r + 1) times the row's number: P (P + 1) / 2 of it together, none for padding.
    const auto got = torch::autograd::grad({all}, {x}, {counted(0, num_rows, static_cast<double>(a.me + 1))});
    CHECK(at::equal(got[0], own_rows(a, num_rows, static_cast<double>(a.P * (a.P + 1) / 2))));
  }
}

TEST_CASE("several matrices are gathered in one collective", "[tensor_axis]") {
  const Axis a;
  const at::Tensor x = own_rows(a, 5), thrice = at::cat({x, x, x}, 1) * 3;
  const int64_t before = a.group->bytes_sent();
  const std::vector<at::Tensor> all = a.axis.gather_rows(std::vector<at::Tensor>{x, thrice}, 5);
  CHECK(a.group->bytes_sent() - before == (a.P - 1) * x.size(0) * 8 * 8);
  REQUIRE(all.size() == 2);
  CHECK(at::equal(all[0], counted(0, 5)));
  CHECK(at::equal(all[1], at::cat({counted(0, 5, 3), counted(0, 5, 3), counted(0, 5, 3)}, 1)));
}

TEST_CASE("partial rows are summed where they belong, and every rank gets all of their gradient", "[tensor_axis]") {
  const Axis a;
  for (const int64_t num_rows : {0L, 1L, 2L, 5L, 8L, 13L}) {
    INFO(num_rows << " rows");
    at::Tensor partial = counted(0, num_rows, static_cast<double>(a.me + 1)).requires_grad_();
    at::Tensor own = a.axis.reduce_scatter_rows(partial);
    CHECK(at::equal(own, own_rows(a, num_rows, static_cast<double>(a.P * (a.P + 1) / 2))));
    // Whatever gradient padding has reaches nobody.
    at::Tensor d = own_rows(a, num_rows, 3.0);
    d.masked_fill_(d.eq(0), 77.0);
    CHECK(at::equal(torch::autograd::grad({own}, {partial}, {d})[0], counted(0, num_rows, 3.0)));
  }
}

TEST_CASE("a column-cut map and a row-cut one behind it are the whole maps", "[tensor_axis]") {
  const Axis a;
  constexpr int64_t U = 7, kWidth = 3;
  const int64_t hidden = 2 * a.P;
  auto numbers = [](int64_t rows, int64_t columns, int64_t modulus) {
    return (at::arange(rows * columns, test_options(at::kDouble)).remainder(modulus) - 2).view({rows, columns});
  };
  const at::Tensor x_all = numbers(U, kWidth, 7), up_all = numbers(hidden, kWidth, 5),
                   down_all = numbers(kWidth, hidden, 4), d_all = numbers(U, kWidth, 3);
  // One rank: y = (x up^T)^2 down^T + x, dx and the gradients of both maps.
  at::Tensor x_whole = x_all.clone().requires_grad_(), up_whole = up_all.clone().requires_grad_(),
             down_whole = down_all.clone().requires_grad_();
  at::Tensor y_whole = x_whole.matmul(up_whole.t()).square().matmul(down_whole.t()) + x_whole;
  const auto wanted = torch::autograd::grad({y_whole}, {x_whole, up_whole, down_whole}, {d_all});

  const int64_t T = a.axis.rows_of(U), first = std::min(U, a.me * T), real = std::min(U, first + T) - first;
  auto own = [&](const at::Tensor& all) {
    at::Tensor rows = at::zeros({T, all.size(1)}, all.options());
    rows.narrow(0, 0, real).copy_(all.narrow(0, first, real));
    return rows;
  };
  at::Tensor x = own(x_all).requires_grad_();
  at::Tensor up = up_all.narrow(0, 2 * a.me, 2).clone().requires_grad_(),
             down = down_all.narrow(1, 2 * a.me, 2).clone().requires_grad_();
  at::Tensor y = a.axis.reduce_scatter_rows(a.axis.gather_rows(x, U).matmul(up.t()).square().matmul(down.t())) + x;
  CHECK(at::equal(y, own(y_whole.detach())));
  const auto got = torch::autograd::grad({y}, {x, up, down}, {own(d_all)});
  CHECK(at::equal(got[0], own(wanted[0])));
  CHECK(at::equal(got[1], wanted[1].narrow(0, 2 * a.me, 2)));
  CHECK(at::equal(got[2], wanted[2].narrow(1, 2 * a.me, 2)));
}

TEST_CASE("an axis of one rank is the identity, without copies", "[tensor_axis]") {
  const auto alone = test_launch().make_group(test_launch().rank(), 0, "alone");
  for (const TensorAxis& axis : {TensorAxis(), TensorAxis(*alone)}) {
    CHECK(axis.size() == 1);
    const at::Tensor x = counted(0, 3);
    CHECK(axis.gather_rows(x, 3).is_same(x));
    CHECK(axis.reduce_scatter_rows(x).is_same(x));
    axis.sum(x);
    axis.max(x);
    CHECK(at::equal(x, counted(0, 3)));
  }
  CHECK(alone->bytes_sent() == 0);
}
