// Any part of a tensor out of whatever boxes and runs it was saved in.
#include "trainer/state/saved_state.h"

#include "parallel/base/error.h"
#include "parallel/bytes/tensor_io.h"
#include "tests/support/catch.h"
#include "tests/support/message_of.h"
#include "tests/support/numbers.h"
#include "tests/support/temporary_folder.h"
#include "trainer/state/manifest.h"

using namespace moetune;

namespace {

/// Writes one file for each run of each box and the manifest over them.
class Writer {
 public:
  void add(const std::string& name, const at::Tensor& whole, const TensorBlock& box, const std::vector<int64_t>& ends) {
    at::Tensor part = whole;
    for (size_t d = 0; d < box.at.size(); ++d) part = part.narrow(static_cast<int64_t>(d), box.at[d], box.shape[d]);
    part = part.flatten().contiguous();
    int64_t first = 0;
    ParameterInfo info;
    info.group = "experts";
    info.layer = LayerId::block(3);
    info.experts = experts;
    info.joint_name = "joint";
    for (const int64_t end : ends) {
      add_run(name, part.slice(0, first, end).contiguous(), run_metadata(box, first, info));
      first = end;
    }
  }
  void add_run(const std::string& name, const at::Tensor& numbers, const std::string& metadata) {
    // The highest numbers come in the first file: their order says nothing.
    const std::string file = str("state-", 99 - manifest_.files.size(), ".safetensors");
    write_tensors(folder_ / file,
                  {{"master/" + name, numbers},
                   {"first_moment/" + name, numbers + 100},
                   {"second_moment/" + name, numbers + 200}},
                  {{name, metadata}});
    manifest_.files[file] = {std::string(64, '0'), 0};
    write_manifest(folder_.path(), manifest_);
  }
  std::vector<int64_t> experts;  ///< of stacks over some experts
  SavedState open() const { return SavedState(folder_.path()); }

 private:
  TemporaryFolder folder_;
  Manifest manifest_;
};

at::Tensor box_of(const at::Tensor& whole, const TensorBlock& box) {
  at::Tensor part = whole;
  for (size_t d = 0; d < box.at.size(); ++d) {
    part = part.slice(static_cast<int64_t>(d), box.at[d], box.at[d] + box.shape[d]);
  }
  return part.contiguous();
}

}  // namespace

TEST_CASE("a tensor cut by experts and by tensor parallelism comes back in any other cut", "[saved_state]") {
  const at::Tensor whole = at::arange(4 * 6 * 5, at::kFloat).view({4, 6, 5});
  Writer writer;
  // Two parts of the experts, the rows of each in halves, in uneven runs, one of them empty of a row's end.
  for (const int64_t expert : {0, 2}) {
    for (const int64_t row : {3, 0}) writer.add("w", whole, {{4, 6, 5}, {expert, row, 0}, {2, 3, 5}}, {7, 8, 30});
  }
  const SavedState saved = writer.open();
  CHECK(saved.names() == std::vector<std::string>{"w"});
  CHECK(saved.shape("w") == std::vector<int64_t>{4, 6, 5});
  CHECK(saved.group("w") == "experts");
  CHECK(saved.layer("w") == 3);
  CHECK(saved.joint("w") == "joint");
  const std::vector<TensorBlock> boxes = {{{4, 6, 5}, {0, 0, 0}, {4, 6, 5}},
                                          {{4, 6, 5}, {2, 3, 0}, {2, 3, 5}},
                                          {{4, 6, 5}, {1, 2, 1}, {3, 2, 3}},
                                          {{4, 6, 5}, {3, 5, 4}, {1, 1, 1}}};
  for (const TensorBlock& box : boxes) {
    INFO("box at " << box.at[0] << " " << box.at[1] << " " << box.at[2]);
    const at::Tensor expected = box_of(whole, box);
    CHECK(at::equal(saved.read(SavedKind::kMaster, "w", box), expected));
    CHECK(at::equal(saved.read(SavedKind::kSecondMoment, "w", box), expected + 200));
    for (int64_t first = 0; first < expected.numel(); first += 4) {
      at::Tensor run = at::zeros({std::min<int64_t>(7, expected.numel() - first)});
      saved.read(SavedKind::kFirstMoment, "w", box, first, run);
      CHECK(at::equal(run, expected.flatten().slice(0, first, first + run.numel()) + 100));
    }
  }
  CHECK(contains(message_of<UserError>([&] { saved.read(SavedKind::kMaster, "w", {{4, 6, 6}, {0, 0, 0}, {4, 6, 6}}); }),
                 "w was saved as [4, 6, 5], this run has [4, 6, 6]"));
  CHECK(contains(message_of<UserError>([&] { saved.shape("v"); }), "has no v"));
}

