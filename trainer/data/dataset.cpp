#include "trainer/data/dataset.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>

#include <nlohmann/json.hpp>

#include "parallel/base/error.h"
#include "parallel/base/log.h"
#include "parallel/base/sha256.h"

extern char** environ;

namespace moetune {
namespace {

namespace fs = std::filesystem;

/// Runs a program, its standard error ours, and returns what it writes to standard output. Throws UserError with exit
/// code 2 of the program, InternalError otherwise.
std::string output_of(const std::vector<std::string>& arguments) {
  int pipe_ends[2];
  MT_CHECK(::pipe2(pipe_ends, O_CLOEXEC) == 0, "no pipe");
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, pipe_ends[1], STDOUT_FILENO);
  std::vector<char*> argv;
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  pid_t child = 0;
  const int failure = ::posix_spawnp(&child, argv[0], &actions, nullptr, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  ::close(pipe_ends[1]);
  std::string output;
  char buffer[4096];
  for (ssize_t got; failure == 0 && (got = ::read(pipe_ends[0], buffer, sizeof buffer)) > 0;) {
    output.append(buffer, static_cast<size_t>(got));
  }
  ::close(pipe_ends[0]);
  if (failure != 0) {
    throw UserError(str(arguments[0], ": cannot be started (", std::strerror(failure),
                        "); run scripts/setup, or set MOETUNE_PYTHON"));
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return output;
  if (WIFEXITED(status) && WEXITSTATUS(status) == 2) {
    throw UserError("preparing the data failed: see the message above");
  }
  throw InternalError(
      str("preparing the data ended with ", WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status)));
}

}  // namespace

PreparationTools PreparationTools::from_environment() {
  const fs::path checkout = MOETUNE_SOURCE_DIR;
  PreparationTools tools;
  tools.script = (checkout / "scripts" / "prepare").string();
  const char* given = std::getenv("MOETUNE_PYTHON");
  const fs::path own = checkout / ".venv" / "bin" / "python";
  tools.python = given != nullptr ? given : fs::exists(own) ? own.string() : "python3";
  return tools;
}

namespace {

/// JSON text, also of a recipe's text that is not UTF-8.
std::string written(const nlohmann::json& value) {
  return value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

/// The options of scripts/prepare that the recipe's section `data` gives. What text of special tokens becomes is said
/// only where the recipe says it: silence has a stricter meaning there.
std::vector<std::string> options_of(const Recipe& recipe) {
  const DataRecipe& data = recipe.data;
  std::vector<std::string> options = {"--train-on", to_string(data.train_on), "--thoughts", to_string(data.thoughts),
                                      "--add-bos",  to_string(data.add_bos)};
  if (recipe.origins.count("data.special_tokens_in_content") > 0 ||
      data.special_tokens_in_content != SpecialTokens::kAsText) {
    options.insert(options.end(), {"--special-tokens", to_string(data.special_tokens_in_content)});
  }
  if (!data.chat_template_kwargs.empty()) {
    nlohmann::json variables = nlohmann::json::object();
    for (const auto& [name, value] : data.chat_template_kwargs) {
      std::visit([&, key = name](const auto& inner) { variables[key] = inner; }, value);
    }
    options.insert(options.end(), {"--chat-template-kwargs", written(variables)});
  }
  if (!data.ignore_keys.empty()) {
    options.insert(options.end(), {"--ignore-keys", written(data.ignore_keys)});
  }
  return options;
}

}  // namespace

std::string prepare_tokens(const Recipe& recipe, const std::string& path, int64_t show, const PreparationTools& tools) {
  const fs::path cache = fs::absolute(path).parent_path() / ".moetune";
  std::vector<std::string> arguments{tools.python,      tools.script, path,          "--model",
                                     recipe.model.path, "--cache",    cache.string()};
  for (std::string& option : options_of(recipe)) arguments.push_back(std::move(option));
  if (show > 0) arguments.insert(arguments.end(), {"--show", std::to_string(show)});
  const std::string output = output_of(arguments);
  const size_t end = output.find_last_not_of('\n');
  const size_t begin = end == std::string::npos ? 0 : output.rfind('\n', end) + 1;
  const auto result = nlohmann::json::parse(output.substr(begin), nullptr, false);
  MT_CHECK(!result.is_discarded() && result.contains("cache"), "preparation wrote: ", output);
  if (begin > 0) log_info(output.substr(0, begin - 1));
  return result.at("cache").get<std::string>();
}

Documents load_documents(const Recipe& recipe, const std::string& path, int64_t vocab, Launch& launch,
                         const PreparationTools& tools) {
  if (!fs::exists(path)) {
    throw UserError(str(path, ": no such file; data.train and data.eval are paths from the current folder"));
  }
  Documents documents =
      Documents::is_tokenised_jsonl(path)
          ? Documents::from_jsonl(path, vocab, recipe.data.ignore_keys)
          : Documents::from_cache(
                launch.broadcast_string(launch.rank() == 0 ? prepare_tokens(recipe, path, 0, tools) : ""), vocab);
  const int64_t cut = documents.truncate(recipe.data.max_tokens);
  if (cut > 0) {
    log_info(str(path, ": ", cut, " of ", documents.size(), " documents are longer than data.max_tokens ",
                 recipe.data.max_tokens, " and were cut to it"));
  }
  return documents;
}

std::string data_digest(const Documents& documents) {
  Sha256 digest;
  for (int64_t i = 0; i < documents.size(); ++i) {
    const Document document = documents.doc(i);
    const int64_t length = documents.length(i);
    digest.update(&length, sizeof length);
    digest.update(document.tokens.data(), document.tokens.size_bytes());
    digest.update(document.labels.data(), document.labels.size_bytes());
  }
  return digest.hex();
}

}  // namespace moetune
