// What an error says, for tests of messages: Catch2's two versions spell their matchers differently.
//
//   CHECK(message_of<UserError>([&] { read_text_file(path); }).find("No such file") != std::string::npos);
#pragma once

#include <string>

namespace moetune {

/// Runs `action` and returns what() of the Expected that it throws; "(nothing was thrown)" if it throws nothing. An
/// exception of another type passes through and fails the test.
template <typename Expected, typename Action>
std::string message_of(Action&& action) {
  try {
    action();
  } catch (const Expected& error) {
    return error.what();
  }
  return "(nothing was thrown)";
}

inline bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace moetune
