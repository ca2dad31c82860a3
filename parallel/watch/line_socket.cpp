#include "parallel/watch/line_socket.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <utility>

#include "parallel/base/error.h"

namespace moetune {
namespace {

constexpr size_t kMostQueued = size_t{1} << 20;

}  // namespace

OwnedFd::~OwnedFd() {
  if (fd_ >= 0) ::close(fd_);
}

OwnedFd& OwnedFd::operator=(OwnedFd&& other) noexcept {
  std::swap(fd_, other.fd_);
  return *this;
}

LineSocket::LineSocket(OwnedFd fd) : fd_(std::move(fd)) {
  ::fcntl(fd_.get(), F_SETFL, O_NONBLOCK);
  const int on = 1;
  ::setsockopt(fd_.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

void LineSocket::send(const std::string& line) {
  if (closed_ || outgoing_.size() + line.size() >= kMostQueued) return;
  outgoing_ += line + "\n";
  send_some();
}

void LineSocket::send_some() {
  while (!closed_ && !outgoing_.empty()) {
    const ssize_t sent = ::send(fd_.get(), outgoing_.data(), outgoing_.size(), MSG_NOSIGNAL);
    if (sent > 0) {
      outgoing_.erase(0, static_cast<size_t>(sent));
    } else if (errno != EINTR) {
      // A broken connection is told by receive, after what came before it broke.
      if (errno != EAGAIN && errno != EWOULDBLOCK) outgoing_.clear();
      return;
    }
  }
}

std::vector<std::string> LineSocket::receive() {
  send_some();
  char buffer[16384];
  while (!closed_) {
    const ssize_t got = ::recv(fd_.get(), buffer, sizeof buffer, 0);
    if (got > 0) {
      incoming_.append(buffer, static_cast<size_t>(got));
      if (incoming_.size() > 4 * kMostQueued) closed_ = true;  // no peer of ours
    } else if (got == 0 || (errno != EINTR && errno != EAGAIN && errno != EWOULDBLOCK)) {
      closed_ = true;
    } else if (errno != EINTR) {
      break;
    }
  }
  std::vector<std::string> lines;
  size_t begin = 0;
  for (size_t end; (end = incoming_.find('\n', begin)) != std::string::npos; begin = end + 1) {
    lines.push_back(incoming_.substr(begin, end - begin));
  }
  incoming_.erase(0, begin);
  return lines;
}

void LineSocket::flush(double timeout_s) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(timeout_s);
  for (send_some(); !closed_ && !outgoing_.empty() && std::chrono::steady_clock::now() < end; send_some()) {
    pollfd ready{fd_.get(), POLLOUT, 0};
    ::poll(&ready, 1, 20);
  }
}

LineListener::LineListener() {
  // One socket for both families where the kernel has IPv6, else IPv4 alone.
  fd_ = OwnedFd(::socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  const int off = 0;
  sockaddr_in6 six{};
  six.sin6_family = AF_INET6;
  socklen_t six_bytes = sizeof six;
  if (fd_.get() >= 0 && ::setsockopt(fd_.get(), IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off) == 0 &&
      ::bind(fd_.get(), reinterpret_cast<sockaddr*>(&six), sizeof six) == 0 && ::listen(fd_.get(), SOMAXCONN) == 0 &&
      ::getsockname(fd_.get(), reinterpret_cast<sockaddr*>(&six), &six_bytes) == 0) {
    port_ = ntohs(six.sin6_port);
    return;
  }
  fd_ = OwnedFd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  sockaddr_in four{};
  four.sin_family = AF_INET;
  socklen_t four_bytes = sizeof four;
  if (fd_.get() < 0 || ::bind(fd_.get(), reinterpret_cast<sockaddr*>(&four), sizeof four) != 0 ||
      ::listen(fd_.get(), SOMAXCONN) != 0 ||
      ::getsockname(fd_.get(), reinterpret_cast<sockaddr*>(&four), &four_bytes) != 0) {
    throw RankLostError(str("the watchdog cannot listen on a TCP port: ", std::strerror(errno),
                            "; run.stall_timeout_s=0 does without it"));
  }
  port_ = ntohs(four.sin_port);
}

std::optional<LineSocket> LineListener::accept() {
  OwnedFd fd(::accept4(fd_.get(), nullptr, nullptr, SOCK_CLOEXEC));
  if (fd.get() < 0) return std::nullopt;
  return LineSocket(std::move(fd));
}

std::optional<LineSocket> connect_lines(const std::string& address, int port, double timeout_s) {
  sockaddr_in four{};
  four.sin_family = AF_INET;
  four.sin_port = htons(static_cast<uint16_t>(port));
  sockaddr_in6 six{};
  six.sin6_family = AF_INET6;
  six.sin6_port = four.sin_port;
  const bool is_four = ::inet_pton(AF_INET, address.c_str(), &four.sin_addr) == 1;
  if (!is_four && ::inet_pton(AF_INET6, address.c_str(), &six.sin6_addr) != 1) return std::nullopt;
  const sockaddr* target = is_four ? reinterpret_cast<const sockaddr*>(&four) : reinterpret_cast<const sockaddr*>(&six);
  OwnedFd fd(::socket(target->sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (fd.get() < 0) return std::nullopt;
  if (::connect(fd.get(), target, is_four ? sizeof four : sizeof six) != 0) {
    if (errno != EINPROGRESS) return std::nullopt;
    pollfd ready{fd.get(), POLLOUT, 0};
    int error = 0;
    socklen_t error_bytes = sizeof error;
    if (::poll(&ready, 1, static_cast<int>(timeout_s * 1000)) != 1) return std::nullopt;
    if (::getsockopt(fd.get(), SOL_SOCKET, SO_ERROR, &error, &error_bytes) != 0 || error != 0) return std::nullopt;
  }
  return LineSocket(std::move(fd));
}

std::vector<std::string> own_addresses() {
  std::vector<std::string> addresses;
  ifaddrs* first = nullptr;
  if (::getifaddrs(&first) != 0) return addresses;
  for (const ifaddrs* each = first; each != nullptr; each = each->ifa_next) {
    if (each->ifa_addr == nullptr || (each->ifa_flags & IFF_UP) == 0 || (each->ifa_flags & IFF_LOOPBACK) != 0) continue;
    char text[INET6_ADDRSTRLEN] = "";
    if (each->ifa_addr->sa_family == AF_INET) {
      ::inet_ntop(AF_INET, &reinterpret_cast<const sockaddr_in*>(each->ifa_addr)->sin_addr, text, sizeof text);
      addresses.insert(addresses.begin(), text);
    } else if (each->ifa_addr->sa_family == AF_INET6) {
      const in6_addr& address = reinterpret_cast<const sockaddr_in6*>(each->ifa_addr)->sin6_addr;
      if (IN6_IS_ADDR_LINKLOCAL(&address)) continue;  // means nothing without its interface
      ::inet_ntop(AF_INET6, &address, text, sizeof text);
      addresses.push_back(text);
    }
  }
  ::freeifaddrs(first);
  return addresses;
}

}  // namespace moetune
