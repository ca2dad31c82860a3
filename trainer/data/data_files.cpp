#include "trainer/data/data_files.h"

#include <glob.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <set>
#include <string_view>

#include "parallel/base/error.h"

namespace moetune {
namespace {

namespace fs = std::filesystem;

constexpr std::array<std::string_view, 8> kEndings = {".jsonl",   ".json",     ".jsonl.gz", ".jsonl.zst",
                                                      ".json.gz", ".json.zst", ".parquet",  ".ndjson"};
constexpr size_t kNamedFiles = 5;

bool is_data_name(const std::string& name) {
  return std::any_of(kEndings.begin(), kEndings.end(), [&](std::string_view ending) { return name.ends_with(ending); });
}

std::string few(const std::vector<std::string>& names) {
  std::string text;
  for (size_t i = 0; i < std::min(names.size(), kNamedFiles); ++i) text += (i ? ", " : "") + names[i];
  return names.size() > kNamedFiles ? str(text, " and ", names.size() - kNamedFiles, " more") : text;
}

std::vector<std::string> matches(const std::string& pattern) {
  ::glob_t found{};
  std::vector<std::string> paths;
  if (::glob(pattern.c_str(), GLOB_NOSORT, nullptr, &found) == 0) {
    paths.assign(found.gl_pathv, found.gl_pathv + found.gl_pathc);
  }
  ::globfree(&found);
  std::sort(paths.begin(), paths.end());
  return paths;
}

/// Collects files, and what is wrong with entries.
class Selector {
 public:
  /// `place` stands before each mistake that is found from now on.
  void begin(const std::string& place, double weight) {
    place_ = place;
    weight_ = weight;
  }

  void add(const std::string& path) {
    std::error_code failure;
    const fs::file_status status = fs::status(path, failure);
    if (fs::is_directory(status)) return add_folder(path);
    if (fs::exists(status)) return add_file(path, status);
    if (status.type() == fs::file_type::none) return wrong(path + ": cannot be read: " + failure.message());
    if (path.find_first_of("*?[") == std::string::npos) {
      return wrong(path + ": no such file; data is named by paths from the current folder");
    }
    size_t num_files = 0;
    for (const std::string& match : matches(path)) {
      const fs::file_status matched = fs::status(match, failure);
      if (fs::is_directory(matched)) continue;
      add_file(match, matched);
      ++num_files;
    }
    if (num_files == 0) wrong(path + ": no file matches; patterns begin at the current folder");
  }

  DataSelection take() {
    if (!mistakes_.empty()) throw UserError(mistakes_);
    return std::move(selection_);
  }

 private:
  void wrong(const std::string& what) { mistakes_ += (mistakes_.empty() ? "" : "\n") + place_ + what; }

  void add_file(const std::string& path, const fs::file_status& status) {
    if (!fs::is_regular_file(status)) return wrong(path + ": is no regular file; write the data into one");
    std::error_code failure;
    if (!seen_.insert(fs::canonical(path, failure).string()).second) {
      return wrong(path + ": is named twice; to train on it more often, give it a weight: {path: ..., weight: 2}");
    }
    selection_.files.push_back({path, weight_});
  }

  void add_folder(const std::string& path) {
    std::vector<std::string> names, others, folders;
    std::error_code failure;
    for (fs::directory_iterator at(path, failure), end; !failure && at != end; at.increment(failure)) {
      const std::string name = at->path().filename().string();
      if (name.front() == '.') continue;
      std::error_code ignored;
      (at->is_directory(ignored) ? folders : is_data_name(name) ? names : others).push_back(name);
    }
    if (failure) return wrong(path + ": cannot be read: " + failure.message());
    for (std::vector<std::string>* list : {&names, &others, &folders}) std::sort(list->begin(), list->end());
    if (names.empty()) {
      std::string endings;
      for (const std::string_view ending : kEndings) endings += (endings.empty() ? "" : ", ") + std::string(ending);
      return wrong(str(path, ": is a folder without data files; their names end in ", endings,
                       folders.empty() ? ""
                                       : str("; its folders are not entered (", few(folders),
                                             "): name them, or use a pattern such as ", path, "/*/*.jsonl")));
    }
    if (!others.empty()) selection_.notes.push_back(str(path, ": left out, not named as data: ", few(others)));
    if (!folders.empty()) selection_.notes.push_back(str(path, ": left out, folders in it: ", few(folders)));
    for (const std::string& name : names) {
      const std::string file = (fs::path(path) / name).string();
      add_file(file, fs::status(file, failure));
    }
  }

  std::string place_, mistakes_;
  double weight_ = 1.0;
  DataSelection selection_;
  std::set<std::string> seen_;
};

}  // namespace

DataSelection select_files(const Recipe& recipe, const std::string& key, const DataFiles& files) {
  Selector selector;
  for (size_t i = 0; i < files.entries.size(); ++i) {
    const std::string item = str(key, "[", i, "]");
    const bool listed = recipe.origins.count(item) > 0;
    const std::string origin = recipe.origin(listed ? item : key);
    selector.begin(key.empty() ? "" : str(origin, ": ", key, ": "), files.entries[i].weight);
    selector.add(files.entries[i].path);
  }
  return selector.take();
}

std::string shown(const DataFiles& files) {
  std::string text;
  for (const DataEntry& entry : files.entries) {
    text += (text.empty() ? "" : ", ") + entry.path + (entry.weight == 1.0 ? "" : str(" (", entry.weight, " times)"));
  }
  return text;
}

}  // namespace moetune
