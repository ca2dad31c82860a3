// The program's log: what a person reads on the terminal. Rank 0 speaks; other ranks only warn and fail.
//
//   log_init(rank, world_size);
//   log_info(str("read ", gigabytes, " GB"));
#pragma once

#include <string>

namespace moetune {

/// Sets the prefix and the level of this process. Call once at start-up; before it, the process logs as a lone rank.
void log_init(int rank, int world_size);
/// Whatever a message holds of a file or an argument, no control character reaches the terminal (printable() of
/// text.h). Printed on rank 0 alone, to standard output.
void log_info(const std::string& message);
/// Printed on every rank, to standard error, with the rank as prefix.
void log_warn(const std::string& message);
void log_error(const std::string& message);

}  // namespace moetune
