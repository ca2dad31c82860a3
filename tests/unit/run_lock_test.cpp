// The lock of a run folder: who gets it, who is refused, and when a lock is dead.
#include "trainer/run/run_lock.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <ctime>
#include <sstream>
#include <thread>
#include <vector>

#include <nlohmann/json.hpp>

#include "parallel/base/error.h"
#include "parallel/base/files.h"
#include "tests/support/catch.h"
#include "tests/support/message_of.h"
#include "tests/support/temporary_folder.h"

using namespace moetune;

namespace {

constexpr std::chrono::milliseconds kShort{100};

/// A lock of this process on this host, with changes, as text.
std::string lock_text(const nlohmann::json& changes) {
  const TemporaryFolder folder;
  const RunLock lock(folder.path());
  nlohmann::json json = nlohmann::json::parse(read_text_file(folder / "run.lock"));
  if (changes.is_object()) json.update(changes);
  return json.dump() + "\n";
}

void set_age(const std::string& path, int64_t seconds) {
  const timespec then{std::time(nullptr) - seconds, 0};
  const timespec times[2] = {then, then};
  REQUIRE(::utimensat(AT_FDCWD, path.c_str(), times, 0) == 0);
}

std::string refusal(const TemporaryFolder& folder) {
  return message_of<UserError>([&] { RunLock lock(folder.path(), kShort); });
}

std::vector<std::string> names_in(const TemporaryFolder& folder) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder.path())) {
    names.push_back(entry.path().filename().string());
  }
  return names;
}

/// A process that has ended and that nobody waits for while this lives.
struct EndedProcess {
  EndedProcess() {
    pid = ::fork();
    if (pid == 0) ::_exit(0);
    siginfo_t info;
    ::waitid(P_PID, static_cast<id_t>(pid), &info, WEXITED | WNOWAIT);
    std::istringstream status(read_text_file(str("/proc/", pid, "/stat")));  // the name of this program has no spaces
    std::string field;
    for (int i = 1; i < 22; ++i) status >> field;
    status >> started;
  }
  ~EndedProcess() { ::waitpid(pid, nullptr, 0); }
  pid_t pid = 0;
  int64_t started = 0;  ///< the 22nd field of its stat, proc(5)
};

}  // namespace

TEST_CASE("one run holds a folder, the second is told who, and its end frees the folder", "[run_lock]") {
  const TemporaryFolder folder;
  char host[256] = "";
  ::gethostname(host, sizeof host - 1);
  CHECK(!read_run_lock(folder.path()));
  {
    RunLock lock(folder.path());
    lock.require_held();
    const std::string message = refusal(folder);
    CHECK(contains(message, folder.path() + ": another run holds this folder"));
    CHECK(contains(message, str("process ", ::getpid(), " on host \"", host, "\", since 20")));
    CHECK(contains(message, " UTC"));
    const auto holder = read_run_lock(folder.path());
    REQUIRE(holder);
    CHECK(*holder == lock.holder());
    CHECK(!is_gone(*holder));
    CHECK(names_in(folder) == std::vector<std::string>{"run.lock"});
  }
  CHECK(names_in(folder).empty());
  const RunLock again(folder.path());
}

TEST_CASE("a lock is dead by these signs and no others", "[run_lock]") {
  const TemporaryFolder folder;
  const EndedProcess ended;
  const int64_t now = std::time(nullptr);
  struct Case {
    const char* what;
    nlohmann::json changes;
    int64_t age_s;
    bool dead;
  };
  for (const Case& test : std::vector<Case>{
           {"this process, alive", {}, 0, false},
           {"alive, but without heartbeat for an hour: it may have been stopped", {}, 3600, false},
           {"a process that ended and is not yet waited for",
            {{"pid", ended.pid}, {"started", ended.started}},
            0,
            true},
           {"no process has this number", {{"pid", 4194305}}, 0, true},
           {"another process has the number: it began at another time", {{"started", 1}}, 0, true},
           {"another host, heard of now", {{"host", "elsewhere"}, {"pid", 4194305}}, 0, false},
           {"another host, 55 s old", {{"host", "elsewhere"}}, 55, false},
           {"another host, 61 s old", {{"host", "elsewhere"}}, 61, true},
           {"this host's name, another start of it: perhaps another host", {{"boot", "x"}, {"pid", 4194305}}, 0, false},
           {"another container with this name", {{"pid_namespace", "pid:[1]"}, {"pid", 4194305}}, 0, false},
           {"another container with this name, dead", {{"pid_namespace", "pid:[1]"}}, 61, true},
           {"old by its own clock alone, and not renewed", {{"host", "elsewhere"}, {"heartbeat", now - 100}}, 0, true},
       }) {
    INFO(test.what);
    write_text_atomically(folder / "run.lock", lock_text(test.changes));
    set_age(folder / "run.lock", test.age_s);
    if (test.dead) {
      RunLock lock(folder.path(), kShort);
      lock.require_held();
      CHECK(read_run_lock(folder.path())->token == lock.holder().token);
      CHECK(names_in(folder) == std::vector<std::string>{"run.lock"});
    } else {
      const std::string before = read_text_file(folder / "run.lock");
      CHECK(contains(refusal(folder), "another run holds this folder"));
      CHECK(read_text_file(folder / "run.lock") == before);
      std::filesystem::remove(folder / "run.lock");
    }
  }
}

