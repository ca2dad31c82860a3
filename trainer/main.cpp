// moetune: the command line. Parses, calls, turns errors into exit codes.
#include <fcntl.h>
#include <unistd.h>
#include <CLI/CLI.hpp>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <iostream>
#include <sstream>

#include "parallel/base/error.h"
#include "parallel/base/files.h"
#include "parallel/base/log.h"
#include "parallel/base/text.h"
#include "parallel/comm/failure.h"
#include "parallel/comm/launch.h"
#include "parallel/comm/versions.h"
#include "trainer/bench/bench.h"
#include "trainer/data/data_files.h"
#include "trainer/data/dataset.h"
#include "trainer/exports/evaluate.h"
#include "trainer/exports/export.h"
#include "trainer/exports/inspect.h"
#include "trainer/exports/logits.h"
#include "trainer/exports/merge.h"
#include "trainer/exports/run_page.h"
#include "trainer/exports/saved_run.h"
#include "trainer/plan/draw_call.h"
#include "trainer/plan/mesh_drawing.h"
#include "trainer/plan/mesh_json.h"
#include "trainer/plan/plan_command.h"
#include "trainer/plan/validate.h"
#include "trainer/recipe/recipe.h"
#include "trainer/recipe/recipe_docs.h"
#include "trainer/recipe/recipe_load.h"
#include "trainer/recipe/recipe_shelf.h"
#include "trainer/run/loop.h"
#include "trainer/verify/verify_layout.h"

namespace moetune {
namespace {

constexpr int64_t kMostRanks = 1 << 20;
// What a file that is drawn begins with (HEAD of scripts/draw/picture.py, and of page.py).
constexpr const char *kPictureHead = "<svg", *kPageHead = "<!DOCTYPE html>\n<!-- drawn by moetune -->\n";

/// The commands: each declares its words and what it does with them.
class CommandLine {
 public:
  CommandLine() {
    app_.set_version_flag("--version", [] { return "moetune  " MOETUNE_VERSION "\n" + versions_text(); });
    app_.require_subcommand(1);
    app_.failure_message(CLI::FailureMessage::help);
    add_recipe_commands();
    add_run_commands();
    add_shelf();
    add_bench();
    add_plan();
  }

  int run(int argc, char** argv) {
    int code = call(argc, argv);
    // A text that nobody can read was not given.
    std::cout << std::flush;
    if (std::cout.good() && std::fflush(stdout) == 0 && std::ferror(stdout) == 0) return code;
    const std::string what = "standard output takes nothing (it is closed, its reader has gone, or its disk is full)";
    if (!gives_text_) {
      log_warn(what + "; the run folder's log.jsonl has what was said of each step");
    } else if (code == 0) {
      log_error(what);
      code = static_cast<int>(ExitCode::kUserError);
    }
    return code;
  }

 private:
  int call(int argc, char** argv) {
    try {
      app_.parse(argc, argv);
    } catch (const CLI::ParseError& error) {
      std::ostringstream out, err;
      const bool asked = app_.exit(error, out, err) == 0;  // --help, --version
      std::cout << printable(out.str());
      std::cerr << printable(unknown_command(argc, argv) + err.str());
      return asked ? 0 : static_cast<int>(ExitCode::kUserError);
    }
    return action_();
  }
  /// The first word that should have been a command and is none, in a line; empty if there is no such word.
  std::string unknown_command(int argc, char** argv) {
    CLI::App* parent = &app_;
    for (int i = 1; i < argc && *argv[i] != '-'; ++i) {
      const std::vector<CLI::App*> commands = parent->get_subcommands(nullptr);
      if (commands.empty()) return "";
      const auto named = std::find_if(commands.begin(), commands.end(),
                                      [&](const CLI::App* command) { return command->get_name() == argv[i]; });
      if (named == commands.end()) return str("error: '", argv[i], "' is no command\n");
      parent = *named;
    }
    return "";
  }
  CLI::App* add(CLI::App& parent, const char* name, const char* what, std::function<int()> action) {
    CLI::App* command = parent.add_subcommand(name, what);
    command->final_callback([this, action] { action_ = action; });
    return command;
  }
  /// A command whose text is all that it gives.
  CLI::App* add_text(CLI::App& parent, const char* name, const char* what, std::function<std::string()> text) {
    return add(parent, name, what, [text] {
      std::cout << printable(text());
      return 0;
    });
  }
  /// A command that may run under mpirun.
  CLI::App* add_launched(const char* name, const char* what, std::function<int(Launch&)> program) {
    return add(app_, name, what, [program] {
      Launch launch;
      return run_guarded(launch, [&] { return program(launch); });
    });
  }
  void takes_recipe(CLI::App* command) {
    command->add_option("RECIPE", recipe_, "YAML file; docs/recipes.md lists its keys")->required();
    command->add_option("overrides", overrides_, "values that replace those of the file")
        ->option_text("key.sub=value ...");
  }
  void takes_run(CLI::App* command) {
    command->add_option("RUN", run_, "run folder, of which the newest checkpoint is taken, or one of its checkpoints")
        ->required();
    takes_best(command);
  }
  void takes_best(CLI::App* command) {
    command->add_flag("--best", best_, "Take the checkpoint with the least held-out loss (checkpoint.keep_best)");
  }
  void writes_folder(CLI::App* command) {
    command->add_option("--to", to_, "folder to write: new, empty or an earlier export")->required();
  }
  CLI::Option* splits_model(CLI::App* command) {
    return command->add_option("--max-shard-gb", shard_gb_, "Bytes of the model in one file, in 10^9; 5 if not given")
        ->check(CLI::PositiveNumber)
        ->option_text("GB");
  }
  std::uint64_t shard_bytes() const { return static_cast<std::uint64_t>(1e9 * shard_gb_); }
  Recipe recipe() const { return load_recipe(recipe_, overrides_); }
  std::string chosen_run() const { return best_ ? best_checkpoint(run_).string() : run_; }

