// How the preparation step is started, and what its failures become.
#include "tests/support/catch.h"

#include <nlohmann/json.hpp>

#include <filesystem>

#include "parallel/base/error.h"
#include "parallel/base/files.h"
#include "parallel/comm/launch.h"
#include "tests/support/message_of.h"
#include "tests/support/temporary_folder.h"
#include "trainer/data/dataset.h"

using namespace moetune;

namespace {

struct Preparation {
  Preparation() {
    write_text_atomically(folder / "data.jsonl", "{\"text\": \"a\"}\n");
    recipe.model.path = "model folder";
  }
  /// Runs `script`, in the language of sh, in place of the Python program.
  std::string run(const std::string& script) {
    write_text_atomically(folder / "script.sh", script);
    return prepare_tokens(recipe, folder / "data.jsonl", 0, {"/bin/sh", folder / "script.sh"});
  }
  TemporaryFolder folder;
  Recipe recipe;
};

}  // namespace

TEST_CASE("the preparation step gets its arguments whole, and its last line is the answer", "[dataset]") {
  Preparation preparation;
  const std::string cache = preparation.run("echo first; echo \"{\\\"cache\\\": \\\"$1|$2|$3|$5\\\"}\"");
  CHECK(cache ==
        preparation.folder.path() + "/data.jsonl|--model|model folder|" + preparation.folder.path() + "/.moetune");
  // More than a pipe holds.
  const std::string output = preparation.run(
      "printf '{\"cache\": \"'; i=0; while [ $i -lt 10000 ]; do printf 0123456789; i=$((i+1)); done; echo '\"}'");
  CHECK(output.size() == 100000);
}

TEST_CASE("a failing preparation step is an error of the right kind", "[dataset]") {
  Preparation preparation;
  CHECK(contains(message_of<UserError>([&] { preparation.run("exit 2"); }), "preparing the data failed"));
  CHECK(contains(message_of<InternalError>([&] { preparation.run("exit 1"); }), "ended with 1"));
  CHECK(contains(message_of<DoesNotFitError>([&] { preparation.run("kill -9 $$"); }), "want of memory"));
  CHECK(contains(message_of<DoesNotFitError>([&] { preparation.run("exit 3"); }), "want of memory"));
  CHECK(contains(message_of<InternalError>([&] { preparation.run("kill -8 $$"); }), "ended with 136"));
  CHECK(contains(message_of<InternalError>([&] { preparation.run("echo no json"); }), "preparation wrote: no json"));
  CHECK(contains(message_of<InternalError>([&] { preparation.run("exit 0"); }), "preparation wrote"));
  const std::string missing = message_of<UserError>([&] {
    prepare_tokens(preparation.recipe, preparation.folder / "data.jsonl", 0,
                   {preparation.folder / "no-python", "script"});
  });
  CHECK(contains(missing, "no-python: cannot be started (No such file or directory); run scripts/setup"));
}

TEST_CASE("a data file that does not exist is the user's mistake", "[dataset]") {
  Preparation preparation;
  Launch launch;
  CHECK(contains(message_of<UserError>([&] {
                   load_documents(preparation.recipe, preparation.folder / "none.jsonl", 10, launch, {"python3", "x"});
                 }),
                 "none.jsonl: no such file"));
}

TEST_CASE("the data digest sees tokens, labels and boundaries", "[dataset]") {
  const auto digest = [](std::vector<int32_t> tokens, std::vector<int32_t> labels, std::vector<int64_t> offsets) {
    return data_digest(Documents("test", 100, std::move(tokens), std::move(labels), std::move(offsets), {}));
  };
  const std::string first = digest({1, 2, 3, 4}, {1, 2, 3, 4}, {0, 2, 4});
  CHECK(first == digest({1, 2, 3, 4}, {1, 2, 3, 4}, {0, 2, 4}));
  CHECK(first != digest({1, 2, 3, 5}, {1, 2, 3, 4}, {0, 2, 4}));
  CHECK(first != digest({1, 2, 3, 4}, {-100, 2, 3, 4}, {0, 2, 4}));
  CHECK(first != digest({1, 2, 3, 4}, {1, 2, 3, 4}, {0, 4}));
}
