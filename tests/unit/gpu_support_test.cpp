#include "parallel/device/gpu_support.h"

#include "tests/support/catch.h"

using namespace moetune;

TEST_CASE("code for an architecture runs where CUDA's programming guide says", "[gpu_support]") {
  struct Row {
    const char* architecture;
    ComputeCapability gpu;
    bool runs;
  };
  const Row rows[] = {
      {"80", {8, 0}, true},   {"80", {8, 6}, true},    {"80", {8, 9}, true},    {"80", {9, 0}, false},
      {"86", {8, 0}, false},  {"86", {8, 7}, true},    {"89", {8, 9}, true},    {"89", {8, 6}, false},
      {"90a", {9, 0}, true},  {"90a", {9, 1}, false},  {"90a", {10, 0}, false}, {"100", {10, 0}, true},
      {"100", {10, 3}, true}, {"100", {12, 0}, false}, {"120", {12, 1}, true},  {"120", {10, 0}, false},
      {"80", {7, 5}, false},  {"120", {1, 2}, false},
  };
  for (const Row& row : rows) {
    INFO(row.architecture << " on " << row.gpu.major << "." << row.gpu.minor);
    CHECK(runs_on(row.architecture, row.gpu) == row.runs);
  }
}

TEST_CASE("the program knows what it was built for", "[gpu_support]") {
  REQUIRE(!built_architectures().empty());
  for (const std::string& name : built_architectures()) CHECK(std::stoi(name) >= 80);
}

TEST_CASE("LibTorch 2.11 has grouped kernels for Hopper and B200 alone", "[gpu_support]") {
  CHECK(has_grouped_kernel({9, 0}));
  CHECK(has_grouped_kernel({10, 0}));
  for (const ComputeCapability gpu : {ComputeCapability{8, 0}, {8, 6}, {8, 9}, {10, 3}, {11, 0}, {12, 0}, {12, 1}}) {
    INFO(gpu.major << "." << gpu.minor);
    CHECK_FALSE(has_grouped_kernel(gpu));
  }
}
