// How two recipes differ, key by key and by value, and what a resumed run makes of each difference.
//
//   for (const RecipeChange& change : recipe_changes(saved, recipe)) {
//     if (change.refused()) mistakes += str(change.key, ": ", change.then, " then, ", change.now, " now\n");
//   }
#pragma once

#include <string>
#include <vector>

#include "trainer/recipe/recipe_schema.h"

namespace moetune {

struct RecipeChange {
  std::string key;
  std::string then, now;  ///< as YAML
  OnResume on_resume = OnResume::kUndecided;
  bool refused() const { return on_resume == OnResume::kSame || on_resume == OnResume::kUndecided; }
};

/// The keys whose values differ, in the order of the schema. Lists of targets are compared by the linear maps that they
/// select. A section that only one of the two has is one change.
std::vector<RecipeChange> recipe_changes(const Recipe& then, const Recipe& now);

/// Every key of the schema with what it says of resuming, for the test that none was forgotten.
std::vector<std::pair<std::string, OnResume>> keys_on_resume();

}  // namespace moetune
