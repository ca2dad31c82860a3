#include "trainer/recipe/recipe_yaml.h"

#include <algorithm>
#include <charconv>
#include <sstream>
#include <unordered_map>
#include <utility>

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/parser.h>

#include "parallel/base/error.h"

namespace moetune {
namespace {

struct TooDeep {};

constexpr const char* kNoAlias = "an alias (*name) is not allowed in a recipe; write the value out";

/// What the parser said; an alias to nothing, which versions of yaml-cpp word differently, is an alias first of all.
std::string problem_of(const YAML::Exception& error) {
  return error.msg.find("referenced anchor") != std::string::npos ? kNoAlias : str("not YAML: ", error.msg);
}

class TreeBuilder : public YAML::EventHandler {
 public:
  explicit TreeBuilder(YamlDocument& document) : document_(document) {}

  void OnDocumentStart(const YAML::Mark&) override {}
  void OnDocumentEnd() override {}

  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    refuse_anchor(mark, anchor);
    add(node_at(mark, YamlNode::Kind::kNull));
  }

  void OnAlias(const YAML::Mark& mark, YAML::anchor_t) override {
    mistake(mark, kNoAlias);
    add(node_at(mark, YamlNode::Kind::kInvalid));
  }

  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& value) override {
    refuse_anchor(mark, anchor);
    refuse_tag(mark, tag);
    YamlNode node = node_at(mark, YamlNode::Kind::kScalar);
    node.text = value;
    node.quoted = tag == "!";  // the library's mark of a scalar that is not plain
    add(std::move(node));
  }

  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    open(mark, tag, anchor, YamlNode::Kind::kList);
  }
  void OnSequenceEnd() override { close(); }
  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    open(mark, tag, anchor, YamlNode::Kind::kMap);
  }
  void OnMapEnd() override { close(); }

 private:
  // A list or map that is still being read; in a map, the entry whose value comes next.
  struct Frame {
    YamlNode node;
    std::optional<YamlEntry> entry;
    bool drop_entry = false;                            // its key was a mistake
    std::unordered_map<std::string, std::string> seen;  // key -> line:column
  };

  static YamlNode node_at(const YAML::Mark& mark, YamlNode::Kind kind) {
    YamlNode node;
    node.kind = kind;
    node.line = mark.line + 1;
    node.column = mark.column + 1;
    return node;
  }

  void mistake(const YAML::Mark& mark, const std::string& what) {
    document_.mistakes.push_back({mark.line + 1, mark.column + 1, what});
  }

  void refuse_anchor(const YAML::Mark& mark, YAML::anchor_t anchor) {
    if (anchor != 0) {
      mistake(mark, "an anchor (&name) is not allowed in a recipe; write the value out where it is used");
    }
  }

  void refuse_tag(const YAML::Mark& mark, const std::string& tag) {
    if (!tag.empty() && tag != "?" && tag != "!") {
      mistake(mark, str("the tag '", tag, "' is not allowed in a recipe; the key alone decides the type"));
    }
  }

  void open(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor, YamlNode::Kind kind) {
    refuse_anchor(mark, anchor);
    refuse_tag(mark, tag);
    if (frames_.size() == kMaxYamlDepth) {
      mistake(mark, str("nested deeper than ", kMaxYamlDepth, " levels"));
      throw TooDeep();
    }
    frames_.emplace_back();
    frames_.back().node = node_at(mark, kind);
  }

  void close() {
    YamlNode node = std::move(frames_.back().node);
    frames_.pop_back();
    add(std::move(node));
  }

  void add(YamlNode node) {
    if (frames_.empty()) {
      document_.root = std::move(node);
      return;
    }
    Frame& frame = frames_.back();
    if (frame.node.kind == YamlNode::Kind::kList) {
      frame.node.items.push_back(std::move(node));
    } else if (!frame.entry) {
      begin_entry(frame, node);
    } else {
      frame.entry->value = std::move(node);
      if (!frame.drop_entry) frame.node.entries.push_back(std::move(*frame.entry));
      frame.entry.reset();
    }
  }

  void begin_entry(Frame& frame, const YamlNode& key) {
    const YAML::Mark mark = mark_of(key);
    frame.drop_entry = true;
    if (key.kind != YamlNode::Kind::kScalar) {
      if (key.kind != YamlNode::Kind::kInvalid) mistake(mark, "a key must be text");
    } else if (key.text == "<<" && !key.quoted) {
      mistake(mark, "a merge key (<<) is not allowed in a recipe; write the values out");
    } else {
      const auto [first, is_new] = frame.seen.emplace(key.text, str(key.line, ":", key.column));
      frame.drop_entry = !is_new;
      if (!is_new) mistake(mark, str("the key '", key.text, "' was already given at ", first->second));
    }
    frame.entry = YamlEntry{key.text, key.line, key.column, {}};
  }

  static YAML::Mark mark_of(const YamlNode& node) {
    YAML::Mark mark;
    mark.line = node.line - 1;
    mark.column = node.column - 1;
    return mark;
  }

  YamlDocument& document_;
  std::vector<Frame> frames_;
};

