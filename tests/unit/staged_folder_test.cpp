#include "tests/support/catch.h"

#include <fstream>

#include "parallel/base/error.h"
#include "parallel/base/files.h"
#include "parallel/base/name_summary.h"
#include "tests/support/message_of.h"
#include "tests/support/temporary_folder.h"
#include "trainer/exports/staged_folder.h"

using namespace moetune;
namespace fs = std::filesystem;

namespace {

void fill(StagedFolder& out, const std::vector<std::string>& names, const std::string& text) {
  for (const std::string& name : names) write_text_atomically((out.path() / name).string(), text);
}

std::vector<std::string> names_in(const fs::path& folder) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder)) names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace

TEST_CASE("an export appears whole and replaces an earlier one", "[export]") {
  const TemporaryFolder root;
  const fs::path to = root / "a/b";
  {
    StagedFolder out(to, "adapter");
    fill(out, {"config.json", "model-1.safetensors"}, "old");
    CHECK_FALSE(fs::exists(to / "config.json"));
    out.commit({{"step", 1}});
  }
  CHECK(names_in(to) == std::vector<std::string>{"config.json", "model-1.safetensors", kExportFile});
  {
    StagedFolder out(to, "adapter");
    fill(out, {"config.json", "model.safetensors"}, "new");
    out.commit({{"step", 2}});
  }
  CHECK(names_in(to) == std::vector<std::string>{"config.json", "model.safetensors", kExportFile});
  CHECK(read_text_file((to / "config.json").string()) == "new");
  const auto marker = nlohmann::json::parse(read_text_file((to / kExportFile).string()));
  CHECK(marker.at("step") == 2);
  CHECK(marker.at("complete") == true);
}

TEST_CASE("an export of another kind is not replaced", "[export]") {
  const TemporaryFolder root;
  const fs::path to = root / "a";
  for (int again = 0; again < 2; ++again) {
    StagedFolder out(to, "merged");
    fill(out, {"config.json"}, "merged");
    out.commit({{"step", 1}});
  }
  CHECK(contains(message_of<UserError>([&] { StagedFolder out(to, "adapter"); }),
                 "holds an export of another kind (merged, not adapter)"));
  CHECK(read_text_file((to / "config.json").string()) == "merged");
}

TEST_CASE("an export given up leaves the folder as it was", "[export]") {
  const TemporaryFolder root;
  const fs::path to = root / "a";
  {
    StagedFolder out(to, "adapter");
    fill(out, {"config.json"}, "x");
  }
  CHECK_FALSE(fs::exists(to));
  {
    StagedFolder out(to, "adapter");
    fill(out, {"config.json"}, "first");
    out.commit({{"step", 3}});
  }
  {
    StagedFolder out(to, "adapter");
    fill(out, {"config.json"}, "second");
  }
  CHECK(read_text_file((to / "config.json").string()) == "first");
  CHECK(names_in(to) == std::vector<std::string>{"config.json", kExportFile});
}

TEST_CASE("an export never writes over what it did not write", "[export]") {
  const TemporaryFolder root;
  fs::create_directories(root / "model");
  write_text_atomically(root / "model/config.json", "{}");
  CHECK(contains(message_of<UserError>([&] { StagedFolder out(root / "model", "adapter"); }), "config.json"));
  CHECK(names_in(root / "model") == std::vector<std::string>{"config.json"});
  {
    StagedFolder out(root / "export", "adapter");
    fill(out, {"config.json"}, "x");
    out.commit({{"step", 3}});
  }
  write_text_atomically(root / "export/notes.txt", "mine");
  CHECK(contains(message_of<UserError>([&] { StagedFolder out(root / "export", "adapter"); }), "notes.txt"));
  CHECK(contains(message_of<UserError>([&] { StagedFolder out(root / "model/config.json", "adapter"); }),
                 "is no folder"));
}

TEST_CASE("an export killed while its files were moved is replaced", "[export]") {
  const TemporaryFolder root;
  {
    StagedFolder out(root / "e", "adapter");
    fill(out, {"config.json", "model.safetensors"}, "x");
    out.commit({{"step", 3}});
  }
  fs::remove(root / "e/config.json");
  fs::create_directories(root / "e/.unfinished");
  write_text_atomically(root / "e/.unfinished/config.json", "x");
  {
    StagedFolder out(root / "e", "adapter");
    fill(out, {"config.json"}, "y");
    out.commit({{"step", 3}});
  }
  CHECK(names_in(root / "e") == std::vector<std::string>{"config.json", kExportFile});
}

TEST_CASE("names that differ in their numbers are one line", "[export]") {
  using Lines = std::vector<std::string>;
  CHECK(summarise_names({"model.layers.3.mlp.up_proj", "model.layers.4.mlp.up_proj", "a"}) ==
        Lines{"model.layers.{3-4}.mlp.up_proj", "a"});
  CHECK(summarise_names({"x.1.e.0", "x.1.e.1", "x.7.e.0", "x.7.e.1"}) == Lines{"x.{1, 7}.e.{0-1}"});
  CHECK(summarise_names({"x.1.e.0", "x.2.e.1"}) == Lines{"x.{1-2}.e.{0-1} (2 names)"});
  CHECK(summarise_names({"x.5"}) == Lines{"x.5"});
  CHECK(summarise_names({}).empty());
}