TEST_CASE("what is no lock is refused by its name and stays", "[run_lock]") {
  const TemporaryFolder folder;
  const std::string path = folder / "run.lock";
  std::string expected = "is no lock of a run";
  SECTION("a text of the user's") { write_text_atomically(path, "my notes\n"); }
  SECTION("another JSON") { write_text_atomically(path, "{\"format\": 3}"); }
  SECTION("a wrong type") { write_text_atomically(path, lock_text({{"pid", "seven"}})); }
  SECTION("a token that leads elsewhere") { write_text_atomically(path, lock_text({{"token", "../x"}})); }
  SECTION("empty") { write_text_atomically(path, ""); }
  SECTION("a pipe") {
    REQUIRE(::mkfifo(path.c_str(), 0600) == 0);
    expected = "not a regular file";
  }
  SECTION("a link") {
    write_text_atomically(folder / "other", lock_text({}));
    std::filesystem::create_symlink("other", path);
    expected = "symbolic link";
  }
  SECTION("huge") {
    write_text_atomically(path, std::string(5000, ' '));
    expected = "has 5000 bytes";
  }
  const std::string message = refusal(folder);
  CHECK(contains(message, path));
  CHECK(contains(message, expected));
  CHECK(std::filesystem::exists(std::filesystem::symlink_status(path)));
}

TEST_CASE("of many that start at once exactly one gets the folder", "[run_lock]") {
  const bool over_dead = GENERATE(false, true);
  INFO("over a dead lock: " << over_dead);
  constexpr int kRounds = 30, kStarters = 8;
  for (int round = 0; round < kRounds; ++round) {
    const TemporaryFolder folder;
    if (over_dead) write_text_atomically(folder / "run.lock", lock_text({{"pid", 4194305}}));
    std::atomic<int> ready = 0, winners = 0, refused = 0;
    std::atomic<bool> done = false;
    std::vector<std::thread> starters;
    for (int i = 0; i < kStarters; ++i) {
      starters.emplace_back([&] {
        ++ready;
        while (ready < kStarters) std::this_thread::yield();
        try {
          RunLock lock(folder.path());
          ++winners;
          while (!done) std::this_thread::yield();
          lock.require_held();
        } catch (const UserError&) {
          ++refused;
        }
      });
    }
    while (winners + refused < kStarters) std::this_thread::yield();
    CHECK(winners == 1);
    done = true;
    for (std::thread& starter : starters) starter.join();
    CHECK(names_in(folder).empty());
  }
}

TEST_CASE("who died between taking over and putting its lock in place is succeeded in turn", "[run_lock]") {
  const TemporaryFolder folder;
  write_text_atomically(folder / "run.lock", lock_text({{"pid", 4194305}, {"token", "aa"}}));
  const std::string heir = folder / "run.lock.after-aa";
  SECTION("it lives: it holds the folder") {
    write_text_atomically(heir, lock_text({{"token", "bb"}}));
    CHECK(read_run_lock(folder.path())->token == "bb");
    CHECK(contains(refusal(folder), "another run holds this folder"));
  }
  SECTION("it is dead too") {
    write_text_atomically(heir, lock_text({{"pid", 4194305}, {"token", "bb"}}));
    const RunLock lock(folder.path());
    CHECK(read_run_lock(folder.path())->token == lock.holder().token);
  }
  SECTION("an heir of a lock that is no longer there holds nothing") {
    write_text_atomically(folder / "run.lock.after-dd", lock_text({{"token", "bb"}}));
    const RunLock lock(folder.path());
    CHECK(read_run_lock(folder.path())->token == lock.holder().token);
  }
}

TEST_CASE("a run whose folder was taken over while it stood still writes no more", "[run_lock]") {
  const TemporaryFolder folder;
  RunLock lock(folder.path(), kShort);
  const std::string own = read_text_file(folder / "run.lock");
  nlohmann::json other = nlohmann::json::parse(own);
  other["token"] = "cc";
  other["host"] = "elsewhere";
  write_text_atomically(folder / "run.lock", other.dump());
  std::string message;
  for (int i = 0; i < 80 && message.empty(); ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    try {
      lock.require_held();
    } catch (const RankLostError& error) {
      message = error.what();
    }
  }
  CHECK(contains(message, "no longer holds its folder (now held by process"));
  CHECK(contains(message, "elsewhere"));
}

TEST_CASE("the heartbeat renews the lock in place", "[run_lock]") {
  const TemporaryFolder folder;
  const RunLock lock(folder.path(), kShort);
  set_age(folder / "run.lock", 1000);
  struct stat status;
  int64_t age = 1000;
  for (int i = 0; i < 80 && age > 10; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    REQUIRE(::stat((folder / "run.lock").c_str(), &status) == 0);
    age = std::time(nullptr) - status.st_mtim.tv_sec;
  }
  CHECK(age <= 10);
  CHECK(read_run_lock(folder.path())->token == lock.holder().token);
}
