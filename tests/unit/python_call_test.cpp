#include "parallel/base/python_call.h"

#include <cstdlib>

#include "parallel/base/error.h"
#include "tests/support/catch.h"
#include "tests/support/message_of.h"

using namespace moetune;

namespace {

/// A shell stands for Python: what is called only has to write and to end.
std::string output_of(const std::string& script, ErrorText error_text = ErrorText::kThrown) {
  return python_output({"sh", "-c", script}, "drawing", error_text);
}

}  // namespace

TEST_CASE("a call gives what was written, whatever is written beside it", "[python_call]") {
  CHECK(output_of("echo a; echo b").compare("a\nb\n") == 0);
  CHECK(output_of("").empty());
  // More than a pipe holds, on both at once.
  const std::string much = "i=0; while [ $i -lt 3000 ]; do printf %0100d 0; printf %0100d 0 >&2; i=$((i+1)); done";
  CHECK(output_of(much) == std::string(300000, '0'));
}

TEST_CASE("how a call ended becomes the error that fits", "[python_call]") {
  CHECK(message_of<UserError>([] { output_of("echo lost; echo 'no such run' >&2; exit 2"); }) == "no such run");
  CHECK(message_of<UserError>([] { output_of("exit 2", ErrorText::kShown); }).starts_with("drawing failed"));
  CHECK(message_of<DoesNotFitError>([] { output_of("exit 3"); }).starts_with("drawing was ended"));
  CHECK(message_of<DoesNotFitError>([] { output_of("kill -9 $$"); }).starts_with("drawing was ended"));
  CHECK(message_of<InternalError>([] { output_of("echo why >&2; exit 1"); }) == "drawing ended with 1: why");
  CHECK(message_of<InternalError>([] { output_of("kill -15 $$"); }) == "drawing ended with 143");
  CHECK(message_of<UserError>([] { python_output({"/dev/null"}, "drawing"); }).find("MOETUNE_PYTHON") !=
        std::string::npos);
}

TEST_CASE("the environment names another Python", "[python_call]") {
  const ProgramFiles files{"recipes", "prepare", "draw", "python of the tree"};
  ::setenv("MOETUNE_PYTHON", "", 1);
  CHECK(chosen_python(files) == "python of the tree");
  ::setenv("MOETUNE_PYTHON", "another", 1);
  CHECK(chosen_python(files) == "another");
  ::unsetenv("MOETUNE_PYTHON");
}
