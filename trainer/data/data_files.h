// Which files the entries of data.train and data.eval name.
//
//   const DataSelection chosen = select_files(recipe, "data.train", recipe.data.train);
//   for (const DataFile& file : chosen.files) ... file.path, file.weight
//
// An entry is a file of any name, a folder (the data files directly in it, by their endings), or a pattern as of a
// shell (`data/part-*.jsonl.zst`; glob(7)). Entries keep their order; what a folder or pattern names is sorted by its
// bytes.
#pragma once

#include <string>
#include <vector>

#include "trainer/recipe/recipe.h"

namespace moetune {

struct DataFile {
  std::string path;
  double weight = 1.0;  ///< how often an epoch takes each of its documents
};

struct DataSelection {
  std::vector<DataFile> files;     ///< at least one; all regular files, no two the same
  std::vector<std::string> notes;  ///< what a folder holds beside its data
};

/// `key` ("data.train") stands with its place in the recipe before each mistake; empty: `files` come from no recipe.
/// UserError with all mistakes: a file that is missing or no regular file, a pattern or folder without data, a file
/// that is named twice.
DataSelection select_files(const Recipe& recipe, const std::string& key, const DataFiles& files);

/// "a.jsonl, b.jsonl (2.5 times)", for people.
std::string shown(const DataFiles& files);

}  // namespace moetune
