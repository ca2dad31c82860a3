// Lines of text over TCP without waiting: what the watchdog talks with, beside MPI, which it may not call.
//
//   LineListener listener;                                     // some free port, all addresses of this host
//   std::optional<LineSocket> socket = connect_lines("10.0.0.1", port, 2.0);
//   socket->send("hello");                                     // queued; goes out now or with the next send or receive
//   for (const std::string& line : socket->receive()) { ... }  // what has come so far
#pragma once

#include <deque>
#include <optional>
#include <string>
#include <vector>

namespace moetune {

/// A file descriptor that is closed at the end.
class OwnedFd {
 public:
  explicit OwnedFd(int fd = -1) : fd_(fd) {}
  ~OwnedFd();
  OwnedFd(OwnedFd&& other) noexcept : fd_(other.fd_) { other.fd_ = -1; }
  OwnedFd& operator=(OwnedFd&& other) noexcept;
  int get() const { return fd_; }

 private:
  int fd_;
};

class LineSocket {
 public:
  /// Takes over a connected socket.
  explicit LineSocket(OwnedFd fd);

  int fd() const { return fd_.get(); }
  /// Queues a line. A peer that does not read loses lines: beyond 1 MiB they are dropped.
  void send(const std::string& line);
  /// Whole lines that have come since the last call; also sends what is queued.
  std::vector<std::string> receive();
  /// The peer closed the connection, or it broke. Lines that came before are still received.
  bool closed() const { return closed_; }
  /// Sends what is queued, for at most so long.
  void flush(double timeout_s);

 private:
  void send_some();

  OwnedFd fd_;
  std::string outgoing_;
  std::string incoming_;
  bool closed_ = false;
};

class LineListener {
 public:
  /// Throws RankLostError where the host has no socket to give.
  LineListener();
  int fd() const { return fd_.get(); }
  int port() const { return port_; }
  /// The next peer, if one has come.
  std::optional<LineSocket> accept();

 private:
  OwnedFd fd_;
  int port_ = 0;
};

/// A connection to a numeric address, or nothing within the time.
std::optional<LineSocket> connect_lines(const std::string& address, int port, double timeout_s);
/// Numeric addresses by which other hosts may reach this one.
std::vector<std::string> own_addresses();

}  // namespace moetune