  void add_recipe_commands() {
    CLI::App* train_command =
        add_launched("train", "Train. One rank alone, more under mpirun -np N", [this](Launch& launch) {
          gives_text_ = false;
          return train(recipe(), {.resume = resume_, .version = MOETUNE_VERSION, .profile = profile_}, launch);
        });
    takes_recipe(train_command);
    train_command->add_flag("--resume", resume_, "Go on from the newest whole checkpoint of run.dir");
    train_command
        ->add_option("--profile", profile_,
                     "trace N steps, from the third on, into run.dir/profile/rank-R.json, which ui.perfetto.dev opens")
        ->option_text("N")
        ->check(CLI::Range(1, 100));
    takes_recipe(add_text(app_, "validate", "Check a recipe and say the bytes that each rank would hold",
                          [this] { return validate(recipe(), recipe_, ranks_); }));
    app_.get_subcommand("validate")
        ->add_option("--ranks", ranks_, "ranks of the job; 0: as many as the recipe's mesh asks for")
        ->check(CLI::Range(kMostRanks));
    CLI::App* verify_command = add_launched(
        "verify-layout",
        "Show that the mesh changes nothing: a tiny twin of the run in fp64, on one rank and on many layouts",
        [this](Launch& launch) { return verify_layout(recipe(), layouts_, launch); });
    takes_recipe(verify_command);
    verify_command
        ->add_option("--layout", layouts_,
                     "dp=N,ep=N,tp=N,shard=none|all,offload=none|all,buffer_rows=N; may be repeated")
        ->allow_extra_args(false);
    CLI::App* prepare_command =
        add(app_, "prepare", "Tokenise and mask the data and show samples", [this] { return prepare(); });
    takes_recipe(prepare_command);
    prepare_command->add_option("--show", show_, "documents to show")->check(CLI::Range(0, 1000));
  }

