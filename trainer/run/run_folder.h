// The run folder, as the one rank sees it that writes there: locked, free of what a killed run left, and with nothing
// of the user's that this run would replace.
//
//   RunFolder folder(recipe, /*resume=*/true);    // UserError before anything was changed
//   folder.require_fits("runs/a/checkpoints/step-00000100");   // the checkpoint that the run goes on from
//   folder.write_recipe(dump_resolved(recipe));
//
// recipe.yaml is the run's own if its first line holds the SHA-256 of the rest, or a checkpoint has the same text. A
// recipe that the user put there, or changed there, is refused, not replaced.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "trainer/recipe/recipe.h"
#include "trainer/recipe/recipe_changes.h"
#include "trainer/run/run_lock.h"

namespace moetune {

class RunFolder {
 public:
  /// Makes the folder if need be and locks it. Throws UserError where another run holds it; where a fresh run finds
  /// one that is there already; where a file of the user's has a name that the run needs; where a resumed run's recipe
  /// or model differs from the newest checkpoint's in what must stay. Then only removes what killed runs left.
  /// `traces`: the run writes some to profile/.
  RunFolder(const Recipe& recipe, bool resume, bool traces = false);

  /// Different for every run that locked a folder.
  const std::string& token() const { return lock_.holder().token; }
  /// Throws where this process is no longer the one to write here.
  void require_held() { lock_.require_held(); }
  /// Compares recipe and model with those of the checkpoint. UserError lists all that must be the same and differs.
  void require_fits(const std::filesystem::path& checkpoint);
  /// What else differs from the checkpoint that was asked for last, for the log.
  const std::vector<RecipeChange>& changes() const { return changes_; }
  /// Writes recipe.yaml.
  void write_recipe(const std::string& text) const;
  /// Makes profile/ and removes the traces of earlier runs there: those of more ranks would be taken for this run's.
  void make_room_for_traces() const;

 private:
  std::filesystem::path checkpoints() const { return path_ / "checkpoints"; }
  void refuse_second_run() const;
  void refuse_foreign_files() const;
  void require_fits_newest();
  void remove_leftovers() const;

  const Recipe& recipe_;
  bool traces_;
  std::filesystem::path path_;
  RunLock lock_;
  std::vector<RecipeChange> changes_;
};

}  // namespace moetune
