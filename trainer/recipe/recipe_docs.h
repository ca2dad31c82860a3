// docs/recipes.md, written from the schema.
#pragma once

#include <string>

namespace moetune {

/// The reference of all keys: the text of docs/recipes.md.
std::string recipe_docs_markdown();

}  // namespace moetune