  void add_run_commands() {
    CLI::App* export_command =
        add_text(app_, "export", "Write the adapter, or with --base the weights that it was trained on", [this] {
          return base_ ? export_base(chosen_run(), to_, shard_bytes())
                       : export_adapter(chosen_run(), to_, adapter_reader(reader_), base_name_);
        });
    takes_run(export_command);
    writes_folder(export_command);
    export_command->add_option("--for", reader_, "whose habits the adapter follows")
        ->check(CLI::IsMember({"peft", "peft3d", "vllm", "sglang"}));
    CLI::Option* base_name = export_command->add_option(
        "--base-name", base_name_, "base model that the adapter names; the recipe's model.path if not given");
    CLI::Option* base =
        export_command
            ->add_flag("--base", base_,
                       "the frozen weights as they were trained on, or the weights that adapter: none trained")
            ->excludes(base_name);
    splits_model(export_command)->needs(base);
    CLI::App* merge_command =
        add_text(app_, "merge", "Write the original model with what was trained: the adapter merged, or the weights",
                 [this] { return merge_run(chosen_run(), to_, merge_format(format_), shard_bytes()); });
    takes_run(merge_command);
    writes_folder(merge_command);
    splits_model(merge_command);
    merge_command->add_option("--for", format_, "hf: bf16 where the model is in FP8 or MXFP4 blocks; hf-fp8: FP8 stays")
        ->check(CLI::IsMember({"hf", "hf-fp8"}));
    CLI::App* logits_command =
        add_launched("logits", "Write the logits of some documents, to compare another reader of an export with",
                     [this](Launch& launch) {
                       write_logits(chosen_run(), data_, documents_, to_, launch);
                       return 0;
                     });
    takes_run(logits_command);
    logits_command->add_option("DATA", data_, "JSONL file")->required();
    logits_command->add_option("--to", to_, "safetensors file to write")->required();
    logits_command->add_option("--documents", documents_, "the first so many")->check(CLI::Range(1, 10000));
    CLI::App* evaluate_command =
        add_launched("evaluate", "Say the held-out loss of a run's model, or of a model as it is; nothing trains",
                     [this](Launch& launch) { return evaluate_model(chosen_run(), data_, overrides_, to_, launch); });
    evaluate_command->add_option("RUN", run_, "run folder, one of its checkpoints, or a Hugging Face model's folder")
        ->required();
    takes_best(evaluate_command);
    evaluate_command->add_option("DATA", data_, "held-out data, as data.eval takes it")->required();
    evaluate_command->add_option("--to", to_, "JSON lines file to write: the loss of each document");
    evaluate_command
        ->add_option("overrides", overrides_,
                     "values that replace those of the run's recipe: model.base=bf16 says what the adapter is worth on "
                     "other weights than it was trained on")
        ->option_text("key.sub=value ...");
    CLI::App* inspect_command = add_text(app_, "inspect",
                                         "Say what a model, adapter, data file, run, checkpoint or cache of packed "
                                         "weights holds; with --html, draw a run; with --mesh, draw who holds what",
                                         [this] { return inspected(); });
    inspect_command->add_option("PATH", run_)->required();
    CLI::Option* digests = inspect_command->add_flag("--digests", digests_, "SHA-256 of large files too");
    html_option_ = inspect_command
                       ->add_option("--html", html_,
                                    "PATH is a run folder: a page of the run, going on or ended, written to this file; "
                                    "with another RUN of both beside each other")
                       ->option_text("FILE")
                       ->excludes(digests);
    CLI::Option* mesh = inspect_command->add_flag(
        "--mesh", mesh_, "PATH is a recipe: its ranks, what each holds, and what a step moves");
    mesh->excludes(html_option_);
    inspect_command
        ->add_option("--ranks", ranks_, "with --mesh: ranks of the job; 0: as many as the recipe's mesh asks for")
        ->check(CLI::Range(kMostRanks))
        ->needs(mesh);
    inspect_command->add_option("--ranks-per-host", ranks_per_host_, "with --mesh: ranks of a host; 0: eight")
        ->check(CLI::Range(kMostRanks))
        ->needs(mesh);
    svg_option_ = inspect_command->add_option("--svg", svg_, "with --mesh: a picture as SVG, written to this file")
                      ->option_text("FILE")
                      ->needs(mesh);
    inspect_command
        ->add_option("--picture", picture_,
                     "with --svg: who holds what (mesh), one layer's collectives (layer), or how frozen weights reach "
                     "the device (weights)")
        ->check(CLI::IsMember({"mesh", "layer", "weights"}))
        ->needs(svg_option_);
    inspect_command
        ->add_option("words", overrides_,
                     "with --mesh: values that replace those of the recipe; with --html: the other run")
        ->option_text("key.sub=value ... | RUN");
  }

  void add_shelf() {
    CLI::App* recipes = app_.add_subcommand("recipes", "The recipes that come with the program");
    recipes->require_subcommand(1);
    add_text(*recipes, "ls", "List them", list_recipes);
    add_text(*recipes, "cat", "Print one", [this] { return read_recipe(name_); })
        ->add_option("NAME", name_)
        ->required();
    CLI::App* copy =
        add_text(*recipes, "cp", "Copy one to a file of yours", [this] { return copy_recipe(name_, to_); });
    copy->add_option("NAME", name_)->required();
    copy->add_option("FILE", to_)->required();
    add_text(*recipes, "docs", "Print the reference of all keys (docs/recipes.md)", recipe_docs_markdown);
  }

