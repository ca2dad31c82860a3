// Pieces that come and go through two buffers each way, in the order in which they were asked for.
#include "trainer/update/host_window.h"

#include "parallel/base/error.h"
#include "tests/support/catch.h"
#include "tests/support/message_of.h"

using namespace moetune;

TEST_CASE("pieces come in their order, one ahead, and go back", "[host_window]") {
  HostWindow window(at::kCPU, {at::kFloat, 7}, {at::kBFloat16, 7});
  const at::Tensor from = at::arange(23, at::kFloat), to = at::full({23}, -1, at::kBFloat16);
  const std::vector<int64_t> counts = {7, 1, 7, 5, 3};
  int64_t fetched = 0, taken = 0;
  const auto fetch = [&](size_t i) {
    window.fetch(from.narrow(0, fetched, counts[i]));
    fetched += counts[i];
  };
  fetch(0);
  for (size_t i = 0; i < counts.size(); ++i) {
    const at::Tensor here = window.take();
    if (i + 1 < counts.size()) fetch(i + 1);
    // The next one's arrival leaves it as it is.
    CHECK(at::equal(here, from.narrow(0, taken, counts[i])));
    const at::Tensor fresh = window.place(counts[i]);
    fresh.copy_(here);
    window.send(fresh, to.narrow(0, taken, counts[i]));
    taken += counts[i];
  }
  CHECK(at::equal(to.to(at::kFloat), from));
}

TEST_CASE("a window takes no more than it holds, and holds no more than passes", "[host_window]") {
  HostWindow window(at::kCPU, {at::kFloat, 4}, {at::kBFloat16});
  const at::Tensor numbers = at::ones({5}, at::kFloat);
  CHECK(contains(message_of<InternalError>([&] { window.fetch(numbers); }), "5 numbers in a window of 4"));
  CHECK(contains(message_of<InternalError>([&] { window.place(1); }), "1 numbers in a window of 0"));
  CHECK(contains(message_of<InternalError>([&] { window.take(); }), "nothing was fetched"));
  window.fetch(numbers.narrow(0, 0, 4));
  window.fetch(numbers.narrow(0, 0, 2));
  CHECK(contains(message_of<InternalError>([&] { window.fetch(numbers.narrow(0, 0, 1)); }), "a third fetch"));
  CHECK(HostWindow::bytes({at::kFloat, 4}) == 2 * 4 * 4);
  CHECK(HostWindow::bytes({at::kBFloat16, 3 * HostWindow::kNumbers}) == 2 * HostWindow::kNumbers * 2);
  CHECK(HostWindow::bytes({at::kFloat}) == 0);
}
