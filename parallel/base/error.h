// The errors of the program and the exit codes that they end it with.
//
//   throw UserError(str("recipe.yaml:12:3: unknown key 'rnak' in adapter; did you mean 'rank'?"));
//   MT_CHECK(rows == counts_sum, "exchange received ", rows, " rows, announced ", counts_sum);
//
// A mistake of the user is never an assert: it is an exception that says what failed, where, the value seen, what is
// allowed, and the fix. MT_CHECK guards what only a defect of moetune can break.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace moetune {

/// Joins its arguments as text: str("rank ", 3) == "rank 3".
template <typename... Parts>
std::string str(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

enum class ExitCode : int {
  kDone = 0,
  kDefect = 1,     ///< a defect of moetune
  kUserError = 2,  ///< a mistake in recipe, data or files; nothing was written over
  kDoesNotFit = 3,
  kNonFinite = 4,  ///< non-finite loss or gradient
  kRankLost = 5,   ///< a rank died, threw or stalled
  kInterrupted = 130,
  kTerminated = 143,
};

/// Base of all errors of ours; `code` is the exit code the program ends with.
class Error : public std::runtime_error {
 public:
  Error(ExitCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ExitCode code() const { return code_; }

 private:
  ExitCode code_;
};

struct UserError : Error {
  explicit UserError(const std::string& message) : Error(ExitCode::kUserError, message) {}
};
struct DoesNotFitError : Error {
  explicit DoesNotFitError(const std::string& message) : Error(ExitCode::kDoesNotFit, message) {}
};
struct NonFiniteError : Error {
  explicit NonFiniteError(const std::string& message) : Error(ExitCode::kNonFinite, message) {}
};
struct RankLostError : Error {
  explicit RankLostError(const std::string& message) : Error(ExitCode::kRankLost, message) {}
};
/// A defect of moetune: the message carries file and line of the broken check.
struct InternalError : Error {
  explicit InternalError(const std::string& message) : Error(ExitCode::kDefect, message) {}
};

}  // namespace moetune

#define MT_CHECK(condition, ...)                                                                       \
  do {                                                                                                 \
    if (!(condition)) {                                                                                \
      throw ::moetune::InternalError(                                                                  \
          ::moetune::str(__FILE__, ":", __LINE__, ": check failed: " #condition ": ", ##__VA_ARGS__)); \
    }                                                                                                  \
  } while (false)
