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
    return prepare_tokens(recipe, {folder / "data.jsonl"}, 0, {"/bin/sh", folder / "script.sh"}).at(0);
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
  // What the recipe says of the data; the treatment of special tokens only where the recipe says it.
  const std::string all =
      "printf '%s' \"{\\\"cache\\\": \\\"\"; shift 5; printf '%s' \"$*\" | tr '\"' \"'\"; echo '\"}'";
  CHECK(preparation.run(all) == "--train-on assistant --thoughts refuse --add-bos auto");
  const Recipe defaults = preparation.recipe;
  preparation.recipe.origins["data.special_tokens_in_content"] = "recipe.yaml:3";
  CHECK(contains(preparation.run(all), "--special-tokens as_text"));
  preparation.recipe = defaults;
  preparation.recipe.data.thoughts = Thoughts::kKeep;
  preparation.recipe.data.add_bos = AddBos::kTrue;
  preparation.recipe.data.chat_template_kwargs = {{"thinking", true}, {"effort", std::string("high")}};
  preparation.recipe.data.ignore_keys = {"name"};
  CHECK(preparation.run(all) ==
        "--train-on assistant --thoughts keep --add-bos true --chat-template-kwargs {'effort':'high','thinking':true} "
        "--ignore-keys ['name']");
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
    prepare_tokens(preparation.recipe, {preparation.folder / "data.jsonl"}, 0,
                   {preparation.folder / "no-python", "script"});
  });
  CHECK(contains(missing, "no-python: cannot be started (No such file or directory); run scripts/setup"));
}

TEST_CASE("a data file that does not exist is the user's mistake", "[dataset]") {
  Preparation preparation;
  Launch launch;
  CHECK(contains(message_of<UserError>([&] {
                   load_documents(preparation.recipe, "", DataFiles::of(preparation.folder / "none.jsonl"), Blueprint(),
                                  launch, {"python3", "x"});
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

TEST_CASE("the data digest sees documents in their order, not the files that they lie in", "[dataset]") {
  const auto documents = [](std::vector<int32_t> tokens, std::vector<float> weights = {}) {
    const std::vector<int32_t> labels = tokens;
    std::vector<int64_t> offsets = {0};
    for (size_t end = 2; end <= tokens.size(); end += 2) offsets.push_back(static_cast<int64_t>(end));
    return Documents("test", 100, std::move(tokens), labels, std::move(offsets), {}, std::move(weights));
  };
  const auto joined = [&](std::vector<double> weights) {
    std::vector<Documents> parts;
    parts.push_back(documents({1, 2}));
    parts.push_back(documents({3, 4, 5, 6}));
    return Documents::joined("data.train", std::move(parts), weights);
  };
  const std::string one_file = data_digest(documents({1, 2, 3, 4, 5, 6}));
  CHECK(data_digest(joined({1.0, 1.0})) == one_file);
  CHECK(data_digest(joined({1.0, 2.0})) != one_file);
  CHECK(data_digest(joined({1.0, 2.0})) != data_digest(joined({2.0, 1.0})));
  // Weights of 1 are none; any other is seen.
  CHECK(data_digest(documents({1, 2, 3, 4, 5, 6}, {1, 1, 1, 1, 1, 1})) == one_file);
  CHECK(data_digest(documents({1, 2, 3, 4, 5, 6}, {1, 1, 1, 0.5, 1, 1})) != one_file);
  Documents split = joined({1.0, 1.0});
  split.split_off(0.4, 1);
  CHECK(data_digest(split) != one_file);
}

TEST_CASE("files of one folder are prepared by one process, those of another by their own", "[dataset]") {
  Preparation preparation;
  const std::string script = preparation.folder / "script.sh";
  // Answers with the folder of the cache and how many files it was given.
  write_text_atomically(script,
                        "n=0; while [ \"$1\" != --model ]; do n=$((n+1)); shift; done; out=; i=0\n"
                        "while [ $i -lt $n ]; do out=\"$out{\\\"cache\\\": \\\"$4 $n\\\", \\\"documents\\\": 1},\"; "
                        "i=$((i+1)); done\n"
                        "if [ $n = 1 ]; then echo \"${out%,}\"; else echo \"{\\\"files\\\": [${out%,}]}\"; fi\n");
  const PreparationTools tools{"/bin/sh", script};
  CHECK(prepare_tokens(preparation.recipe, {"/d/a", "/d/b", "/e/c"}, 0, tools) ==
        std::vector<std::string>{"/d/.moetune 2", "/d/.moetune 2", "/e/.moetune 1"});
  preparation.recipe.data.cache = "/fast";
  CHECK(prepare_tokens(preparation.recipe, {"/d/a", "/e/c"}, 0, tools) ==
        std::vector<std::string>{"/fast 2", "/fast 2"});
  CHECK(prepare_tokens(preparation.recipe, {}, 0, tools).empty());
}
