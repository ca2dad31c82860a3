// Documents::from_jsonl: already tokenised lines, parsed one at a time without building a JSON tree.
#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "parallel/base/error.h"
#include "parallel/base/text.h"
#include "trainer/data/documents.h"

namespace moetune {
namespace {

constexpr size_t kMaxLineBytes = size_t{64} << 20;
constexpr size_t kNamedLines = 5;

// Lines of a file, never more than kMaxLineBytes of one in memory.
class LineReader {
 public:
  explicit LineReader(const std::string& path) : path_(path), file_(std::fopen(path.c_str(), "rb"), &std::fclose) {
    if (!file_) fail("cannot be opened");
  }

  // The next line without its end, or nothing at the end of the file. Of a line that is too long only the beginning is
  // kept, and too_long() says so.
  std::optional<std::string_view> next() {
    line_.clear();
    too_long_ = false;
    bool any = false;
    while (begin_ < end_ || fill()) {
      any = true;
      const char* first = buffer_.data() + begin_;
      const auto* newline = static_cast<const char*>(std::memchr(first, '\n', end_ - begin_));
      const size_t length = newline ? static_cast<size_t>(newline - first) : end_ - begin_;
      begin_ += length + (newline ? 1 : 0);
      const size_t room = kMaxLineBytes - line_.size();
      too_long_ = too_long_ || length > room;
      line_.append(first, std::min(length, room));
      if (newline) break;
    }
    if (!any) return std::nullopt;
    ++number_;
    return line_;
  }

  bool too_long() const { return too_long_; }
  std::int64_t number() const { return number_; }  // of the last line, from 1

 private:
  bool fill() {
    begin_ = 0;
    end_ = std::fread(buffer_.data(), 1, buffer_.size(), file_.get());
    if (end_ == 0 && std::ferror(file_.get())) fail("cannot be read");
    return end_ > 0;
  }
  [[noreturn]] void fail(const char* what) const { throw UserError(str(path_, " ", what, ": ", std::strerror(errno))); }

  std::string path_;
  std::unique_ptr<std::FILE, int (*)(std::FILE*)> file_;
  std::vector<char> buffer_ = std::vector<char>(1 << 20);
  size_t begin_ = 0, end_ = 0;
  std::string line_;
  bool too_long_ = false;
  std::int64_t number_ = 0;
};

bool is_blank(std::string_view line) { return line.find_first_not_of(" \t\r\v\f") == std::string_view::npos; }

// The lists that a line may hold, in the order of LineHandler::lists_.
constexpr std::array<const char*, 4> kLists = {"input_ids", "labels", "attention_mask", "position_ids"};
constexpr size_t kNeeded = 2;  // the first of them

// The byte of a line, from 1, that the JSON parser would pass over, or 0: it ends at a NUL, and takes a byte order mark
// before any text.
size_t hidden_byte(std::string_view line, bool is_first) {
  if (!is_first && line.substr(0, 3) == "\xef\xbb\xbf") return 1;
  const size_t nul = line.find('\0');
  return nul == std::string_view::npos ? 0 : nul + 1;
}

// Receives the events of one line and appends its ids and labels. Returning false ends the parse; `problem` says why.
class LineHandler : public nlohmann::json_sax<nlohmann::json> {
 public:
  LineHandler(std::vector<std::int32_t>& tokens, std::vector<std::int32_t>& labels,
              const std::vector<std::string>& ignored_keys)
      : ignored_keys_(ignored_keys), lists_{&tokens, &labels, &mask_, &positions_}, begin_(tokens.size()) {}

  std::string problem;
  bool complete() const { return seen_[0] && seen_[1]; }
  // Whether mask and positions say nothing but what holds without them; a line that is complete only.
  bool plain() {
    const size_t length = lists_[0]->size() - begin_;
    if (!mask_.empty() &&
        (mask_.size() != length || std::any_of(mask_.begin(), mask_.end(), [](int m) { return m != 1; }))) {
      return refuse("an attention_mask that is not 1 for each token");
    }
    bool counts = positions_.size() == length;
    for (size_t i = 0; counts && i < length; ++i) counts = positions_[i] == static_cast<std::int64_t>(i);
    return positions_.empty() || counts || refuse("position_ids that do not count from 0");
  }