  void add_bench() {
    CLI::App* command =
        add_launched("bench", "Measure what this machine computes and moves in a second, on all ranks at once",
                     [this](Launch& launch) { return bench(bench_, launch); });
    command->add_option("--device", bench_.device, "what to measure; auto: a GPU where there is one")
        ->check(CLI::IsMember({"auto", "cpu", "cuda"}));
    command->add_option("--to", bench_.to, "file to write, machine.json if not given")->option_text("FILE");
    command->add_flag("--quick", bench_.quick, "fewer and shorter repeats");
  }

  std::string inspected() {
    if (mesh_) return inspect_mesh();
    if (html_option_->count() > 0) return inspect_html();
    if (overrides_.empty()) return inspect(run_, digests_);
    throw UserError(
        str("'", overrides_.front(), "' goes with --mesh (a value of the recipe) or with --html (another run)"));
  }
  std::string inspect_html() {
    std::vector<std::filesystem::path> runs{run_};
    runs.insert(runs.end(), overrides_.begin(), overrides_.end());
    require_replaceable(html_, kPageHead, "page");
    write_text_atomically(html_, run_page(runs));
    return str(html_, ": page of ", run_, overrides_.empty() ? "" : " beside " + overrides_.front(), "\n");
  }

  void add_plan() {
    CLI::App* command = add(app_, "plan", "Say what a run needs, takes and costs, before a GPU is rented", [this] {
      if (!plan_.html.empty()) require_replaceable(plan_.html, kPageHead, "page");
      const PlanAnswer answer = plan(plan_);
      std::cout << (plan_.json ? answer.text : printable(answer.text));
      return static_cast<int>(answer.fits ? ExitCode::kDone : ExitCode::kDoesNotFit);
    });
    command->add_option("RECIPE", plan_.recipe, "YAML file; with --model there is none");
    command->add_option("overrides", plan_.overrides, "values that replace those of the recipe")
        ->option_text("key.sub=value ...");
    CLI::Option* model =
        command->add_option("--model", plan_.model, "instead of a recipe: a model by name, or its folder")
            ->option_text("NAME|PATH");
    command->add_option("--method", plan_.method, "with --model: what trains")
        ->check(CLI::IsMember({"attention", "experts", "full"}))
        ->needs(model);
    CLI::Option* documents = command->add_option("--documents", plan_.documents, "how many there are to train on")
                                 ->check(CLI::PositiveNumber);
    CLI::Option* tokens =
        command->add_option("--tokens-per-document", plan_.tokens_per_document, "and how long each is")
            ->check(CLI::Range(int64_t{1}, int64_t{1} << 24));
    command
        ->add_option("--lengths", plan_.lengths,
                     "prepared tokens, a tokenised JSONL file, or JSON {\"tokens\": documents, ...}")
        ->option_text("FILE")
        ->excludes(documents)
        ->excludes(tokens);
    command->add_option("--on", plan_.on, "machines: 16xH100, or several with commas; without it the one at hand")
        ->option_text("GPUS");
    command->add_option("--machine", plan_.machine, "figures that moetune bench measured")->option_text("FILE");
    command->add_option("--network", plan_.network, "between hosts: ndr, hdr, 100gbe");
    command->add_option("--disk", plan_.disk, "of a host: nvme, network");
    command->add_option("--host-memory", plan_.host_memory_gb, "GB of host memory for each GPU; 200 with --on")
        ->check(CLI::PositiveNumber)
        ->option_text("GB");
    command->add_option("--prices", plan_.prices, "a table instead of the one that comes along")->option_text("FILE");
    command->add_option("--cloud", plan_.price_class,
                        "class of the table's prices: marketplace, neocloud, hyperscaler");
    command->add_option("--price", plan_.price, "dollars a GPU-hour, instead of a table's")
        ->check(CLI::NonNegativeNumber);
    command->add_option("--skew", plan_.skew, "routed rows of the busiest rank over their mean, where that is known")
        ->check(CLI::Range(1.0, 1e6));
    command
        ->add_option("--receipts", plan_.receipts,
                     "folder of runs whose receipts correct the plan; alone: what they say")
        ->option_text("DIR");
    command->add_flag("--json", plan_.json, "print JSON alone");
    CLI::Option* page = command->add_option("--html", plan_.html, "write a page of the plan")->option_text("FILE");
    CLI::Option* search = command->add_flag("--search", plan_.search, "the cheapest and the fastest layout that fit");
    search->excludes(page);
    command->add_option("--max-gpus", plan_.max_gpus, "with --search")
        ->check(CLI::Range(int64_t{1}, int64_t{4096}))
        ->needs(search);
    command->add_option("--max-hours", plan_.max_hours, "with --search")->check(CLI::PositiveNumber)->needs(search);
    command->add_option("--max-dollars", plan_.max_dollars, "with --search")->check(CLI::PositiveNumber)->needs(search);
    command->add_option("--to", plan_.to, "with --search: recipe to write")->option_text("FILE")->needs(search);
  }

