// Signals that a run obeys between steps: SIGUSR1 saves and goes on, SIGTERM and SIGINT save and leave.
//
//   SignalWatch watch;                       // from here on the signals only set flags
//   if (watch.take_save_request()) ...
#pragma once

namespace moetune {

/// Until there is a watch nothing can be saved: SIGUSR1, which would end the process, does nothing.
void ignore_save_requests();

/// Installs the handlers for its lifetime; one at a time.
class SignalWatch {
 public:
  SignalWatch();
  ~SignalWatch();
  SignalWatch(const SignalWatch&) = delete;
  SignalWatch& operator=(const SignalWatch&) = delete;

  /// Whether SIGUSR1 came since the last call.
  bool take_save_request();
  /// SIGTERM or SIGINT if one came, else 0.
  int stop_signal() const;
};

}  // namespace moetune