TEST_CASE("a tensor that is not there in full, or twice, is named", "[saved_state]") {
  const at::Tensor whole = at::arange(12, at::kFloat).view({4, 3});
  const TensorBlock upper{{4, 3}, {0, 0}, {2, 3}}, lower{{4, 3}, {2, 0}, {2, 3}};
  Writer writer;
  std::string expected = "has not all of w, or some of it twice";
  writer.add("w", whole, upper, {2, 6});
  SECTION("a box is missing") {}
  SECTION("a run is missing") { writer.add("w", whole, lower, {4}); }
  SECTION("boxes overlap") {
    writer.add("w", whole, lower, {6});
    writer.add("w", whole, {{4, 3}, {1, 0}, {2, 3}}, {6});
  }
  SECTION("a run twice") {
    writer.add("w", whole, lower, {6});
    writer.add("w", whole, lower, {6});
  }
  SECTION("another whole") { writer.add("w", whole, {{5, 3}, {2, 0}, {2, 3}}, {6}); }
  SECTION("no box") {
    writer.add_run("w", whole.flatten(), R"({"whole": [4, 3], "at": [3, 0], "shape": [2, 3], "first": 0})");
    expected = "is no box of a tensor";
  }
  SECTION("no metadata") {
    writer.add_run("w", whole.flatten(), R"({"whole": [4, 3]})");
    expected = "metadata of w";
  }
  CHECK(contains(message_of<UserError>([&] { writer.open(); }), expected));
}

TEST_CASE("a stack over some experts says which, and a rank with none of them reads nothing", "[saved_state]") {
  const at::Tensor whole = at::arange(3 * 2 * 2, at::kFloat).view({3, 2, 2});
  Writer writer;
  writer.experts = {1, 4, 5};
  writer.add("m.*.w", whole, {{3, 2, 2}, {0, 0, 0}, {1, 2, 2}}, {4});
  writer.add("m.*.w", whole, {{3, 2, 2}, {1, 0, 0}, {2, 2, 2}}, {8});
  const SavedState saved = writer.open();
  CHECK(saved.experts("m.*.w") == writer.experts);
  CHECK(saved.chosen_experts() == ExpertsOfLayers{{3, {1, 4, 5}}});
  CHECK(saved.read(SavedKind::kMaster, "m.*.w", {{3, 2, 2}, {1, 0, 0}, {0, 2, 2}}).sizes() ==
        at::IntArrayRef({0, 2, 2}));
}

TEST_CASE("experts that are not those of a stack's rows are refused", "[saved_state]") {
  for (const std::vector<int64_t>& experts :
       std::vector<std::vector<int64_t>>{{1, 4}, {4, 1, 5}, {1, 1, 5}, {-1, 4, 5}}) {
    Writer writer;
    writer.experts = experts;
    writer.add("m.*.w", at::zeros({3, 2, 2}), {{3, 2, 2}, {0, 0, 0}, {3, 2, 2}}, {12});
    CHECK(contains(message_of<UserError>([&] { writer.open(); }), "metadata of m.*.w names experts"));
  }
}
