// Which files the entries of data.train name: files, folders, patterns, and what is refused.
#include "tests/support/catch.h"

#include <sys/stat.h>

#include <filesystem>

#include "parallel/base/error.h"
#include "parallel/base/files.h"
#include "tests/support/message_of.h"
#include "tests/support/temporary_folder.h"
#include "trainer/data/data_files.h"

using namespace moetune;

namespace {

struct Place {
  Place() {
    std::filesystem::create_directories(folder / "part/nested");
    std::filesystem::create_directories(folder / "empty");
    for (const char* name : {"one.txt", "b.jsonl", "a.jsonl", "part/z.jsonl.gz", "part/B.parquet", "part/c.json.zst",
                             "part/README.md", "part/.hidden.jsonl", "part/nested/d.jsonl", "odd[1].jsonl"}) {
      write_text_atomically(folder / name, "{}");
    }
  }
  DataSelection select(const std::vector<DataEntry>& entries) const {
    DataFiles files{entries};
    for (DataEntry& entry : files.entries) entry.path = folder / entry.path;
    return select_files(recipe, "data.train", files);
  }
  std::vector<std::string> names(const std::vector<DataEntry>& entries) const {
    std::vector<std::string> names;
    for (const DataFile& file : select(entries).files) {
      names.push_back(file.path.substr(folder.path().size() + 1) + (file.weight == 1.0 ? "" : "*"));
    }
    return names;
  }
  TemporaryFolder folder;
  Recipe recipe;
};

using Names = std::vector<std::string>;

}  // namespace

TEST_CASE("files, folders and patterns become files in their order", "[data_files]") {
  const Place place;
  CHECK(place.names({{"one.txt"}}) == Names{"one.txt"});
  CHECK(place.names({{"b.jsonl"}, {"a.jsonl", 2.0}}) == Names{"b.jsonl", "a.jsonl*"});
  CHECK(place.names({{"part"}}) == Names{"part/B.parquet", "part/c.json.zst", "part/z.jsonl.gz"});
  CHECK(place.names({{"?.jsonl", 0.5}, {"part/*.gz"}}) == Names{"a.jsonl*", "b.jsonl*", "part/z.jsonl.gz"});
  CHECK(place.names({{"*/*/*.jsonl"}}) == Names{"part/nested/d.jsonl"});
  CHECK(place.names({{"odd[1].jsonl"}}) == Names{"odd[1].jsonl"});  // a file of this name goes before the pattern
  const DataSelection folder = place.select({{"part"}});
  REQUIRE(folder.notes.size() == 2);
  CHECK(contains(folder.notes[0], "part: left out, not named as data: README.md"));
  CHECK(contains(folder.notes[1], "part: left out, folders in it: nested"));
}

TEST_CASE("what names no data is refused with its place in the recipe", "[data_files]") {
  Place place;
  REQUIRE(::mkfifo((place.folder / "pipe").c_str(), 0600) == 0);
  place.recipe.origins = {{"data.train", "r.yaml:3"}, {"data.train[1]", "r.yaml:5"}};
  const auto told = [&](const std::vector<DataEntry>& entries) {
    return message_of<UserError>([&] { place.select(entries); });
  };
  CHECK(contains(told({{"none.jsonl"}}), "r.yaml:3: data.train: " + (place.folder / "none.jsonl") + ": no such file"));
  CHECK(contains(told({{"a.jsonl"}, {"*.gz"}}),
                 "r.yaml:5: data.train: " + (place.folder / "*.gz") + ": no file matches"));
  CHECK(contains(told({{"empty"}}), "is a folder without data files; their names end in .jsonl, .json,"));
  CHECK(contains(told({{"a.jsonl"}, {"?.jsonl"}}),
                 "a.jsonl: is named twice; to train on it more often, give it a weight"));
  CHECK(contains(told({{"a.jsonl"}, {"part/../a.jsonl"}}), "is named twice"));
  CHECK(contains(told({{"pipe"}}), "pipe: is no regular file"));
  // All mistakes at once.
  const std::string both = told({{"none"}, {"nothing"}});
  CHECK(contains(both, "none: no such file"));
  CHECK(contains(both, "nothing: no such file"));
}
