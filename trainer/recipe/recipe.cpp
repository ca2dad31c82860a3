#include "trainer/recipe/recipe.h"

namespace moetune {

std::string Recipe::origin(const std::string& key) const {
  const auto found = origins.find(key);
  return found == origins.end() ? "default" : found->second;
}

}  // namespace moetune
