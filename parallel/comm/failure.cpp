#include "parallel/comm/failure.h"

#include <c10/util/Exception.h>
#include <fcntl.h>
#include <unistd.h>

#include <csignal>
#include <cstdint>
#include <cstring>
#include <exception>
#include <filesystem>
#include <ios>
#include <new>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <system_error>

#include "parallel/base/files.h"
#include "parallel/base/log.h"
#include "parallel/base/text.h"

namespace moetune {
namespace {

Failure of_file_system(const std::filesystem::filesystem_error& error) {
  std::string paths = printable_line(error.path1().string());
  if (!error.path2().empty()) paths += " -> " + printable_line(error.path2().string());
  // libstdc++: "filesystem error: cannot create directories: Not a directory [/a/b]"
  std::string what = error.what();
  const std::string before = "filesystem error: ";
  if (what.rfind(before, 0) == 0) what.erase(0, before.size());
  what.resize(std::min(what.size(), what.find(": ")));
  const bool memory = error.code() == std::errc::not_enough_memory;
  return {memory ? ExitCode::kDoesNotFit : ExitCode::kUserError, str(paths, ": ", what, ": ", error.code().message())};
}

Failure of_system(const std::system_error& error) {
  const bool lacks = error.code() == std::errc::resource_unavailable_try_again ||
                     error.code() == std::errc::not_enough_memory || error.code() == std::errc::too_many_files_open;
  if (!lacks) return {ExitCode::kDefect, error.what()};
  return {
      ExitCode::kDoesNotFit,
      str("the system gives no more threads, files or memory (ulimit -a, the control group's limits): ", error.what())};
}

Failure of_torch(const c10::Error& error) {
  const std::string message = error.what_without_backtrace();
  const auto says = [&](const char* words) { return message.find(words) != std::string::npos; };
  // torch's allocator of host memory has no exception of its own.
  if (says("DefaultCPUAllocator: ")) return {ExitCode::kDoesNotFit, "the host is out of memory: " + message};
  if (says("CUDA error: out of memory") || says("CUDA out of memory") || says("CUBLAS_STATUS_ALLOC_FAILED")) {
    return {ExitCode::kDoesNotFit, "the GPU, or pinned memory of its host, is out of memory: " + message};
  }
  if (says("size calculation overflowed") || says("multiplication overflow") || says("numel: integer")) {
    return {ExitCode::kDoesNotFit, "a tensor is larger than any memory: " + message};
  }
  if (says("no kernel image is available")) {
    return {ExitCode::kUserError,
            "this GPU is not among those that moetune or its LibTorch is built for (moetune "
            "--version lists them): " +
                message};
  }
  return {ExitCode::kDefect, error.what()};
}

Failure of_json(const nlohmann::json::exception& error) {
  const std::string& file = last_file_opened();
  return {ExitCode::kUserError, str(file.empty() ? "a JSON text" : printable_line(file),
                                    ": holds what moetune does not expect there: ", error.what())};
}

[[noreturn]] void end_process() {
  Failure failure{ExitCode::kDefect, "the program was told to end (std::terminate) without an exception"};
  if (std::current_exception() != nullptr) {
    try {
      failure = current_failure();
    } catch (...) {}
  }
  log_error(failure.message);
  ::_exit(static_cast<int>(failure.code));
}

// The file that is mapped at an address, from /proc/self/maps ("first-end rwxp offset device inode path"), or "".
// Like what follows it runs inside a signal: only what POSIX allows there.
const char* mapped_file_at(std::uintptr_t address, char* line, std::size_t capacity) {
  const int maps = ::open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
  if (maps < 0) return "";
  std::size_t length = 0;
  char byte = 0;
  while (::read(maps, &byte, 1) == 1) {
    if (byte != '\n') {
      if (length + 1 < capacity) line[length++] = byte;
      continue;
    }
    line[length] = '\0';
    length = 0;
    char* at = line;
    const auto number = [&] {
      std::uintptr_t value = 0;
      for (; (*at >= '0' && *at <= '9') || (*at >= 'a' && *at <= 'f'); ++at) {
        value = value * 16 + static_cast<std::uintptr_t>(*at <= '9' ? *at - '0' : *at - 'a' + 10);
      }
      ++at;
      return value;
    };
    const std::uintptr_t first = number(), end = number();
    if (address < first || address >= end) continue;
    ::close(maps);
    while (*at != '\0' && *at != '/') ++at;
    for (char* c = at; *c != '\0'; ++c) {
      if (static_cast<unsigned char>(*c) < ' ' || *c == 0x7f) *c = '?';
    }
    return at;
  }
  ::close(maps);
  return "";
}

void end_at_lost_page(int, siginfo_t* info, void*) {
  static char line[8192];
  const char* file = mapped_file_at(reinterpret_cast<std::uintptr_t>(info->si_addr), line, sizeof line);
  const char* parts[] = {"error: ", *file == '\0' ? "a file" : file,
                         ": it was being read through memory and became shorter, or its disk could not deliver it "
                         "(SIGBUS); do not replace files of a running job in place, and look at the disk (dmesg)\n"};
  for (const char* part : parts) {
    [[maybe_unused]] const ssize_t written = ::write(STDERR_FILENO, part, std::strlen(part));
  }
  ::_exit(static_cast<int>(ExitCode::kUserError));
}

}  // namespace

Failure current_failure() {
  try {
    throw;
  } catch (const Error& error) {
    return {error.code(), error.what()};
  } catch (const c10::OutOfMemoryError& error) {
    return {ExitCode::kDoesNotFit, error.what_without_backtrace()};
  } catch (const c10::Error& error) {
    return of_torch(error);
  } catch (const std::bad_alloc&) {
    return {ExitCode::kDoesNotFit, "the host is out of memory"};
  } catch (const std::length_error& error) {
    return {ExitCode::kDoesNotFit, str("a list would be longer than any memory: ", error.what())};
  } catch (const std::filesystem::filesystem_error& error) {
    return of_file_system(error);
  } catch (const std::ios_base::failure& error) {
    return {ExitCode::kUserError, str("reading or writing a file failed: ", error.what())};
  } catch (const std::system_error& error) {
    return of_system(error);
  } catch (const nlohmann::json::exception& error) {
    return of_json(error);
  } catch (const std::exception& error) {
    return {ExitCode::kDefect,
            str(error.what(), "\n  a defect of moetune: report this with the command and the recipe")};
  } catch (...) {
    return {ExitCode::kDefect, "an exception that is no std::exception"};
  }
}

void end_without_signals() {
  std::set_terminate(end_process);
  struct sigaction action{};
  action.sa_sigaction = end_at_lost_page;
  action.sa_flags = SA_SIGINFO;
  ::sigaction(SIGBUS, &action, nullptr);
}

}  // namespace moetune
