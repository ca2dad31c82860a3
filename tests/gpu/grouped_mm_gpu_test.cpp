// The grouped kernel of a GPU against products expert by expert, with experts that have no row at all.
#include "lora/grouped_mm.h"

#include "parallel/base/error.h"
#include "parallel/device/gpu_support.h"
#include "tests/support/catch.h"
#include "tests/support/message_of.h"

using namespace moetune;

namespace {

double relative(const at::Tensor& actual, const at::Tensor& expected) {
  const at::Tensor wide = expected.to(at::kCPU, at::kDouble);
  return ((actual.to(at::kCPU, at::kDouble) - wide).norm() / wide.norm()).item<double>();
}

}  // namespace

TEST_CASE("A GPU without a grouped kernel goes expert by expert, to the same result", "[grouped_mm]") {
  // Forced here, so that GPUs that cannot be had are proved on one that has the kernel.
  const auto bf16 = at::device(at::kCUDA).dtype(at::kBFloat16);
  at::manual_seed(4);
  const std::vector<int64_t> counts{3, 0, 129, 64, 0};
  const RowGroups groups = RowGroups::from_counts(counts, at::kCUDA), host = RowGroups::from_counts(counts, at::kCPU);
  const int64_t rows = groups.num_rows(), inputs = 64, outputs = 96;
  const at::Tensor x_XI = at::randn({rows, inputs}, bf16), y_XO = at::randn({rows, outputs}, bf16);
  const at::Tensor w_eOI = at::randn({groups.num_groups(), outputs, inputs}, bf16);
  auto wide = [](const at::Tensor& tensor) { return tensor.to(at::kCPU, at::kDouble); };
  const at::Tensor grouped = grouped_mm(x_XI, w_eOI.transpose(1, 2), groups);
  RowGroups plain = groups;
  plain.one_kernel = false;
  at::full({groups.num_groups() * outputs * inputs}, 1e30, bf16);
  const at::Tensor by_expert = grouped_mm(x_XI, w_eOI.transpose(1, 2), plain);
  CHECK(relative(by_expert, grouped_mm(wide(x_XI), wide(w_eOI).transpose(1, 2), host)) < 5e-3);
  CHECK(relative(by_expert, grouped) < 5e-3);
  CHECK(relative(grouped_mm(y_XO, w_eOI, plain), grouped_mm(wide(y_XO), wide(w_eOI), host)) < 5e-3);
  const at::Tensor outer = grouped_outer(y_XO, x_XI, plain);
  CHECK(relative(outer, grouped_outer(wide(y_XO), wide(x_XI), host)) < 5e-3);
  CHECK(outer[1].abs().max().item<double>() == 0.0);
}

TEST_CASE("Sizes and places that the grouped kernel does not take are filled up for it", "[grouped_mm]") {
  const auto bf16 = at::device(at::kCUDA).dtype(at::kBFloat16);
  at::manual_seed(6);
  const std::vector<int64_t> counts{3, 0, 129, 64, 0};
  const RowGroups groups = RowGroups::from_counts(counts, at::kCUDA), host = RowGroups::from_counts(counts, at::kCPU);
  const int64_t rows = groups.num_rows(), experts = groups.num_groups();
  const auto wide = [](const at::Tensor& tensor) { return tensor.to(at::kCPU, at::kDouble); };
  for (const auto& [inputs, outputs] : {std::pair<int64_t, int64_t>{64, 4}, {4, 96}, {3, 5}, {60, 1}, {64, 96}}) {
    INFO(inputs << " inputs, " << outputs << " outputs");
    // Rows that begin anywhere among poison.
    const auto apart = [&](int64_t columns) {
      const at::Tensor all = at::full({rows, columns + 3}, NAN, bf16);
      return all.narrow(1, 1, columns).copy_(at::randn({rows, columns}, bf16));
    };
    const at::Tensor x_XI = apart(inputs), y_XO = apart(outputs), w_eOI = at::randn({experts, outputs, inputs}, bf16);
    at::full({experts * 128 * 128}, NAN, bf16);  // what the allocator hands out again
    const at::Tensor product = grouped_mm(x_XI, w_eOI.transpose(1, 2), groups);
    CHECK(product.sizes() == at::IntArrayRef({rows, outputs}));
    CHECK(relative(product, grouped_mm(wide(x_XI), wide(w_eOI).transpose(1, 2), host)) < 5e-3);
    CHECK(relative(grouped_mm(y_XO, w_eOI, groups), grouped_mm(wide(y_XO), wide(w_eOI), host)) < 5e-3);
    const at::Tensor outer = grouped_outer(y_XO, x_XI, groups);
    CHECK(outer.sizes() == at::IntArrayRef({experts, outputs, inputs}));
    CHECK(relative(outer, grouped_outer(wide(y_XO), wide(x_XI), host)) < 5e-3);
    CHECK(outer[1].abs().max().item<double>() == 0.0);
  }
}

