#include "parallel/base/python_call.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "parallel/base/error.h"
#include "parallel/base/text.h"

extern char** environ;

namespace moetune {
namespace {

/// A pipe whose write end a child gets, and what came out of it.
class Reading {
 public:
  Reading() { MT_CHECK(::pipe2(ends_, O_CLOEXEC) == 0, "no pipe: ", std::strerror(errno)); }
  ~Reading() {
    close_writing();
    close_reading();
  }
  Reading(const Reading&) = delete;
  Reading& operator=(const Reading&) = delete;

  int write_end() const { return ends_[1]; }
  int read_end() const { return ends_[0]; }  ///< -1 once all was read
  void close_writing() { close(ends_[1]); }
  /// Takes what is there, waiting for at least a byte or the end.
  void read() {
    char buffer[4096];
    const ssize_t got = ::read(ends_[0], buffer, sizeof buffer);
    if (got > 0) text.append(buffer, static_cast<size_t>(got));
    if (got == 0 || (got < 0 && errno != EINTR)) close_reading();
  }

  std::string text;

 private:
  static void close(int& end) {
    if (end >= 0) ::close(end);
    end = -1;
  }
  void close_reading() { close(ends_[0]); }

  int ends_[2] = {-1, -1};
};

/// The process id, or 0 with the reason in errno.
pid_t spawned(const std::vector<std::string>& command, const Reading& output, const Reading* errors) {
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, output.write_end(), STDOUT_FILENO);
  if (errors != nullptr) posix_spawn_file_actions_adddup2(&actions, errors->write_end(), STDERR_FILENO);
  // This program ignores SIGPIPE; what it starts shall end by it as usual.
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  sigset_t defaults;
  sigemptyset(&defaults);
  sigaddset(&defaults, SIGPIPE);
  posix_spawnattr_setsigdefault(&attributes, &defaults);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGDEF);
  std::vector<char*> argv;
  for (const std::string& argument : command) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  pid_t child = 0;
  const int failure = ::posix_spawnp(&child, argv[0], &actions, &attributes, argv.data(), environ);
  posix_spawnattr_destroy(&attributes);
  posix_spawn_file_actions_destroy(&actions);
  errno = failure;
  return failure == 0 ? child : 0;
}

/// Reads both to their ends at once: a child that fills one pipe would wait for ever for a reader of the other.
void read_all(Reading& output, Reading& errors) {
  while (output.read_end() >= 0 || errors.read_end() >= 0) {
    pollfd waiting[] = {{output.read_end(), POLLIN, 0}, {errors.read_end(), POLLIN, 0}};  // a negative one is none
    if (::poll(waiting, 2, -1) < 0 && errno != EINTR) return;
    if (waiting[0].revents != 0) output.read();
    if (waiting[1].revents != 0) errors.read();
  }
}

}  // namespace

std::string chosen_python(const ProgramFiles& files) {
  const char* given = std::getenv("MOETUNE_PYTHON");
  return given != nullptr && *given != '\0' ? given : files.python;
}

std::string python_output(const std::vector<std::string>& command, const std::string& task, ErrorText error_text) {
  const bool thrown = error_text == ErrorText::kThrown;
  Reading output, errors;
  const pid_t child = spawned(command, output, thrown ? &errors : nullptr);
  const int failure = errno;
  output.close_writing();
  errors.close_writing();
  if (child == 0) {
    throw UserError(str(printable_line(command[0]), ": cannot be started (", std::strerror(failure),
                        "); run scripts/setup, or name a Python that has the parts of scripts/requirements.txt in "
                        "MOETUNE_PYTHON"));
  }
  read_all(output, errors);
  int status = 0;
  ::waitpid(child, &status, 0);
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return std::move(output.text);
  const std::string said = errors.text.substr(0, errors.text.find_last_not_of('\n') + 1);
  if (WIFEXITED(status) && WEXITSTATUS(status) == 2) {
    throw UserError(said.empty() ? task + " failed: see the message above" : said);
  }
  if ((WIFEXITED(status) && WEXITSTATUS(status) == 3) || (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL)) {
    throw DoesNotFitError(task + " was ended, most often for want of memory: see above, or dmesg");
  }
  throw InternalError(str(task, " ended with ", WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status),
                          said.empty() ? "" : ": ", said));
}

}  // namespace moetune
