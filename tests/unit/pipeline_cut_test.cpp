// Cuts of a pipeline against all cuts there are: what a step takes is counted by walking a group down through the
// stages, as training does it.
#include "trainer/plan/pipeline_cut.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <random>

#include "tests/support/catch.h"

using namespace moetune;

namespace {

using Sizes = std::vector<int64_t>;

/// Every way to cut n items into so many runs, none empty.
std::vector<Sizes> all_cuts(int64_t n, int64_t parts) {
  if (parts == 1) return {{n}};
  std::vector<Sizes> cuts;
  for (int64_t first = 1; first <= n - parts + 1; ++first) {
    for (Sizes& rest : all_cuts(n - first, parts - 1)) {
      rest.insert(rest.begin(), first);
      cuts.push_back(rest);
    }
  }
  return cuts;
}

double dearest(const std::vector<double>& costs, const Sizes& sizes) {
  double most = 0.0;
  size_t item = 0;
  for (const int64_t size : sizes) {
    double sum = 0.0;
    for (int64_t i = 0; i < size; ++i) sum += costs.at(item++);
    most = std::max(most, sum);
  }
  CHECK(item == costs.size());
  return most;
}

/// How much later a group comes out below for the updates that each stage begins when the group sets out.
double delay(const PipelineLoad& load, const Sizes& sizes) {
  double now = 0.0, alone = 0.0;
  size_t block = 0;
  for (size_t stage = 0; stage < sizes.size(); ++stage) {
    const bool last = stage + 1 == sizes.size();
    double updated = 0.0;  // when the stage's optimizer is through with what came so far
    const auto await = [&](double update) {
      updated += update;
      now = std::max(now, updated);
    };
    if (stage == 0 || (last && load.ends_share_first)) await(load.first_update);
    for (int64_t i = 0; i < sizes[stage]; ++i, ++block) {
      await(load.update[block]);
      now += load.down[block];
      alone += load.down[block];
    }
    if (last) await(load.last_update);
  }
  return now - alone;
}

double step(const PipelineLoad& load, const Sizes& sizes) {
  const auto stages = static_cast<double>(sizes.size()), groups = static_cast<double>(load.groups);
  return (groups + stages - 1.0) / groups * dearest(load.work, sizes) + delay(load, sizes);
}

/// Of the stage that has most.
double fullest(const PipelineLoad& load, const Sizes& sizes) {
  double most = 0.0;
  size_t block = 0;
  for (size_t stage = 0; stage < sizes.size(); ++stage) {
    const bool last = stage + 1 == sizes.size();
    double bytes = last ? load.last_bytes : 0.0;
    if (stage == 0 || (last && load.ends_share_first)) bytes += load.first_bytes;
    for (int64_t i = 0; i < sizes[stage]; ++i) {
      bytes += load.bytes[block++] + load.input_bytes * static_cast<double>(load.in_flight[stage]);
    }
    most = std::max(most, bytes);
  }
  return most;
}

/// Of four blocks alike.
PipelineLoad four_blocks() {
  PipelineLoad load{.work = {10, 10, 10, 10}, .down = {1, 1, 1, 1}, .update = {20, 20, 20, 20}, .groups = 10};
  load.bytes = {1, 1, 1, 1};
  load.in_flight = {2, 1};
  return load;
}

}  // namespace

TEST_CASE("no cut of a pipeline has a cheaper dearest stage", "[pipeline]") {
  const std::vector<std::vector<double>> rows = {
      {1, 1, 1, 1, 1, 1}, {9, 1, 1, 1, 1, 1, 1, 9}, {1, 2, 3, 4, 5, 6, 7}, {5, 1, 1, 1, 0, 0, 8, 2, 2}, {3}};
  for (const std::vector<double>& costs : rows) {
    for (int64_t parts = 1; parts <= static_cast<int64_t>(costs.size()); ++parts) {
      const Sizes sizes = cut_by_cost(costs, parts);
      CHECK(sizes.size() == static_cast<size_t>(parts));
      double least = INFINITY;
      for (const Sizes& cut : all_cuts(static_cast<int64_t>(costs.size()), parts)) {
        least = std::min(least, dearest(costs, cut));
      }
      CHECK(dearest(costs, sizes) == least);
    }
  }
  // Of equal cuts the evenest.
  CHECK(cut_by_cost({1, 1, 1, 1, 4}, 3) == Sizes{2, 2, 1});
}