  std::string inspect_mesh() {
    const PlannedMesh planned = plan_mesh(load_recipe(run_, overrides_), ranks_, ranks_per_host_);
    if (svg_option_->count() == 0) return draw_mesh(planned, run_);
    require_replaceable(svg_, kPictureHead, "picture");
    write_text_atomically(svg_, drawn(picture_, mesh_json(planned)));
    return str(svg_, ": picture of the ", picture_, " of ", run_, "\n");
  }

  /// A file that is there already must be one of an earlier call: a name given by mistake may be that of the recipe.
  static void require_replaceable(const std::string& path, const char* head, const char* what) {
    namespace fs = std::filesystem;
    std::error_code ignored;
    if (!fs::is_regular_file(path, ignored) || fs::file_size(path, ignored) == 0) return;
    if (!read_text_file(path).starts_with(head)) {
      throw UserError(str(path, ": is there already, and is no ", what, " of an earlier call; name a new file"));
    }
  }

  int prepare() {
    const Recipe prepared = recipe();
    const PreparationTools tools = PreparationTools::from_environment();
    const DataRecipe& data = prepared.data;
    std::vector<DataSelection> selections = {select_files(prepared, "data.train", data.train)};
    if (data.eval) selections.push_back(select_files(prepared, "data.eval", *data.eval));
    for (const DataSelection& selection : selections) {
      for (const std::string& note : selection.notes) std::cout << printable(note + "\n");
      std::vector<std::string> paths;
      for (const DataFile& file : selection.files) paths.push_back(file.path);
      const std::vector<std::string> caches = prepare_tokens(prepared, paths, show_, tools);
      for (size_t i = 0; i < paths.size(); ++i) std::cout << printable(str(paths[i], " -> ", caches[i], "\n"));
    }
    return 0;
  }

  CLI::App app_{
      "Fine-tunes mixture-of-experts models that are far larger than the GPUs at hand. docs/tour.md shows how.",
      "moetune"};
  std::function<int()> action_;
  CLI::Option *svg_option_ = nullptr, *html_option_ = nullptr;
  std::string recipe_, run_, data_, to_, name_, reader_ = "peft", format_ = "hf", base_name_;
  std::string svg_, picture_ = "mesh", html_;
  std::vector<std::string> overrides_, layouts_;
  bool resume_ = false, base_ = false, best_ = false, digests_ = false, mesh_ = false;
  PlanOptions plan_;
  BenchOptions bench_{.version = MOETUNE_VERSION};
  bool gives_text_ = true;  ///< standard output is what the command is for
  double shard_gb_ = static_cast<double>(kShardBytes) / 1e9;
  int64_t ranks_ = 0, ranks_per_host_ = 0, show_ = 3, documents_ = 4, profile_ = 0;
};

/// A standard stream that was closed would be the next file that is opened, and the log would write into it.
void hold_standard_streams() {
  for (const int stream : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    if (::fcntl(stream, F_GETFD) != -1) continue;
    // Read-only: writing to standard output fails, as it would have.
    const int held = ::open("/dev/null", stream == STDERR_FILENO ? O_WRONLY : O_RDONLY);
    if (held >= 0 && held != stream) ::close(held);
  }
}

}  // namespace
}  // namespace moetune

int main(int argc, char** argv) {
  moetune::hold_standard_streams();
  std::signal(SIGPIPE, SIG_IGN);  // a reader that has gone is an error of writing
  moetune::end_without_signals();
  try {
    return moetune::CommandLine().run(argc, argv);
  } catch (...) {
    const moetune::Failure failure = moetune::current_failure();
    moetune::log_error(failure.message);
    return static_cast<int>(failure.code);
  }
}
