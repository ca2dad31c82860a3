#include "tests/support/catch.h"

#include "lora/scratch.h"
#include "parallel/base/error.h"
#include "tests/support/message_of.h"

using namespace moetune;

TEST_CASE("what is taken from a scratch does not overlap, starts aligned, and is poisoned when given back",
          "[scratch]") {
  for (const at::ScalarType dtype : {at::kBFloat16, at::kFloat, at::kDouble}) {
    Scratch scratch(at::kCPU, dtype);
    scratch.reserve(1000);
    scratch.poison_released(true);
    const at::Tensor a = scratch.take({3, 5}).fill_(1);
    const int64_t mark = scratch.mark();
    const at::Tensor b = scratch.take({7}).fill_(2), c = scratch.take({0, 4}), d = scratch.take({65}).fill_(3);
    CHECK(c.numel() == 0);
    for (const at::Tensor& piece : {a, b, d}) {
      CHECK((static_cast<char*>(piece.data_ptr()) - static_cast<char*>(a.data_ptr())) % 128 == 0);
      CHECK(piece.scalar_type() == dtype);
    }
    CHECK(a.eq(1).all().item<bool>());
    CHECK(b.eq(2).all().item<bool>());
    scratch.release_to(mark);
    CHECK(b.isnan().all().item<bool>());
    CHECK(d.isnan().all().item<bool>());
    CHECK(a.eq(1).all().item<bool>());
    CHECK(scratch.take({7}).data_ptr() == b.data_ptr());
    scratch.reset();
    CHECK(a.isnan().all().item<bool>());
    CHECK(scratch.mark() == 0);
  }
}

TEST_CASE("a scratch gives what was reserved and no more", "[scratch]") {
  Scratch scratch(at::kCPU, at::kFloat);
  CHECK(scratch.bytes() == 0);
  CHECK(contains(message_of<InternalError>([&] { scratch.take({1}); }), "cannot give 1"));
  scratch.reserve(10000);
  // The sum of what is taken counts, not how many pieces it comes in.
  for (int piece = 0; piece < 50; ++piece) scratch.take({200});
  CHECK(contains(message_of<InternalError>([&] { scratch.reserve(1); }), "in use"));
  CHECK(contains(message_of<InternalError>([&] { scratch.take({10000}); }), "cannot give 10000"));
  scratch.reset();
  const int64_t bytes = scratch.bytes();
  CHECK(bytes >= 40000);
  scratch.reserve(5000);
  CHECK(scratch.bytes() == bytes);
}