TEST_CASE("a cut weighs what updates leave exposed", "[pipeline]") {
  // By hand, two stages, ten groups, so a step is 1.1 max C + max E:
  //   2 | 2: 1.1 x 20 + max(40 - 1, 40 - 3) = 61
  //   1 | 3: 1.1 x 30 + max(20, 60 - 3) = 90
  //   3 | 1: 1.1 x 30 + max(60 - 2, 20 - 3) = 91
  PipelineLoad load = four_blocks();
  CHECK(step(load, {2, 2}) == Approx(61.0));
  CHECK(step(load, {1, 3}) == Approx(90.0));
  CHECK(step(load, {3, 1}) == Approx(91.0));
  CHECK(cut_pipeline(load, 2) == Sizes{2, 2});
  // An embedding of 30 before the first: 22 + 69 = 91 against 33 + max(50, 57) = 90.
  load.first_update = 30;
  CHECK(cut_pipeline(load, 2) == Sizes{2, 2});  // three blocks would not fit where two did
  load.first_bytes = 1;
  CHECK(cut_pipeline(load, 2) == Sizes{1, 3});  // now they do
  // Inputs of 2 groups x 2 blocks against 1 x 3.
  load.first_bytes = 0;
  load.input_bytes = 1;
  CHECK(cut_pipeline(load, 2) == Sizes{1, 3});
  // Where the last stage updates the embedding too: 33 + max(50, 90 - 3).
  load.ends_share_first = true;
  CHECK(cut_pipeline(load, 2) == Sizes{2, 2});
  // Nothing is updated that a group would wait for.
  load.update.clear();
  CHECK(cut_pipeline(load, 2) == Sizes{2, 2});
}

TEST_CASE("no cut that fits makes a shorter step", "[pipeline]") {
  std::mt19937 random(17);
  const auto draw = [&](double most) { return most * static_cast<double>(random() % 1000) / 1000.0; };
  int moved = 0;
  for (int trial = 0; trial < 300; ++trial) {
    const int64_t blocks = 3 + static_cast<int64_t>(random() % 6), stages = 2 + static_cast<int64_t>(random() % 3);
    if (stages > blocks) continue;
    PipelineLoad load;
    load.groups = 1 + static_cast<int64_t>(random() % 8);
    for (int64_t block = 0; block < blocks; ++block) {
      load.work.push_back(3.0 + draw(3.0));
      load.down.push_back(load.work.back() / (4.0 * static_cast<double>(load.groups)));
      load.update.push_back(draw(4.0));
      load.bytes.push_back(1.0 + draw(1.0));
    }
    load.first_update = draw(5.0);
    load.last_update = draw(5.0);
    load.first_bytes = draw(2.0);
    load.last_bytes = draw(2.0);
    load.input_bytes = draw(0.3);
    load.ends_share_first = trial % 3 == 0;
    for (int64_t stage = 0; stage < stages; ++stage) load.in_flight.push_back(std::min(load.groups, stages - stage));
    const Sizes cut = cut_pipeline(load, stages), products = cut_by_cost(load.work, stages);
    const double room = fullest(load, products) * (1.0 + 1e-12);
    double least = INFINITY;
    for (const Sizes& any : all_cuts(blocks, stages)) {
      if (fullest(load, any) <= room) least = std::min(least, step(load, any));
    }
    CHECK(step(load, cut) == Approx(least).epsilon(1e-12));
    CHECK(fullest(load, cut) <= room);
    moved += cut != products;
  }
  CHECK(moved > 30);
}
