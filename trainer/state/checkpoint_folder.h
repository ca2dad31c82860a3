// The folder of a run's checkpoints as files: which are ours, and how one is put there or taken away so that whatever
// ends the process leaves whole checkpoints, and what a user put beside or into them is not lost.
//
//   const fs::path unfinished = unfinished_checkpoint(folder, 100, token);   // .saving-step-00000100-TOKEN
//   ... write the files ...
//   put_checkpoint(unfinished, folder, 100);
//   remove_checkpoint(folder / "step-00000050");
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

namespace moetune {

/// Where a run, told apart by its token, gathers the files of a checkpoint.
std::filesystem::path unfinished_checkpoint(const std::filesystem::path& folder, int64_t step,
                                            const std::string& token);
/// Gives the finished checkpoint its name, durably. An earlier one of this step goes; where it holds what no run wrote,
/// or is no folder, it is renamed and a warning says so.
void put_checkpoint(const std::filesystem::path& unfinished, const std::filesystem::path& folder, int64_t step);
/// Removes a checkpoint; leaves links, and folders that hold what no run wrote, with a warning.
void remove_checkpoint(const std::filesystem::path& checkpoint);
/// Removes what killed runs left of saving and removing. Only who holds the run's lock may.
void remove_leftovers_of_saves(const std::filesystem::path& folder);
/// Whether anything in `folder` looks like a checkpoint, whole or not, under whatever name.
bool holds_checkpoint(const std::filesystem::path& folder);

}  // namespace moetune
