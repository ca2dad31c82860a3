// The name of this host, for messages and for files that several hosts write.
#pragma once

#include <unistd.h>

#include <string>

namespace moetune {

/// Cut to 255 characters; empty where the system does not say it.
inline std::string host_name() {
  char name[256] = "";
  return ::gethostname(name, sizeof name - 1) == 0 ? name : "";
}

}  // namespace moetune