// Takes the longest run of digits at `at`; false when there is none.
bool skip_digits(const std::string& text, size_t& at) {
  const size_t begin = at;
  while (at < text.size() && text[at] >= '0' && text[at] <= '9') ++at;
  return at > begin;
}

// -?(0|[1-9][0-9]*)
bool skip_integer(const std::string& text, size_t& at) {
  if (at < text.size() && text[at] == '-') ++at;
  const size_t first = at;
  if (!skip_digits(text, at)) return false;
  return text[first] != '0' || at == first + 1;
}

template <typename Number>
std::optional<Number> convert(const std::string& text) {
  Number value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

}  // namespace

YamlDocument parse_yaml(const std::string& text) {
  YamlDocument document;
  const auto whole_file = [&](const std::string& what) {
    document.root.kind = YamlNode::Kind::kInvalid;
    document.mistakes.push_back({0, 0, what});
    return document;
  };
  if (text.size() > kMaxYamlBytes) {
    return whole_file(str("larger than the ", kMaxYamlBytes, " bytes that a recipe may have"));
  }
  const bool has_control = std::any_of(text.begin(), text.end(),
                                       [](unsigned char c) { return c < 0x20 && c != '\n' && c != '\r' && c != '\t'; });
  if (has_control) return whole_file("holds control characters; a recipe is UTF-8 text");

  TreeBuilder builder(document);
  try {
    std::istringstream stream(text);
    YAML::Parser parser(stream);
    parser.HandleNextDocument(builder);
    YamlDocument rest;
    TreeBuilder rest_builder(rest);
    if (parser.HandleNextDocument(rest_builder)) {
      document.mistakes.push_back(
          {rest.root.line, rest.root.column, "a second document begins; a recipe is one document"});
    }
  } catch (const YAML::Exception& error) {
    document.root.kind = YamlNode::Kind::kInvalid;
    document.mistakes.push_back({error.mark.line + 1, error.mark.column + 1, problem_of(error)});
  } catch (const TooDeep&) {
    document.root.kind = YamlNode::Kind::kInvalid;
  }
  return document;
}

std::optional<int64_t> parse_integer(const std::string& text) {
  size_t at = 0;
  if (!skip_integer(text, at) || at != text.size()) return std::nullopt;
  return convert<int64_t>(text);
}

std::optional<double> parse_number(const std::string& text) {
  size_t at = 0;
  if (!skip_integer(text, at)) return std::nullopt;
  if (at < text.size() && text[at] == '.' && !skip_digits(text, ++at)) return std::nullopt;
  if (at < text.size() && (text[at] == 'e' || text[at] == 'E')) {
    ++at;
    if (at < text.size() && (text[at] == '-' || text[at] == '+')) ++at;
    if (!skip_digits(text, at)) return std::nullopt;
  }
  if (at != text.size()) return std::nullopt;
  return convert<double>(text);
}

std::optional<bool> parse_boolean(const std::string& text) {
  if (text == "true") return true;
  if (text == "false") return false;
  return std::nullopt;
}

}  // namespace moetune
