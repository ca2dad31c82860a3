#include "trainer/run/signals.h"

#include <csignal>

namespace moetune {
namespace {

// A handler may touch nothing but such flags.
volatile std::sig_atomic_t save_requested = 0;
volatile std::sig_atomic_t stop_requested = 0;

void on_signal(int signal) {
  if (signal == SIGUSR1) save_requested = 1;
  else stop_requested = signal;
}

}  // namespace

void ignore_save_requests() { std::signal(SIGUSR1, SIG_IGN); }

SignalWatch::SignalWatch() {
  save_requested = 0;
  stop_requested = 0;
  for (int signal : {SIGUSR1, SIGTERM, SIGINT}) std::signal(signal, on_signal);
}

SignalWatch::~SignalWatch() {
  ignore_save_requests();
  for (int signal : {SIGTERM, SIGINT}) std::signal(signal, SIG_DFL);
}

bool SignalWatch::take_save_request() {
  const bool requested = save_requested != 0;
  save_requested = 0;
  return requested;
}

int SignalWatch::stop_signal() const { return stop_requested; }

}  // namespace moetune
