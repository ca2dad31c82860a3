// Tokens of a data file: read as they are where the file holds tokens, through the preparation step where it holds
// text.
//
//   Documents documents = load_documents(recipe, recipe.data.train, vocab, launch);
//
// Text is tokenised, templated and masked by scripts/prepare (Python: the tokenizers library and jinja2), once for each
// content of file, tokenizer, template and options, into `.moetune/` beside the data file. Rank 0 runs it, the others
// wait for its result.
#pragma once

#include <string>

#include "parallel/comm/launch.h"
#include "trainer/data/documents.h"
#include "trainer/recipe/recipe.h"

namespace moetune {

/// Where the preparation step is found: with the program's files (parallel/base/program_files.h); the environment is
/// read at start-up.
struct PreparationTools {
  std::string python;  ///< MOETUNE_PYTHON, else the Python that goes with the program, else python3
  std::string script;  ///< scripts/prepare
  static PreparationTools from_environment();
};

/// Documents of `path`, cut to data.max_tokens; what was cut is said. Collective over the job. Throws UserError.
Documents load_documents(const Recipe& recipe, const std::string& path, int64_t vocab, Launch& launch,
                         const PreparationTools& tools);

/// Runs the preparation step on `path` in this process' place of start and returns its token cache; `show` documents
/// are printed with their trained tokens marked.
std::string prepare_tokens(const Recipe& recipe, const std::string& path, int64_t show, const PreparationTools& tools);

/// SHA-256 over tokens, labels and boundaries: what a resumed run must find unchanged.
std::string data_digest(const Documents& documents);

}  // namespace moetune
