// A call of the program's own Python, which writes its result to standard output.
//
//   const std::string made = python_output({chosen_python(files), files.prepare, "a.jsonl"}, "preparing the data");
//   const std::string page = python_output({chosen_python(files), files.draw, "run", "runs/a"}, "drawing the page",
//                                          ErrorText::kThrown);
//
// What is called ends with 0, with 2 for a mistake of the user's, or with 3 where memory does not suffice.
#pragma once

#include <string>
#include <vector>

#include "parallel/base/program_files.h"

namespace moetune {

/// MOETUNE_PYTHON of the environment, else the Python that goes with the program, else python3.
std::string chosen_python(const ProgramFiles& files);

/// What becomes of the standard error of what is called.
enum class ErrorText {
  kShown,   ///< it is ours: seen as it comes
  kThrown,  ///< it is the message of the error that is thrown
};

/// What the command writes to standard output, once it has ended with 0. `task` begins messages. UserError where it
/// cannot be started or ends with 2, DoesNotFitError with 3 or SIGKILL, InternalError otherwise.
std::string python_output(const std::vector<std::string>& command, const std::string& task,
                          ErrorText error_text = ErrorText::kShown);

}  // namespace moetune
