#include "parallel/comm/failure.h"

#include <c10/util/Exception.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <functional>
#include <ios>
#include <new>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <system_error>

#include "parallel/base/files.h"
#include "tests/support/catch.h"
#include "tests/support/message_of.h"
#include "tests/support/temporary_folder.h"

using namespace moetune;
namespace fs = std::filesystem;

namespace {

Failure failure_of(const std::function<void()>& program) {
  try {
    program();
  } catch (...) {
    return current_failure();
  }
  return {ExitCode::kDone, ""};
}

}  // namespace

TEST_CASE("a page of a mapped file that is gone ends with the file's name", "[failure]") {
  const TemporaryFolder folder;
  const std::string file = folder / "mapped file";
  write_text_atomically(file, std::string(8192, 'x'));
  int ends[2];
  REQUIRE(::pipe(ends) == 0);
  const pid_t child = ::fork();
  if (child == 0) {
    ::dup2(ends[1], STDERR_FILENO);
    end_without_signals();
    const int opened = ::open(file.c_str(), O_RDONLY);
    const auto* bytes = static_cast<const volatile char*>(::mmap(nullptr, 8192, PROT_READ, MAP_SHARED, opened, 0));
    if (::truncate(file.c_str(), 0) != 0) ::_exit(9);
    ::_exit(bytes[4096] == 'x' ? 8 : 7);
  }
  ::close(ends[1]);
  std::string told;
  char buffer[1024];
  for (ssize_t got; (got = ::read(ends[0], buffer, sizeof buffer)) > 0;) told.append(buffer, static_cast<size_t>(got));
  ::close(ends[0]);
  int status = 0;
  ::waitpid(child, &status, 0);
  CHECK(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 2);
  CHECK(contains(told, "error: " + file + ": it was being read through memory and became shorter"));
}

TEST_CASE("exceptions of libraries end as what they mean for the user", "[failure]") {
  const TemporaryFolder folder;
  const std::string file = folder.path() + "/a\nfile";
  write_text_atomically(file, "{\"step\": null}");
  struct Row {
    ExitCode code;
    std::string says;
    std::function<void()> program;
  };
  const Row rows[] = {
      {ExitCode::kUserError, "/a\\nfile/below: ", [&] { fs::create_directories(file + "/below"); }},
      {ExitCode::kUserError, "Not a directory", [&] { fs::create_directories(file + "/below"); }},
      {ExitCode::kUserError, "/none -> ", [&] { fs::rename(folder.path() + "/none", folder.path() + "/other"); }},
      {ExitCode::kUserError, "/a\\nfile: holds what moetune does not expect",
       [&] { nlohmann::json::parse(read_text_file(file)).at("step").get<int>(); }},
      {ExitCode::kUserError, "parse error", [&] { nlohmann::json object = nlohmann::json::parse("{"); }},
      {ExitCode::kUserError, "", [] { throw std::ios_base::failure("stream"); }},
      {ExitCode::kDoesNotFit, "memory", [] { throw std::bad_alloc(); }},
      {ExitCode::kDoesNotFit, "longer than any memory", [] { std::vector<double>().reserve(size_t{1} << 62); }},
      {ExitCode::kDoesNotFit, "no more threads",
       [] { throw std::system_error(std::make_error_code(std::errc::resource_unavailable_try_again)); }},
      {ExitCode::kDoesNotFit, "", [] { TORCH_CHECK(false, "CUDA error: out of memory"); }},
      {ExitCode::kDoesNotFit, "", [] { TORCH_CHECK_WITH(OutOfMemoryError, false, "full"); }},
      {ExitCode::kUserError, "--version",
       [] { TORCH_CHECK(false, "CUDA error: no kernel image is available for execution on the device"); }},
      {ExitCode::kNonFinite, "nan", [] { throw NonFiniteError("nan"); }},
      {ExitCode::kDefect, "broken", [] { throw std::runtime_error("broken"); }},
      {ExitCode::kDefect, "failure_test.cpp", [] { TORCH_CHECK(false, "shape"); }},
      {ExitCode::kDefect, "", [] { throw 7; }},
  };
  for (const Row& row : rows) {
    const Failure failure = failure_of(row.program);
    INFO(failure.message);
    CHECK(failure.code == row.code);
    CHECK(failure.message.find(row.says) != std::string::npos);
  }
}
