// Rows by expert and back on a GPU against the CPU's plain operations in fp64, run by run of experts.
#include "moe/row_gather.h"

#include "lora/grouped_mm.h"
#include "tests/support/catch.h"
#include "tests/support/numbers.h"

using namespace moetune;

namespace {

double bound(at::ScalarType dtype) { return dtype == at::kBFloat16 ? 4e-3 : dtype == at::kFloat ? 1e-6 : 1e-14; }

at::Tensor wide(const at::Tensor& tensor) { return tensor.to(at::kCPU, at::kDouble); }

struct Routed {
  std::vector<int64_t> rows_of_expert;
  at::Tensor slot_X;
};

/// Y rows with K slots, each of one of `experts` or of none; the last expert has no row and the first one at most.
Routed routed(int64_t Y, int64_t K, int64_t experts) {
  const at::Tensor expert_S = at::randint(1, experts + 3, {Y * K}, at::kLong);
  expert_S.masked_fill_(expert_S.eq(experts - 1), experts);
  if (Y * K > 5) expert_S[5] = 0;
  const auto [sorted, order] = expert_S.sort(/*stable=*/true, 0, false);
  Routed result;
  int64_t total = 0;
  for (int64_t e = 0; e < experts; ++e) {
    result.rows_of_expert.push_back(expert_S.eq(e).sum().item<int64_t>());
    total += result.rows_of_expert.back();
  }
  result.slot_X = order.narrow(0, 0, total);
  return result;
}

}  // namespace

TEST_CASE("rows by expert and back on a GPU are those of the CPU", "[row_gather]") {
  at::manual_seed(11);
  for (const auto dtype : {at::kBFloat16, at::kFloat, at::kDouble}) {
    for (const int64_t D : {1, 5, 64, 2884, 7168, 16640}) {
      for (const auto& [Y, K] : std::vector<std::pair<int64_t, int64_t>>{{0, 4}, {1, 1}, {37, 8}, {129, 1}, {23, 40}}) {
        INFO(c10::toString(dtype) << ", " << Y << " rows of " << D << ", " << K << " places");
        const auto on_gpu = at::device(at::kCUDA).dtype(dtype);
        const Routed r = routed(Y, K, 6);
        const int64_t X = r.slot_X.size(0);
        const at::Tensor row_X = r.slot_X.floor_divide(K), place_YK = places_of(r.slot_X, Y, K);
        const at::Tensor slot_gpu = r.slot_X.cuda(), row_gpu = row_X.cuda(), place_gpu = places_of(slot_gpu, Y, K);
        CHECK(at::equal(place_gpu.cpu(), place_YK));

        const at::Tensor y_YD = at::randn({Y, D}, on_gpu);
        // Of rows that begin at no multiple of 16 bytes, too, and to rows with columns to spare; the allocator hands
        // out what was NaN.
        const at::Tensor odd_YD = at::empty({Y, D + 1}, on_gpu).narrow(1, 1, D).copy_(y_YD);
        for (const int64_t gap : {0, 8, 3}) {
          for (const at::Tensor& from : {y_YD, odd_YD}) {
            at::full({X, D + gap}, std::numeric_limits<double>::quiet_NaN(), on_gpu);
            const at::Tensor got = gather_rows(from, row_gpu, D + gap);
            CHECK(got.sizes() == at::IntArrayRef({X, D + gap}));
            CHECK(at::equal(got.narrow(1, 0, D).cpu(), y_YD.cpu().index_select(0, row_X)));
          }
        }

        const at::Tensor rows_XD = at::randn({X, D}, on_gpu), before = at::randn({Y, D}, on_gpu);
        for (const int64_t length : {1, 4, 6}) {
          at::Tensor sum = before.clone(), again = before.clone(), expected = wide(before);
          for (at::Tensor* target : {&sum, &again, &expected}) {
            int64_t first = 0;
            for (const RowGroups& run : RowGroups::runs(r.rows_of_expert, length, at::kCPU)) {
              const int64_t count = run.num_rows();
              const at::Tensor rows = rows_XD.narrow(0, first, count);
              if (target == &expected) gather_sum(wide(rows), {row_X.narrow(0, first, count), {}, 0}, *target);
              else gather_sum(rows, {row_gpu.narrow(0, first, count), place_gpu, first}, *target);
              first += count;
            }
            CHECK(first == X);
          }
          if (Y > 0) CHECK(distance(wide(sum), expected) < bound(dtype));
          CHECK(at::equal(sum, again));
          const at::Tensor untouched = place_YK.lt(0).all(1);
          CHECK(at::equal(sum.cpu().masked_select(untouched.unsqueeze(1)),
                          before.cpu().masked_select(untouched.unsqueeze(1))));
        }
      }
    }
  }
}