  // Whether the labels, of which there are as many as ids, are those of the tokens behind them.
  bool shifted() const {
    const std::int32_t* ids = lists_[0]->data() + begin_;
    const std::int32_t* labels = lists_[1]->data() + begin_;
    const size_t length = lists_[0]->size() - begin_;
    size_t targets = 0;
    bool differs = false;
    for (size_t i = 0; i < length; ++i) {
      if (labels[i] == kNotTrained) continue;
      if (i + 1 < length && labels[i] != ids[i + 1]) return false;
      differs = differs || labels[i] != ids[i];
      ++targets;
    }
    return targets > 1 && differs;
  }

  bool start_object(size_t) override {
    if (unknown_) return opens_nothing();
    return skips_nested(+1) || depth_++ == 0 || refuse("an object inside the object");
  }
  bool end_object() override { return held_nothing() || skips_nested(-1) || true; }
  bool key(std::string& name) override {
    if (unknown_) return refuse_unknown();
    if (nested_ > 0) return true;
    if (std::find(keys_.begin(), keys_.end(), name) != keys_.end()) {
      return refuse("the key " + in_quotes(name) + " twice");
    }
    keys_.push_back(name);
    current_ = std::find(kLists.begin(), kLists.end(), name) - kLists.begin();
    skips_ = current_ > 0 &&
             (name == "id" || std::find(ignored_keys_.begin(), ignored_keys_.end(), name) != ignored_keys_.end());
    if (skips_) return true;
    if (current_ == kLists.size()) {
      unknown_ = name;
    } else {
      seen_[current_] = true;
    }
    return true;
  }
  bool start_array(size_t) override {
    if (unknown_) return opens_nothing();
    return skips_nested(+1) || (depth_ == 1 && !std::exchange(in_list_, true)) ||
           refuse("a list in the place of an object or an integer");
  }
  bool end_array() override { return held_nothing() || skips_nested(-1) || !(in_list_ = false); }
  bool number_integer(std::int64_t value) override {
    if (unknown_) return refuse_unknown();
    if (skips_) return true;
    if (!in_list_) return refuse(str("the number ", value, " in the place of a list"));
    // What does not fit into 32 bits fits into no vocabulary: the largest value stands for it and is refused later.
    constexpr std::int64_t kLargest = std::numeric_limits<std::int32_t>::max();
    lists_[current_]->push_back(static_cast<std::int32_t>(value < -kLargest || value > kLargest ? kLargest : value));
    return true;
  }
  bool number_unsigned(std::uint64_t value) override {
    return number_integer(
        static_cast<std::int64_t>(std::min<std::uint64_t>(value, std::numeric_limits<std::int64_t>::max())));
  }
  bool number_float(double, const std::string& text) override {
    if (unknown_) return refuse_unknown();
    return skips_ || refuse("the number " + text);
  }
  bool string(std::string& text) override {
    if (unknown_) return is_nothing(text.empty());
    return skips_ || refuse("the text " + in_quotes(text));
  }
  bool boolean(bool value) override {
    if (unknown_) return refuse_unknown();
    return skips_ || refuse(value ? "true" : "false");
  }
  bool null() override {
    if (unknown_) return is_nothing(true);
    return skips_ || (current_ >= kNeeded && current_ < kLists.size() && !in_list_) || refuse("null");
  }
  bool binary(nlohmann::json::binary_t&) override { return refuse("binary"); }
  bool parse_error(size_t position, const std::string&, const nlohmann::json::exception&) override {
    return refuse(str("no valid JSON at byte ", position));
  }

 private:
  bool refuse(const std::string& what) {
    problem = what;
    return false;
  }

  // The value of a key that is not known may be null, "", [] or {}, which is as if the key were not there.
  bool refuse_unknown() { return refuse("the key " + in_quotes(*unknown_)); }
  bool is_nothing(bool empty) {
    if (!empty || opened_) return refuse_unknown();
    unknown_.reset();
    return true;
  }
  bool opens_nothing() { return !std::exchange(opened_, true) || refuse_unknown(); }
  bool held_nothing() {
    if (!unknown_ || !std::exchange(opened_, false)) return false;
    unknown_.reset();
    return true;
  }

  // Whether a bracket belongs to the value of an ignored key.
  bool skips_nested(int step) {
    if (!skips_ || (step < 0 && nested_ == 0)) return false;
    nested_ += step;
    return true;
  }

