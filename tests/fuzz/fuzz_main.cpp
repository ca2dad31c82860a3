// Damages files that the program reads and looks how reading ends: well, or with a UserError. Everything else is found:
// another exception, a signal, more than a gigabyte, more than ten seconds.
//
//   fuzz [--target NAME]... [--cases 300] [--seed 1] [--seconds 0] [--keep DIR]
//   fuzz --target config --seed 1 --case 271       # one case again, in this process, for a debugger
//
// Case 0 is the valid input and must be read. A case is a function of (target, seed, number). With --seconds every
// target goes on so long. Cases run in a process of their own; what it does not survive is reported, kept, and the next
// one goes on behind it. Exit status: 0, or 1 where something was found.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <ATen/Parallel.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iostream>
#include <new>

#include "parallel/base/error.h"
#include "parallel/base/files.h"
#include "tests/fuzz/mutate.h"
#include "tests/fuzz/targets.h"
#include "tests/support/temporary_folder.h"

namespace moetune {
namespace {

namespace fs = std::filesystem;

constexpr rlim_t kMostBytes = rlim_t{1} << 30;  // that reading a few kilobytes may add
constexpr unsigned kMostSeconds = 10;
constexpr int kFound = 99;  // exit status of a worker that caught what it should not have
constexpr int kMostFindings = 20;

struct Options {
  std::vector<std::string> targets;
  int64_t cases = 300, only = -1;
  uint64_t seed = 1;
  double seconds = 0.0;
  std::string keep = "fuzz-findings";
};

/// What a worker tells, also when it dies.
struct Shared {
  int64_t number = 0;  ///< of the case that is being read
  int64_t accepted = 0, refused = 0;
  char what[1024] = {};
};

class Fuzzer {
 public:
  Fuzzer(const FuzzTarget& target, const Options& options, Shared& shared)
      : target_(target), options_(options), shared_(shared), start_(std::chrono::steady_clock::now()) {
    folder_ = fs::path(root_.path()) / target.name;
    fs::create_directories(folder_);
    target_.prepare(folder_);
    for (const std::string& file : target_.files) valid_.push_back(read_text_file((folder_ / file).string()));
  }

  /// Reads one case. Returns whether it was accepted; what is no UserError comes through.
  bool read(int64_t number) {
    Dice dice(options_.seed * 1'000'003 + static_cast<uint64_t>(number));
    for (size_t i = 0; i < valid_.size(); ++i) put(i, valid_[i]);
    if (number > 0) {
      for (size_t damaged = dice.one_in(4) ? 2 : 1; damaged > 0; --damaged) {
        const size_t i = dice.below(valid_.size());
        put(i, mutated(valid_[i], target_.files[i], dice));
      }
    }
    try {
      target_.read(folder_);
      return true;
    } catch (const UserError& error) {
      if (number == 0) throw InternalError(str("the valid input is refused: ", error.what()));
      return false;
    }
  }

  /// All cases, in workers; the number of findings.
  int run() {
    int findings = 0;
    shared_ = Shared();
    for (int64_t next = 0; !over(next) && findings < kMostFindings; next = shared_.number + 1) {
      const pid_t worker = ::fork();
      if (worker == 0) work(next);
      int status = 0;
      ::waitpid(worker, &status, 0);
      if (WIFEXITED(status) && WEXITSTATUS(status) == 0) break;
      ++findings;
      report(status);
    }
    std::printf("%-12s %lld cases: %lld accepted, %lld refused, %d found\n", target_.name.c_str(),
                static_cast<long long>(shared_.number + 1), static_cast<long long>(shared_.accepted),
                static_cast<long long>(shared_.refused), findings);
    std::fflush(stdout);
    return findings;
  }

 private:
  bool over(int64_t number) const {
    const double elapsed = std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
    return options_.seconds > 0.0 ? elapsed >= options_.seconds : number >= options_.cases;
  }

  void put(size_t file, const std::string& bytes) const {
    const fs::path path = folder_ / target_.files[file];
    std::ofstream(path, std::ios::binary | std::ios::trunc)
        .write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  }

