// Where a rank is, as messages say it.
#include "parallel/watch/rank_progress.h"

#include <stdexcept>

#include "tests/support/catch.h"

using namespace moetune;

TEST_CASE("places nest, and those that an exception left stay until it is told or caught", "[rank_progress]") {
  RankProgress progress;
  CHECK(progress.where().empty());
  {
    const RankProgress::Place trial(&progress, "trial");
    try {
      const RankProgress::Place layer(&progress, "layer 3");
      const RankProgress::Place product(&progress, "product");
      throw std::runtime_error("no memory");
    } catch (const std::runtime_error&) {
      CHECK(progress.where() == "trial, layer 3, product");
    }
  }
  CHECK(progress.where().empty());
  const RankProgress::Place step(&progress, "step 1");
  CHECK(progress.where() == "step 1");
}
