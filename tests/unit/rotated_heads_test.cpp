// Rotary features turned in place, against the rotation written out.
#include "moe/attention/rotated_heads.h"

#include <torch/csrc/autograd/autograd.h>

#include "tests/support/catch.h"
#include "tests/support/rotation.h"

using namespace moetune;

TEST_CASE("features of packed heads turn where they lie, and their gradients turn back", "[rotated_heads]") {
  constexpr int64_t U = 7, H = 3, kHalf = 4;
  for (const RotarySpec::Layout layout : kLayouts) {
    for (const auto& [first, width] : {std::pair{0, 8}, std::pair{0, 13}, std::pair{5, 13}, std::pair{3, 12}}) {
      INFO("layout " << static_cast<int>(layout) << ", first " << first << " of " << width);
      for (const auto& [dtype, bound] :
           {std::pair{at::kDouble, 0.0}, std::pair{at::kFloat, 0.0}, std::pair{at::kBFloat16, 0.0}}) {
        const RopeAngles angles = angles_as(some_angles(U, kHalf, layout), at::TensorOptions(dtype));
        const at::Tensor x = leaf(random_normal({U, H, width}, 1).to(dtype)),
                         d = random_normal({U, H, width}, 2).to(dtype);
        const at::Tensor fresh = x.flatten(1) * 1.0;
        const at::Tensor y = rotated_heads(fresh, H, first, angles);
        CHECK(y.data_ptr() == fresh.data_ptr());
        const at::Tensor expected = rotation_written_out(x, first, angles);
        CHECK(distance(y.view({U, H, width}), expected) <= bound);
        const at::Tensor given = d.flatten(1).clone();
        CHECK(distance(torch::autograd::grad({y}, {x}, {given})[0], torch::autograd::grad({expected}, {x}, {d})[0]) <=
              bound);
        CHECK(at::equal(given, d.flatten(1)));
        // Heads apart, as a norm hands them over.
        const at::Tensor apart = rotated_heads(x * 1.0, H, first, angles);
        CHECK(at::equal(apart, y.view({U, H, width})));
        CHECK(distance(torch::autograd::grad({apart}, {x}, {d})[0],
                       torch::autograd::grad({rotation_written_out(x, first, angles)}, {x}, {d})[0]) <= bound);
      }
    }
  }
}

TEST_CASE("rotating what another node keeps is refused, and no rows are rotated to none", "[rotated_heads]") {
  const RopeAngles angles = some_angles(2, 1, RotarySpec::Layout::kPairs);
  const at::Tensor x = leaf(random_normal({2, 4}, 1)), doubled = x * 2.0, kept = doubled.square();
  rotated_heads(doubled, 2, 0, angles);
  CHECK_THROWS(torch::autograd::grad({kept}, {x}, {at::ones_like(kept)}));
  const at::Tensor none = leaf(at::zeros({0, 4}, at::kDouble));
  const at::Tensor y = rotated_heads(none * 1.0, 2, 0, some_angles(0, 1, RotarySpec::Layout::kPairs));
  CHECK(torch::autograd::grad({y}, {none}, {at::zeros_like(y)})[0].sizes() == none.sizes());
}
