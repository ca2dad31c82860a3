// A named stretch of the host's time in a trace, with the work that it gave to the device inside; nothing where no
// profiler runs.
//
//   const TraceRange range("experts");
//   const TraceRange layer([&] { return str(op.layer, " down"); });   // the name is made where somebody reads it alone
//
// A range belongs to the thread that opened it, and ranges of a thread nest. Without a profiler it costs the question
// whether there is one: 20 ns, no memory.
#pragma once

#include <ATen/record_function.h>

#include <concepts>
#include <optional>
#include <string>
#include <utility>

namespace moetune {

class TraceRange {
 public:
  /// `name`: a literal.
  explicit TraceRange(const char* name) {
    if (begins()) record_->before(name);
  }
  template <std::invocable Name>
  explicit TraceRange(const Name& name) {
    if (begins()) record_->before(std::string(name()));
  }
  TraceRange(const TraceRange&) = delete;
  TraceRange& operator=(const TraceRange&) = delete;

 private:
  bool begins() {
    std::optional<at::StepCallbacks> readers = at::getStepCallbacksUnlessEmpty(at::RecordScope::USER_SCOPE);
    if (readers) record_.emplace(std::move(*readers));
    return record_.has_value();
  }

  std::optional<at::RecordFunction> record_;
};

}  // namespace moetune