TEST_CASE("This GPU is one of those that the kernels are built for", "[gpu_support]") {
  require_supported_gpu(0);
  const ComputeCapability gpu = compute_capability(0);
  CHECK(gpu.major >= 8);
  CHECK(message_of<UserError>([] { compute_capability(1000); }).find("GPU 1000 does not answer") == 0);
}

TEST_CASE("Grouped products in bf16 on CUDA equal those expert by expert in fp64", "[grouped_mm]") {
  const auto bf16 = at::device(at::kCUDA).dtype(at::kBFloat16);
  at::manual_seed(3);
  for (const std::vector<int64_t>& counts : {std::vector<int64_t>{0, 5, 128, 0, 1, 300, 0}, {7, 0, 0, 0}, {0, 0, 64}}) {
    const RowGroups groups = RowGroups::from_counts(counts, at::kCUDA);
    const RowGroups host = RowGroups::from_counts(counts, at::kCPU);
    const int64_t num_experts = groups.num_groups(), rows = groups.num_rows(), inputs = 64, outputs = 96;
    const at::Tensor x_XI = at::randn({rows, inputs}, bf16), y_XO = at::randn({rows, outputs}, bf16);
    const at::Tensor w_eOI = at::randn({num_experts, outputs, inputs}, bf16);
    auto wide = [](const at::Tensor& tensor) { return tensor.to(at::kCPU, at::kDouble); };
    // Memory that the allocator hands out again must not show in what no row writes.
    at::full({num_experts * outputs * inputs}, 1e30, bf16);
    CHECK(relative(grouped_mm(x_XI, w_eOI.transpose(1, 2), groups),
                   grouped_mm(wide(x_XI), wide(w_eOI).transpose(1, 2), host)) < 5e-3);
    CHECK(relative(grouped_mm(y_XO, w_eOI, groups), grouped_mm(wide(y_XO), wide(w_eOI), host)) < 5e-3);
    const at::Tensor outer = grouped_outer(y_XO, x_XI, groups);
    CHECK(relative(outer, grouped_outer(wide(y_XO), wide(x_XI), host)) < 5e-3);
    for (int64_t expert = 0; expert < num_experts; ++expert) {
      if (counts[expert] == 0) CHECK(outer[expert].abs().max().item<double>() == 0.0);
    }
    const std::vector<RowGroups> parts = RowGroups::runs(counts, 2, at::kCUDA),
                                 on_host = RowGroups::runs(counts, 2, at::kCPU);
    int64_t first = 0, row = 0;
    for (size_t i = 0; i < parts.size(); ++i) {
      const RowGroups& part = parts[i];
      CHECK(at::equal(part.ends_e.cpu(), on_host[i].ends_e));
      const at::Tensor part_rows = x_XI.narrow(0, row, part.num_rows());
      const at::Tensor part_w = w_eOI.narrow(0, first, part.num_groups());
      if (part.num_rows() > 0) {
        CHECK(relative(grouped_mm(part_rows, part_w.transpose(1, 2), part),
                       grouped_mm(wide(part_rows), wide(part_w).transpose(1, 2), on_host[i])) < 5e-3);
      }
      first += part.num_groups();
      row += part.num_rows();
    }
  }
}