  const std::vector<std::string>& ignored_keys_;
  std::vector<std::int32_t> mask_, positions_;
  std::array<std::vector<std::int32_t>*, kLists.size()> lists_;
  std::array<bool, kLists.size()> seen_ = {};
  std::vector<std::string> keys_;       // of the line, so far
  std::optional<std::string> unknown_;  // the key whose value is to come
  size_t begin_, current_ = 0;
  int depth_ = 0, nested_ = 0;  // nested_: brackets open inside the value of an ignored key
  bool in_list_ = false, skips_ = false;
  bool opened_ = false;  // a bracket, as the value of an unknown key
};

// Mistakes of one kind: how many lines, the first of them, and what the first one looked like.
struct Fault {
  const char* meaning;
  std::int64_t count = 0;
  std::string lines = {}, example = {};

  void add(std::int64_t line, const std::string& seen) {
    if (count == 0) example = seen;
    if (static_cast<size_t>(count) < kNamedLines) lines += str(count ? ", " : "", line);
    ++count;
  }
  std::string text() const {
    if (count == 0) return "";
    return str("\n  ", count, count == 1 ? " line " : " lines ", meaning, ": line ", lines,
               static_cast<size_t>(count) > kNamedLines ? ", ..." : "", example.empty() ? "" : " (the first has ",
               example, example.empty() ? "" : ")");
  }
};

}  // namespace

Documents Documents::from_jsonl(const std::string& path, std::int64_t vocab_size,
                                const std::vector<std::string>& ignored_keys) {
  std::vector<std::int32_t> tokens, labels;
  std::vector<std::int64_t> offsets = {0}, line_numbers;
  Fault malformed{"are not {\"input_ids\": [integers], \"labels\": [integers]}"};
  Fault unequal{"have input_ids and labels of different lengths"};
  Fault masked{"have an attention_mask or position_ids that documents of their own cannot have"};
  Fault shifted{"have labels that are shifted (labels[i] is the target that equals input_ids[i])"};
  Fault too_long{"are longer than 64 MiB"};

  LineReader reader(path);
  while (const auto line = reader.next()) {
    if (reader.too_long()) {
      too_long.add(reader.number(), "");
      continue;
    }
    if (is_blank(*line)) continue;
    LineHandler handler(tokens, labels, ignored_keys);
    const auto begin = static_cast<size_t>(offsets.back());
    if (const size_t byte = hidden_byte(*line, reader.number() == 1); byte > 0) {
      malformed.add(reader.number(), str("no valid JSON at byte ", byte));
    } else if (!nlohmann::json::sax_parse(line->begin(), line->end(), &handler) || !handler.complete()) {
      malformed.add(reader.number(), handler.problem.empty() ? "a missing list" : handler.problem);
    } else if (tokens.size() != labels.size()) {
      unequal.add(reader.number(), str(tokens.size() - begin, " input_ids and ", labels.size() - begin, " labels"));
    } else if (!handler.plain()) {
      masked.add(reader.number(), handler.problem);
    } else if (handler.shifted()) {
      shifted.add(reader.number(), "");
    } else {
      offsets.push_back(static_cast<std::int64_t>(tokens.size()));
      line_numbers.push_back(reader.number());
      continue;
    }
    tokens.resize(begin);
    labels.resize(begin);
  }
  std::string faults = malformed.text() + unequal.text() + masked.text() + shifted.text() + too_long.text();
  if (!faults.empty()) {
    faults = str(path, ": of ", reader.number(), " lines", faults);
    // What the readable lines hold is checked too, so that one message lists everything.
    try {
      if (!line_numbers.empty()) Documents(path, vocab_size, tokens, labels, offsets, line_numbers);
    } catch (const UserError& further) {
      faults += str("\n", further.what());
    }
    throw UserError(faults);
  }
  if (line_numbers.empty()) {
    throw UserError(path + ": the file is empty; it needs at least one line {\"input_ids\": [...], \"labels\": [...]}");
  }
  return Documents(path, vocab_size, std::move(tokens), std::move(labels), std::move(offsets), std::move(line_numbers));
}

bool Documents::is_tokenised_jsonl(const std::string& path) {
  LineReader reader(path);
  while (const auto line = reader.next()) {
    if (is_blank(*line)) continue;
    const auto json = nlohmann::json::parse(line->begin(), line->end(), nullptr, false);
    return json.is_object() && json.contains("input_ids") && !json.contains("messages") &&
           !json.contains("conversations");
  }
  return false;
}

}  // namespace moetune
