// An exception as what the program ends with: an exit code and a message. The one place that knows the exceptions of
// libraries; nothing that a file, an argument or a machine can cause is a defect.
//
//   try {
//     ...
//   } catch (...) {
//     const Failure failure = current_failure();
//     log_error(failure.message);
//     return static_cast<int>(failure.code);
//   }
#pragma once

#include <string>

#include "parallel/base/error.h"

namespace moetune {

struct Failure {
  ExitCode code;
  std::string message;
};

/// The exception that is being handled. Ours say themselves what they are; a refusal of the file system and text that a
/// parser could not take are mistakes of the user's, named with their path; lack of memory, on the host or a GPU, and
/// sizes that no machine has are kDoesNotFit; all else is a defect.
Failure current_failure();

/// From now on an exception that would end the process by a signal, as one that leaves a thread does, is printed and
/// ends it with its exit code. And so does a page of a mapped file that the disk cannot deliver (SIGBUS).
void end_without_signals();

}  // namespace moetune
