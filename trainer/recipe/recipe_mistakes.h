// The mistakes found in one recipe, collected so that the user hears of all of them at once.
//
//   Mistakes mistakes("recipe.yaml");
//   mistakes.at(node, "adapter.rnak: unknown key; did you mean 'rank'?");
//   mistakes.raise_if_any();      // UserError: recipe.yaml:3:5: adapter.rnak: unknown key; did you mean 'rank'?
//
// They are told in the order of the file; those of what is missing and of the command line come last.
#pragma once

#include <algorithm>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "parallel/base/error.h"
#include "trainer/recipe/recipe_yaml.h"

namespace moetune {

class Mistakes {
 public:
  static constexpr const char* kCommandLine = "command line";

  explicit Mistakes(std::string file) : file_(std::move(file)) {}

  /// `line` and `column` count from 1.
  void at(int line, int column, const std::string& what) {
    add(line, column, str(file_, ":", line, ":", column, ": ", what));
  }
  void in_file(const std::string& what) { add(kLast, 0, str(file_, ": ", what)); }
  void on_command_line(const std::string& what) { add(kLast, 1, str(kCommandLine, ": ", what)); }
  /// At a node: a place in the file, or the command line for a node without one.
  void at(const YamlNode& node, const std::string& what) {
    node.line > 0 ? at(node.line, node.column, what) : on_command_line(what);
  }

  /// Throws one UserError with a line per mistake, if there is any.
  void raise_if_any() {
    if (mistakes_.empty()) return;
    std::stable_sort(mistakes_.begin(), mistakes_.end(), [](const Mistake& a, const Mistake& b) {
      return std::tie(a.line, a.column) < std::tie(b.line, b.column);
    });
    std::string text;
    for (size_t i = 0; i < mistakes_.size() && i < kMaxListed; ++i) text += (i == 0 ? "" : "\n") + mistakes_[i].text;
    if (mistakes_.size() > kMaxListed) text += str("\n", file_, ": ", mistakes_.size() - kMaxListed, " more mistakes");
    throw UserError(text);
  }

 private:
  struct Mistake {
    int line;
    int column;
    std::string text;
  };
  static constexpr int kLast = 1 << 30;
  static constexpr size_t kMaxListed = 50;

  void add(int line, int column, const std::string& text) { mistakes_.push_back({line, column, text}); }

  std::string file_;
  std::vector<Mistake> mistakes_;
};

/// "train" and "steps" give "train.steps"; an empty prefix gives the key alone.
inline std::string joined(const std::string& prefix, const std::string& key) {
  return prefix.empty() ? key : prefix + "." + key;
}

}  // namespace moetune