  [[noreturn]] void work(int64_t next) {
    limit();
    for (; !over(next); ++next) {
      shared_.number = next;
      ::alarm(kMostSeconds);
      try {
        ++(read(next) ? shared_.accepted : shared_.refused);
      } catch (const std::exception& error) {
        std::snprintf(shared_.what, sizeof shared_.what, "%s", error.what());
        ::_exit(kFound);
      } catch (...) {
        std::snprintf(shared_.what, sizeof shared_.what, "something that is no std::exception");
        ::_exit(kFound);
      }
    }
    ::_exit(0);
  }

  static void limit() {
    std::ifstream statm("/proc/self/statm");
    rlim_t pages = 0, skipped = 0;
    statm >> pages >> skipped >> skipped >> skipped >> skipped >> pages;  // the sixth: data and stack
    const rlim_t bytes = pages * static_cast<rlim_t>(::sysconf(_SC_PAGESIZE)) + kMostBytes;
    const rlimit data{bytes, bytes}, core{0, 0};
    ::setrlimit(RLIMIT_DATA, &data);
    ::setrlimit(RLIMIT_CORE, &core);
    // Whatever is warned of is not what is looked for.
    const int nowhere = ::open("/dev/null", O_WRONLY | O_CLOEXEC);
    ::dup2(nowhere, STDERR_FILENO);
    ::dup2(nowhere, STDOUT_FILENO);
  }

  void report(int status) {
    std::string how = shared_.what;
    if (WIFSIGNALED(status)) {
      how = WTERMSIG(status) == SIGALRM ? str("more than ", kMostSeconds, " s")
                                        : str("signal ", WTERMSIG(status), " (", ::strsignal(WTERMSIG(status)), ")");
    }
    const fs::path kept = fs::path(options_.keep) / str(target_.name, "-", options_.seed, "-", shared_.number);
    std::error_code ignored;
    fs::create_directories(kept, ignored);
    fs::copy(folder_, kept, fs::copy_options::recursive | fs::copy_options::overwrite_existing, ignored);
    std::printf("FOUND %s --seed %llu --case %lld: %s\n      kept in %s\n", target_.name.c_str(),
                static_cast<unsigned long long>(options_.seed), static_cast<long long>(shared_.number), how.c_str(),
                kept.c_str());
    std::memset(shared_.what, 0, sizeof shared_.what);
  }

  const FuzzTarget& target_;
  const Options& options_;
  Shared& shared_;
  std::chrono::steady_clock::time_point start_;
  TemporaryFolder root_;
  fs::path folder_;
  std::vector<std::string> valid_;
};

int usage() {
  std::cerr << "usage: fuzz [--target NAME]... [--cases N | --seconds S] [--seed S] [--case N] [--keep DIR]\n";
  return 2;
}

int run(int argc, char** argv) {
  Options options;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string name = argv[i], value = argv[i + 1];
    if (name == "--target") options.targets.push_back(value);
    else if (name == "--cases") options.cases = std::atoll(value.c_str());
    else if (name == "--seconds") options.seconds = std::atof(value.c_str());
    else if (name == "--seed") options.seed = std::strtoull(value.c_str(), nullptr, 10);
    else if (name == "--case") options.only = std::atoll(value.c_str());
    else if (name == "--keep") options.keep = value;
    else return usage();
  }
  if (argc % 2 == 0) return usage();
  // Workers are forked: no threads before.
  at::set_num_threads(1);
  const std::vector<FuzzTarget> all = fuzz_targets();
  auto* shared =
      static_cast<Shared*>(::mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  if (shared == MAP_FAILED) throw std::bad_alloc();
  int findings = 0, chosen = 0;
  for (const FuzzTarget& target : all) {
    const bool wanted = options.targets.empty() ||
                        std::find(options.targets.begin(), options.targets.end(), target.name) != options.targets.end();
    if (!wanted) continue;
    ++chosen;
    Fuzzer fuzzer(target, options, *new (shared) Shared());
    if (options.only >= 0) std::printf("%s\n", fuzzer.read(options.only) ? "accepted" : "refused");
    else findings += fuzzer.run();
  }
  if (chosen == 0) return usage();
  return findings > 0 ? 1 : 0;
}

}  // namespace
}  // namespace moetune

int main(int argc, char** argv) { return moetune::run(argc, argv); }
