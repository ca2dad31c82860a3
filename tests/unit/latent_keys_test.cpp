// Keys and values of latent attention, against their equations written out.
#include "moe/attention/latent_keys.h"

#include <torch/csrc/autograd/autograd.h>

#include "tests/support/catch.h"
#include "tests/support/rotation.h"

using namespace moetune;

TEST_CASE("every head has its own features and the one rotated key, and values stay where they are", "[latent_keys]") {
  constexpr int64_t U = 7, H = 3, kHalf = 2, kRotary = 2 * kHalf;
  for (const RotarySpec::Layout layout : kLayouts) {
    for (const auto& [nope, value] : {std::pair{4, 4}, std::pair{5, 3}, std::pair{2, 7}}) {
      INFO("layout " << static_cast<int>(layout) << ", " << nope << " features, values of " << value);
      const RopeAngles angles = some_angles(U, kHalf, layout);
      const at::Tensor kv = leaf(random_normal({U, H * (nope + value)}, 1)), both = leaf(random_normal({U, 9}, 2));
      const at::Tensor key = both.narrow(1, 5, kRotary);  // as it lies beside the latent
      const LatentKeys found = latent_keys(kv, key, H, nope, angles);
      CHECK(found.v_UHA.data_ptr() == static_cast<double*>(kv.data_ptr()) + nope);
      const at::Tensor kv_UHA = kv.view({U, H, nope + value});
      const at::Tensor rotated = rotation_written_out(key.unsqueeze(1), 0, angles);
      const at::Tensor k = at::cat({kv_UHA.narrow(2, 0, nope), rotated.expand({-1, H, -1})}, 2);
      const at::Tensor v = kv_UHA.narrow(2, nope, value);
      CHECK(at::equal(found.k_UHA, k));
      CHECK(at::equal(found.v_UHA, v));
      const at::Tensor d_k = random_normal(k.sizes(), 3), wide_d_v = random_normal({U, H, value + 2}, 4);
      const at::Tensor d_v = wide_d_v.narrow(2, 2, value);
      const auto got = torch::autograd::grad({found.k_UHA, found.v_UHA}, {kv, both}, {d_k, d_v}, true);
      const auto wanted = torch::autograd::grad({k, v}, {kv, both}, {d_k, d_v}, true);
      CHECK(at::equal(got[0], wanted[0]));
      CHECK(distance(got[1], wanted[1]) < 1e-14);
      // One of the two alone.
      CHECK(
          at::equal(torch::autograd::grad({found.v_UHA}, {kv}, {d_v})[0], torch::autograd::grad({v}, {kv}, {d_v})[0]));
    }
  }
}

TEST_CASE("no rows have no keys", "[latent_keys]") {
  const at::Tensor kv = leaf(at::zeros({0, 12}, at::kDouble)), key = leaf(at::zeros({0, 2}, at::kDouble));
  const LatentKeys found = latent_keys(kv, key, 2, 4, some_angles(0, 1, RotarySpec::Layout::kPairs));
  CHECK(found.k_UHA.sizes() == at::IntArrayRef({0, 2, 6}));
  CHECK(found.v_UHA.sizes() == at::IntArrayRef({0, 2, 2}));
  const auto d = torch::autograd::grad({found.k_UHA, found.v_UHA}, {kv, key},
                                       {at::zeros_like(found.k_UHA), at::zeros_like(found.v_UHA)});
  CHECK(d[0].sizes() == kv.sizes());
  CHECK(d[1].sizes() == key.sizes());
}
