#include "parallel/base/program_files.h"

#include "parallel/base/error.h"
#include "parallel/base/files.h"
#include "tests/support/catch.h"
#include "tests/support/message_of.h"
#include "tests/support/temporary_folder.h"

using namespace moetune;
namespace fs = std::filesystem;

namespace {

void make_tree(const fs::path& root) {
  fs::create_directories(root / "recipes");
  fs::create_directories(root / "scripts" / "prepare");
  fs::create_directories(root / "scripts" / "draw");
}

void make_file(const fs::path& path, const std::string& text) {
  fs::create_directories(path.parent_path());
  write_text_atomically(path.string(), text);
}

}  // namespace

TEST_CASE("the program's files are found beside it, wherever the tree lies", "[program_files]") {
  const TemporaryFolder folder;
  const fs::path root = folder.path();
  make_tree(root / "installed/share/moetune");
  make_tree(root / "checkout");
  make_file(root / "a python", "");

  CHECK(program_files_of(root / "installed/bin/moetune", root / "checkout").recipes ==
        root / "installed/share/moetune/recipes");
  CHECK(program_files_of(root / "checkout/build/moetune", "").prepare == root / "checkout/scripts/prepare");
  CHECK(program_files_of(root / "checkout/build/moetune", "").draw == root / "checkout/scripts/draw");
  CHECK(program_files_of(root / "elsewhere/bin/moetune", root / "checkout").recipes == root / "checkout/recipes");
  CHECK(program_files_of("", root / "checkout").recipes == root / "checkout/recipes");

  SECTION("the Python is the recorded one, that of the checkout, or the machine's") {
    CHECK(program_files_of(root / "installed/bin/moetune", "").python == "python3");
    make_file(root / "installed/share/moetune/python", (root / "a python").string() + "\n");
    CHECK(program_files_of(root / "installed/bin/moetune", "").python == (root / "a python").string());
    make_file(root / "installed/share/moetune/python", (root / "gone").string() + "\n");
    CHECK(program_files_of(root / "installed/bin/moetune", "").python == "python3");
    make_file(root / "checkout/.venv/bin/python", "");
    CHECK(program_files_of(root / "checkout/build/moetune", "").python ==
          (root / "checkout/.venv/bin/python").string());
  }
  SECTION("a program without its files says where it looked") {
    const std::string message =
        message_of<UserError>([&] { program_files_of(root / "alone/bin/moetune", root / "no checkout"); });
    CHECK(message.find((root / "alone/share/moetune").string()) != std::string::npos);
    CHECK(message.find((root / "no checkout").string()) != std::string::npos);
  }
}
