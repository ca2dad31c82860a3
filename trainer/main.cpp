// moetune: the command line. Parses, calls, turns errors into exit codes.
#include <CLI/CLI.hpp>

#include <iostream>

#include "parallel/base/error.h"
#include "parallel/launch.h"
#include "trainer/dataset.h"
#include "trainer/export.h"
#include "trainer/inspect.h"
#include "trainer/logits.h"
#include "trainer/loop.h"
#include "trainer/merge.h"
#include "trainer/recipe.h"
#include "trainer/recipe_shelf.h"

namespace moetune {
namespace {

struct Arguments {
  std::string recipe, run, data, name, file, reader = "peft", base_name;
  std::vector<std::string> overrides;
  bool resume = false, base = false, digests = false;
  int64_t show = 3, documents = 4;
};

int prepare(const Arguments& arguments) {
  const Recipe recipe = load_recipe(arguments.recipe, arguments.overrides);
  const PreparationTools tools = PreparationTools::from_environment();
  for (const std::string& path : {recipe.data.train, recipe.data.eval.value_or("")}) {
    if (!path.empty()) std::cout << path << " -> " << prepare_tokens(recipe, path, arguments.show, tools) << "\n";
  }
  return 0;
}

/// Runs the command line; `launch` is made by the commands that may run under mpirun.
int run(int argc, char** argv) {
  Arguments arguments;
  CLI::App app("Fine-tunes mixture-of-experts models that are far larger than the GPUs at hand. docs/tour.md shows how.", "moetune");
  app.set_version_flag("--version", "moetune " MOETUNE_VERSION);
  app.require_subcommand(1);
  app.failure_message(CLI::FailureMessage::help);
  auto recipe_command = [&](const char* name, const char* what) {
    CLI::App* command = app.add_subcommand(name, what);
    command->add_option("RECIPE", arguments.recipe, "YAML file; docs/recipes.md lists its keys")->required();
    command->add_option("key.sub=value", arguments.overrides, "values that replace those of the file");
    return command;
  };
  CLI::App* train_command = recipe_command("train", "Train. One rank alone, more under mpirun -np N");
  train_command->add_flag("--resume", arguments.resume, "Go on from the newest whole checkpoint of run.dir");
  CLI::App* prepare_command = recipe_command("prepare", "Tokenise and mask the data and show samples");
  prepare_command->add_option("--show", arguments.show, "documents to show")->check(CLI::Range(0, 1000));
  CLI::App* logits_command = app.add_subcommand("logits", "Write the logits of some documents, to compare another reader of an export with");
  logits_command->add_option("RUN", arguments.run, "run folder or one of its checkpoints")->required();
  logits_command->add_option("DATA", arguments.data, "JSONL file")->required();
  logits_command->add_option("--to", arguments.file, "safetensors file to write")->required();
  logits_command->add_option("--documents", arguments.documents, "the first so many")->check(CLI::Range(1, 10000));
  CLI::App* export_command = app.add_subcommand("export", "Write the adapter, or with --base the weights that it was trained on");
  export_command->add_option("RUN", arguments.run, "run folder or one of its checkpoints")->required();
  export_command->add_option("--to", arguments.file, "folder to write: new, empty or an earlier export")->required();
  export_command->add_option("--for", arguments.reader, "whose habits the adapter follows")->check(CLI::IsMember({"peft", "vllm"}));
  CLI::Option* base_name = export_command->add_option("--base-name", arguments.base_name, "base model that the adapter names; the recipe's model.path if not given");
  export_command->add_flag("--base", arguments.base, "the frozen weights as they were trained on, or the weights that adapter: none trained")->excludes(base_name);
  CLI::App* merge_command = app.add_subcommand("merge", "Write the original model with the adapter merged into its weights");
  merge_command->add_option("RUN", arguments.run, "run folder or one of its checkpoints")->required();
  merge_command->add_option("--to", arguments.file, "folder to write: new, empty or an earlier export")->required();
  CLI::App* inspect_command = app.add_subcommand("inspect", "Say what a model, adapter, data file, run or checkpoint holds");
  inspect_command->add_option("PATH", arguments.file)->required();
  inspect_command->add_flag("--digests", arguments.digests, "SHA-256 of large files too");
  CLI::App* recipes_command = app.add_subcommand("recipes", "The recipes that come with the program");
  recipes_command->require_subcommand(1);
  CLI::App* ls = recipes_command->add_subcommand("ls", "List them");
  CLI::App* cat = recipes_command->add_subcommand("cat", "Print one");
  cat->add_option("NAME", arguments.name)->required();
  CLI::App* cp = recipes_command->add_subcommand("cp", "Copy one to a file of yours");
  cp->add_option("NAME", arguments.name)->required();
  cp->add_option("FILE", arguments.file)->required();
  CLI::App* docs = recipes_command->add_subcommand("docs", "Print the reference of all keys (docs/recipes.md)");

  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : static_cast<int>(ExitCode::kUserError);
  }

  if (train_command->parsed()) {
    Launch launch;
    return run_guarded(launch, [&] { return train(load_recipe(arguments.recipe, arguments.overrides), {arguments.resume}, launch); });
  }
  if (logits_command->parsed()) {
    Launch launch;
    return run_guarded(launch, [&] {
      write_logits(arguments.run, arguments.data, arguments.documents, arguments.file, launch);
      return 0;
    });
  }
  try {
    if (prepare_command->parsed()) return prepare(arguments);
    if (export_command->parsed()) {
      std::cout << (arguments.base ? export_base(arguments.run, arguments.file)
                                   : export_adapter(arguments.run, arguments.file, arguments.reader == "vllm" ? AdapterReader::kVllm : AdapterReader::kPeft, arguments.base_name));
    }
    if (merge_command->parsed()) std::cout << merge_adapter(arguments.run, arguments.file);
    if (inspect_command->parsed()) std::cout << inspect(arguments.file, arguments.digests);
    if (ls->parsed()) std::cout << list_recipes();
    if (cat->parsed()) std::cout << read_recipe(arguments.name);
    if (cp->parsed()) std::cout << copy_recipe(arguments.name, arguments.file);
    if (docs->parsed()) std::cout << recipe_docs_markdown();
    return 0;
  } catch (const Error& error) {
    std::cerr << "error: " << error.what() << "\n";
    return static_cast<int>(error.code());
  }
}

}  // namespace
}  // namespace moetune

int main(int argc, char** argv) { return moetune::run(argc, argv); }
