// Tokens of data files: read as they are where a file holds tokens, through the preparation step where it holds text.
//
//   Documents documents = load_documents(recipe, "data.train", recipe.data.train, blueprint, launch, tools);
//   Batches batches(documents, batch_options(recipe));
//
// Text is tokenised, templated and masked by scripts/prepare (Python: the tokenizers library and jinja2), once for each
// content of file, tokenizer, template and options, into `data.cache` or `.moetune/` beside the file; every rank maps
// the result. A pre-tokenised JSONL file of at most 64 MiB is read by every rank itself, a larger one goes the same way
// as text. Rank 0 chooses the files and prepares them, the others wait for its result.
#pragma once

#include <string>
#include <vector>

#include "moe/blueprint.h"
#include "parallel/comm/launch.h"
#include "trainer/data/batches.h"
#include "trainer/data/documents.h"
#include "trainer/recipe/recipe.h"

namespace moetune {

/// Where the preparation step is found: with the program's files (parallel/base/program_files.h); the environment is
/// read at start-up.
struct PreparationTools {
  std::string python;  ///< chosen_python (parallel/base/python_call.h)
  std::string script;  ///< scripts/prepare
  static PreparationTools from_environment();
};

/// Documents of all that `files` name (data_files.h), in their order, cut to data.max_tokens; what was cut is said.
/// `key` is the recipe's key in messages, or empty. Collective over the job. Throws UserError; also for a document of
/// which the model's attention would not see all (Blueprint::longest_document).
Documents load_documents(const Recipe& recipe, const std::string& key, const DataFiles& files, const Blueprint& model,
                         Launch& launch, const PreparationTools& tools);

/// How the recipe makes batches of its training data.
BatchOptions batch_options(const Recipe& recipe);

/// Runs the preparation step on files in this process' place of start and returns the token cache of each; the first
/// `show` documents are printed with their trained tokens marked.
std::vector<std::string> prepare_tokens(const Recipe& recipe, const std::vector<std::string>& paths, int64_t show,
                                        const PreparationTools& tools);

/// SHA-256 over tokens, labels and boundaries of the documents in their order, wherever they lie, and over weights of
/// targets and of documents where these are not all 1: what a resumed run must find unchanged.
std::string data_digest(const Documents& documents);

}  // namespace moetune
