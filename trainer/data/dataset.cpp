#include "trainer/data/dataset.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>

#include <nlohmann/json.hpp>

#include "parallel/base/error.h"
#include "parallel/base/log.h"
#include "parallel/base/program_files.h"
#include "parallel/base/sha256.h"
#include "parallel/base/text.h"

extern char** environ;

namespace moetune {
namespace {

namespace fs = std::filesystem;

/// Runs a program, its standard error ours, and returns what it writes to standard output. Throws UserError with exit
/// code 2 of the program, DoesNotFitError with 3 or SIGKILL, InternalError otherwise.
std::string output_of(const std::vector<std::string>& arguments) {
  int pipe_ends[2];
  MT_CHECK(::pipe2(pipe_ends, O_CLOEXEC) == 0, "no pipe");
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, pipe_ends[1], STDOUT_FILENO);
  // This program ignores SIGPIPE; what it starts shall end by it as usual.
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  sigset_t defaults;
  sigemptyset(&defaults);
  sigaddset(&defaults, SIGPIPE);
  posix_spawnattr_setsigdefault(&attributes, &defaults);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGDEF);
  std::vector<char*> argv;
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  pid_t child = 0;
  const int failure = ::posix_spawnp(&child, argv[0], &actions, &attributes, argv.data(), environ);
  posix_spawnattr_destroy(&attributes);
  posix_spawn_file_actions_destroy(&actions);
  ::close(pipe_ends[1]);
  std::string output;
  char buffer[4096];
  for (ssize_t got; failure == 0 && (got = ::read(pipe_ends[0], buffer, sizeof buffer)) > 0;) {
    output.append(buffer, static_cast<size_t>(got));
  }
  ::close(pipe_ends[0]);
  if (failure != 0) {
    throw UserError(str(printable_line(arguments[0]), ": cannot be started (", std::strerror(failure),
                        "); run scripts/setup, or name a Python that has the parts of scripts/requirements.txt in "
                        "MOETUNE_PYTHON"));
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return output;
  if (WIFEXITED(status) && WEXITSTATUS(status) == 2) {
    throw UserError("preparing the data failed: see the message above");
  }
  if ((WIFEXITED(status) && WEXITSTATUS(status) == 3) || (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL)) {
    throw DoesNotFitError("preparing the data was ended, most often for want of memory: see above, or dmesg");
  }
  throw InternalError(
      str("preparing the data ended with ", WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status)));
}

}  // namespace

PreparationTools PreparationTools::from_environment() {
  const ProgramFiles files = program_files();
  const char* given = std::getenv("MOETUNE_PYTHON");
  return {given != nullptr && *given != '\0' ? given : files.python, files.prepare.string()};
}

std::string prepare_tokens(const Recipe& recipe, const std::string& path, int64_t show, const PreparationTools& tools) {
  const fs::path cache = fs::absolute(path).parent_path() / ".moetune";
  std::vector<std::string> arguments{tools.python,
                                     tools.script,
                                     path,
                                     "--model",
                                     recipe.model.path,
                                     "--cache",
                                     cache.string(),
                                     "--special-tokens",
                                     to_string(recipe.data.special_tokens_in_content),
                                     "--train-on",
                                     to_string(recipe.data.train_on)};
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
          ? Documents::from_jsonl(path, vocab)
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
