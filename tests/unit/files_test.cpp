// Files, digests, strict JSON and text of messages.
#include "parallel/base/files.h"

#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "parallel/base/error.h"
#include "parallel/base/sha256.h"
#include "parallel/base/strict_json.h"
#include "parallel/base/text.h"
#include "tests/support/catch.h"
#include "tests/support/message_of.h"
#include "tests/support/temporary_folder.h"

using namespace moetune;

namespace {

std::size_t num_entries(const std::string& folder) {
  const std::filesystem::directory_iterator entries(folder);
  return static_cast<std::size_t>(std::distance(begin(entries), end(entries)));
}

// Makes every write beyond `bytes` fail with EFBIG, as a full disk fails with ENOSPC.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) : old_handler_(std::signal(SIGXFSZ, SIG_IGN)) {
    ::getrlimit(RLIMIT_FSIZE, &old_limit_);
    const rlimit limit{bytes, old_limit_.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() {
    ::setrlimit(RLIMIT_FSIZE, &old_limit_);
    std::signal(SIGXFSZ, old_handler_);
  }

 private:
  void (*old_handler_)(int);
  rlimit old_limit_{};
};

}  // namespace

TEST_CASE("a text file is read whole, and errors name path and reason", "[files]") {
  const TemporaryFolder folder;
  std::string text(200'001, 'x');
  text[70'000] = '\0';
  std::ofstream(folder / "a", std::ios::binary) << text;
  CHECK(read_text_file(folder / "a") == text);
  std::ofstream(folder / "empty").close();
  CHECK(read_text_file(folder / "empty").empty());

  const std::string missing = message_of<UserError>([&] { read_text_file(folder / "missing"); });
  CHECK(contains(missing, folder / "missing"));
  CHECK(contains(missing, "No such file or directory"));
  CHECK(contains(message_of<UserError>([&] { read_text_file(folder.path()); }), "Is a directory"));
  CHECK(contains(message_of<UserError>([&] { read_text_file(std::string("a\0b", 3)); }), "NUL"));
  CHECK(contains(message_of<UserError>([&] { read_text_file(""); }), "empty"));
}

TEST_CASE("ranges of a file are read, and reading beyond its end is an error", "[files]") {
  const TemporaryFolder folder;
  std::ofstream(folder / "a") << "0123456789";
  const InputFile file(folder / "a");
  CHECK(file.size() == 10);
  char piece[4] = {};
  file.read(3, piece, 4);
  CHECK(std::string(piece, 4) == "3456");
  file.read(10, piece, 0);
  CHECK(contains(message_of<UserError>([&] { file.read(8, piece, 4); }), "ends at byte 10"));
  CHECK(InputFile(folder / "a").identity() == file.identity());

  CHECK(contains(message_of<UserError>([&] { InputFile{folder / "missing"}; }), "No such file"));
  CHECK(contains(message_of<UserError>([&] { InputFile{folder.path()}; }), "not a regular file"));
  REQUIRE(::mkfifo((folder / "pipe").c_str(), 0600) == 0);
  CHECK(contains(message_of<UserError>([&] { InputFile{folder / "pipe"}; }), "not a regular file"));
}

TEST_CASE("an atomic file appears at commit, replaces the old one, and leaves nothing behind", "[files]") {
  const TemporaryFolder folder;
  const std::string path = folder / "a";
  write_text_atomically(path, "old");
  CHECK(read_text_file(path) == "old");
  SECTION("committed") {
    AtomicFile file(path);
    file.write("ne", 2);
    file.write("w", 1);
    CHECK(read_text_file(path) == "old");
    file.commit();
    CHECK(read_text_file(path) == "new");
    CHECK_THROWS_AS(file.commit(), InternalError);
    CHECK_THROWS_AS(file.write("x", 1), InternalError);
  }
  SECTION("abandoned") {
    {
      AtomicFile file(path);
      file.write("new", 3);
      CHECK(num_entries(folder.path()) == 2);
    }
    CHECK(read_text_file(path) == "old");
  }
  SECTION("the disk refuses") {
    const FileSizeLimit limit(100);
    const std::string text(100'000, 'x');
    const std::string message = message_of<UserError>([&] { write_text_atomically(path, text); });
    CHECK(contains(message, path));
    CHECK(contains(message, "File too large"));
    CHECK(read_text_file(path) == "old");
  }
  SECTION("the disk refuses what was still buffered") {
    const FileSizeLimit limit(1);
    CHECK(contains(message_of<UserError>([&] { write_text_atomically(path, "xyz"); }), "File too large"));
    CHECK(read_text_file(path) == "old");
  }
  SECTION("a killed run of the same pid left its temporary file") {
    const std::string left = str(path, ".tmp-", ::getpid());
    std::filesystem::create_symlink(folder / "elsewhere", left);
    write_text_atomically(path, "new");
    CHECK(read_text_file(path) == "new");
    CHECK(!std::filesystem::is_symlink(path));
  }
  CHECK(num_entries(folder.path()) == 1);
}

TEST_CASE("an atomic file that cannot be created or renamed says why", "[files]") {
  const TemporaryFolder folder;
  CHECK(contains(message_of<UserError>([&] { write_text_atomically(folder / "no/a", "x"); }),
                 "No such file or directory"));
  std::filesystem::create_directory(folder / "taken");
  CHECK(contains(message_of<UserError>([&] { write_text_atomically(folder / "taken", "x"); }), "is a folder"));
  // A rename would replace the device by a file.
  CHECK(contains(message_of<UserError>([&] { write_text_atomically("/dev/full", "x"); }), "no regular file"));
  CHECK(num_entries(folder.path()) == 1);
}

// Expected digests: FIPS 180-4 examples (NIST, SHA256.pdf), and `head -c 5000000 /dev/zero | sha256sum`.
TEST_CASE("SHA-256 digests", "[files]") {
  CHECK(sha256_of("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  CHECK(sha256_of("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  Sha256 pieces;
  pieces.update("abcdbcdecdefdefgefghfghi", 24);
  pieces.update("ghijhijkijkljklmklmnlmnomnopnopq", 32);
  CHECK(pieces.hex() == "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  CHECK_THROWS_AS(pieces.hex(), InternalError);
  CHECK_THROWS_AS(pieces.update("a", 1), InternalError);

  const TemporaryFolder folder;
  write_text_atomically(folder / "zeros", std::string(5'000'000, '\0'));
  CHECK(sha256_of_file(folder / "zeros") == "b39781589c4403fb82174c9647a010464cff38bad976547d339899b00053a545");
  write_text_atomically(folder / "empty", "");
  CHECK(sha256_of_file(folder / "empty") == sha256_of(""));
}

TEST_CASE("JSON that two readers could understand differently is refused", "[files]") {
  const auto refusal = [](const std::string& text) {
    return message_of<UserError>([&] { parse_strict_json(text, "here", 3); });
  };
  CHECK(parse_strict_json(R"({"a": {"b": [1, "x"]}, "c": {"b": 2}} )", "here", 3)["c"]["b"] == 2);
  CHECK(parse_strict_json("7", "here", 0) == 7);
  CHECK(contains(refusal("{\"a\": 1,\n \"b\": 1e400}"), "here: not valid JSON: at line 2, column 7: the number 1e400"));
  CHECK(contains(refusal(R"({"a": 1, "b": 2, "a": 1})"), "key \"a\" is given twice"));
  CHECK(contains(refusal(R"({"x": [{"a": 1}, {"a": 1, "\u0061": 2}]})"), "key \"a\" is given twice"));
  CHECK(contains(refusal(std::string("{}\0{}", 5)), "NUL"));
  CHECK(contains(refusal("[[[[1]]]]"), "nested deeper than the 3 levels"));
  CHECK(contains(refusal(std::string(1'000'000, '[')), "nested deeper"));
  CHECK(contains(refusal("{} {}"), "here: not valid JSON"));
  CHECK(contains(refusal(R"({"a": 1,})"), "not valid JSON"));
  CHECK(contains(refusal("\"\xff\""), "not valid JSON"));
  CHECK(contains(refusal(""), "not valid JSON"));
}

TEST_CASE("names in messages are harmless, and near ones are found", "[files]") {
  CHECK(in_quotes("a.b") == "\"a.b\"");
  CHECK(in_quotes("\x1b[2J\"\n") == R"("\u001b[2J\"\n")");
  CHECK(in_quotes("\xc3\xa9\xff") == R"("\u00e9\ufffd")");
  CHECK(in_quotes(std::string(1000, 'x')).size() < 210);
  CHECK(list_in_quotes({"a", "b"}) == R"("a", "b")");
  const std::vector<std::string> names = {"kitten", "sitting", "mitten", "a", "bitten"};
  CHECK(nearest("sitten", names, 3) == std::vector<std::string>{"kitten", "mitten", "bitten"});
  CHECK(nearest("sittin", names, 1) == std::vector<std::string>{"sitting"});
  CHECK(nearest("x", {}, 3).empty());
}
