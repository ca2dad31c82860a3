#include "trainer/plan/plan_command.h"

#include <ATen/Context.h>

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <thread>

#include <nlohmann/json.hpp>

#include "moe/inventory.h"
#include "parallel/base/error.h"
#include "parallel/base/files.h"
#include "parallel/device/device_memory.h"
#include "parallel/device/device_name.h"
#include "trainer/plan/draw_call.h"
#include "trainer/plan/layout_search.h"
#include "trainer/plan/model_shelf.h"
#include "trainer/plan/plan_json.h"
#include "trainer/plan/plan_text.h"
#include "trainer/plan/receipts.h"
#include "trainer/plan/run_plan.h"
#include "trainer/recipe/recipe_dump.h"
#include "trainer/recipe/recipe_load.h"
#include "trainer/recipe/recipe_meaning.h"
#include "trainer/recipe/recipe_reading.h"

namespace moetune {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr int64_t kUsualDocuments = 50000, kUsualTokens = 1024;  // the instruction set that cookbooks speak of
constexpr double kUsualHostGb = 200.0, kGb = 1e9;
constexpr const char* kCommandLine = "command line";  // as Recipe::origin() has it
constexpr const char* kUsualMachines = "2xH200,8xH100,16xH100,128xH100";

std::vector<std::string> split(const std::string& text, char at) {
  std::vector<std::string> parts;
  size_t begin = 0;
  for (size_t end; begin <= text.size(); begin = end + 1) {
    end = std::min(text.find(at, begin), text.size());
    if (end > begin) parts.push_back(text.substr(begin, end - begin));
  }
  return parts;
}

/// What the family calls the gate projection of its experts, alone or with the one that goes up.
std::string gate_of_experts(const Blueprint& blueprint) {
  for (const LinearMap& map : linear_maps(blueprint, /*with_mtp=*/false)) {
    if (map.stack > 0) return map.leaf();
  }
  throw UserError("--method experts: the model has no routed experts");
}

/// Of a sequence of a model that no recipe is about: no longer than what the model was made for, unless documents are.
int64_t usual_sequence(const PlanOptions& options, const Blueprint& blueprint) {
  int64_t tokens = 4096;
  for (const int64_t most : {blueprint.max_positions, blueprint.longest_document}) {
    if (most > 0) tokens = std::min(tokens, most);
  }
  return std::max(tokens, options.tokens_per_document.value_or(0));
}

/// The recipe that --model and --method stand for.
Recipe recipe_of_method(const PlanOptions& options, const Blueprint& blueprint) {
  const int64_t max_tokens = usual_sequence(options, blueprint);
  std::string text =
      str("run: {dir: runs/plan, device: cuda}\nmodel: {path: ", quote_yaml(options.model),
          options.method == "full" ? ", base: bf16}\n" : "}\n", "data: {train: train.jsonl, max_tokens: ", max_tokens,
          "}\n", "train: {epochs: 1, batch: 1}\n");
  if (options.method == "attention") text += "adapter: {rank: 32, targets: [attention]}\n";
  else if (options.method == "experts")
    text += str("adapter: {rank: 6, targets: [", gate_of_experts(blueprint), "]}\n");
  else text += "adapter: none\n";
  Recipe recipe = parse_recipe(text, str("--method ", options.method), options.overrides);
  for (const char* key : {"mesh.dp", "mesh.ep", "mesh.tp", "mesh.expert_tp", "mesh.shard"}) {
    if (recipe.origin(key) != kCommandLine) continue;
    throw UserError(
        str(kCommandLine, ": ", key, ": --model takes the fastest mesh; name a recipe to plan one of its own"));
  }
  return recipe;
}

/// Everything that machines have in common.
class Planner {
 public:
  explicit Planner(const PlanOptions& options)
      : options_(options), prices_(load_prices(options.prices)), disk_(shipped_disk(options.disk)) {
    if (options.recipe.empty()) {
      blueprint_ = load_planned_model(options.model);
      recipe_ = recipe_of_method(options, blueprint_);
    } else {
      recipe_ = load_recipe(options.recipe, options.overrides);
      std::string note;
      blueprint_ = load_recipe_model(recipe_.model.path, &note);
      if (!note.empty()) notes_.push_back(note);
    }
    if (!options.receipts.empty()) receipts_ = load_receipts(options.receipts);
    data_.emplace(data());
    if (recipe_.data.eval_split > 0.0) data_ = data_->without_held_out(recipe_.data.eval_split);
  }

  PlanAnswer answer() {
    require_measured_kind();
    if (options_.search) return search();
    std::vector<RunPlan> plans;
    const std::vector<std::string> machines = split(machines_text(), ',');
    for (const std::string& machine : machines) {
      const PlanRequest request = request_on(machine);
      try {
        plans.push_back(planned(request));
      } catch (const UserError& error) {
        // A mesh that does not go with one machine may go with the others.
        if (machines.size() == 1 || (plans.empty() && &machine == &machines.back())) throw;
        notes_.push_back(str(machine, ": ", error.what()));
      }
    }
    if (machines.empty()) plans.push_back(planned(request_here()));
    return said(plans, machines.size() > 1);
  }

 private:
  std::string machines_text() const {
    return options_.on.empty() && options_.recipe.empty() && options_.machine.empty() ? kUsualMachines : options_.on;
  }

  /// What --machine measured is of a GPU that is planned for.
  void require_measured_kind() const {
    if (options_.machine.empty() || (options_.on.empty() && !options_.search)) return;
    std::vector<MachineChoice> planned;
    if (options_.search) planned = searched_machines();
    else
      for (const std::string& text : split(options_.on, ',')) planned.push_back(parse_machine_choice(text));
    const MachineProfile measured = measured_machine(options_.machine);
    std::string known;
    for (const auto& [gpus, name] : planned) {
      if (shipped_machine(name).device_name == measured.device_name) return;
      known += (known.empty() ? "" : ", ") + name;
    }
    throw UserError(str("--machine ", options_.machine, ": was measured on ", measured.device_name,
                        ", which is none of the machines that are planned for (", known,
                        "); name it with --on, or leave --machine out"));
  }

  DataAmount data() {
    if (!options_.lengths.empty()) return DataAmount::of_file(options_.lengths);
    if (!options_.documents && !options_.tokens_per_document && !options_.recipe.empty()) {
      std::vector<LengthCount> lengths = DataAmount::lengths_of(recipe_);
      if (!lengths.empty()) return DataAmount(std::move(lengths), "the recipe's data.train");
      notes_.push_back(str("the recipe's data is not there as tokens: ", kUsualDocuments, " documents of ",
                           kUsualTokens,
                           " tokens are assumed; --documents, --tokens-per-document or --lengths say more"));
    }
    return DataAmount::of_equal(options_.documents.value_or(kUsualDocuments),
                                options_.tokens_per_document.value_or(kUsualTokens));
  }

  PlanRequest request(const MachineProfile& machine, int64_t gpus) {
    PlanRequest request{.recipe = recipe_,
                        .blueprint = blueprint_,
                        .machine = machine,
                        .gpus = gpus,
                        .network = shipped_network(options_.network, machine.ranks_per_host),
                        .disk = disk_,
                        .data = *data_,
                        .expert_skew = options_.skew,
                        .host_memory_bytes = static_cast<int64_t>(kGb * options_.host_memory_gb)};
    if (machine.on_gpu()) request.recipe.run.device = DeviceChoice::kCuda;
    if (receipts_) receipts_->correct(request);
    if (options_.price) {
      request.price = Price{machine.name, "", *options_.price, "--price"};
    } else {
      request.price = prices_.of(priced_name(machine), options_.price_class);
    }
    return request;
  }

  /// A measured machine costs what its kind does.
  static std::string priced_name(const MachineProfile& machine) {
    if (!machine.measured) return machine.name;
    const std::optional<MachineProfile> kind = shipped_machine_of(machine.device_name);
    return kind ? kind->name : machine.name;
  }

  PlanRequest request_on(const std::string& text) {
    const MachineChoice choice = parse_machine_choice(text);
    MachineProfile machine = shipped_machine(choice.name);
    if (!options_.machine.empty()) {
      MachineProfile measured = measured_machine(options_.machine);
      // The file is of this GPU: its figures hold, the host is as sold.
      if (measured.device_name == machine.device_name) {
        measured.ranks_per_host = machine.ranks_per_host;
        measured.host_memory_bytes = machine.host_memory_bytes;
        machine = std::move(measured);
      }
    }
    PlanRequest asked = request(machine, choice.gpus);
    if (asked.host_memory_bytes == 0) asked.host_memory_bytes = static_cast<int64_t>(kGb * kUsualHostGb);
    return asked;
  }

  /// The machine that this process runs on, or the one that --machine was measured on.
  PlanRequest request_here() {
    const int64_t ranks = recipe_.mesh.pp * recipe_.mesh.dp.value_or(1) * recipe_.mesh.ep * recipe_.mesh.tp;
    MachineProfile machine;
    if (!options_.machine.empty()) {
      machine = measured_machine(options_.machine);
    } else if (recipe_.run.device != DeviceChoice::kCpu && at::hasCUDA() && device_memory_bytes(at::kCUDA) > 0) {
      machine = shipped_machine_of(device_name(at::kCUDA)).value_or(shipped_machine("h200"));
      machine.memory_bytes = device_memory_bytes(at::kCUDA);
    } else {
      const int64_t cpus = std::max(1u, std::thread::hardware_concurrency());
      machine = shipped_cpu(std::max<int64_t>(1, cpus / ranks));
      machine.device_name = device_name(at::kCPU);
    }
    machine.ranks_per_host = std::max(ranks, machine.ranks_per_host);
    machine.host_memory_bytes = host_memory_bytes() / ranks;
    if (!machine.on_gpu() && recipe_.run.device != DeviceChoice::kCpu) {
      notes_.push_back(str("planned on the CPUs of this machine, ", ranks, " ranks; --on 16xH100 names others"));
      recipe_.run.device = DeviceChoice::kCpu;
    }
    return request(machine, ranks);
  }

  RunPlan planned(const PlanRequest& request) const {
    if (!options_.recipe.empty()) return plan_run(request);
    return best_layout(request, {.own_batch = recipe_.origin("train.batch") != kCommandLine});
  }

  std::vector<std::string> changes(const RunPlan& plan) const {
    if (plan.fits()) return {};
    std::vector<MachineProfile> others;
    for (const char* name : {"h200", "b200"}) others.push_back(shipped_machine(name));
    return changes_to_fit(plan, others);
  }

  /// `several`: more than one machine was asked for.
  PlanAnswer said(const std::vector<RunPlan>& plans, bool several) {
    PlanAnswer answer;
    for (const RunPlan& plan : plans) answer.fits = answer.fits || plan.fits();
    std::vector<std::vector<std::string>> to_fit;
    for (const RunPlan& plan : plans) to_fit.push_back(changes(plan));
    if (options_.json || !options_.html.empty()) {
      Json all = Json::array();
      for (size_t i = 0; i < plans.size(); ++i) all.push_back(plan_json(plans[i], to_fit[i]));
      const Json json = several ? Json{{"plans", all}, {"notes", notes_}} : all.front();
      if (!options_.html.empty()) write_text_atomically(options_.html, drawn("plan", json.dump()));
      if (options_.json) {
        answer.text = json.dump(2) + "\n";
        return answer;
      }
    }
    for (const std::string& note : notes_) answer.text += str("note: ", note, "\n");
    if (!several) {
      answer.text += plan_text(plans.front(), to_fit.front());
    } else {
      answer.text +=
          str(blueprint_.model_type, ", ", data_->source(), ", prices of ", prices_.date, "\n", plans_table(plans));
    }
    if (!options_.html.empty()) answer.text += str(options_.html, ": page of the plan\n");
    return answer;
  }

  // Search.

  PlanAnswer search() {
    std::vector<RunPlan> fitting;
    for (const auto& [most, name] : searched_machines()) {
      for (int64_t gpus = 1; gpus <= most; gpus *= 2) {
        std::optional<RunPlan> plan = find_best_layout(request_on(str(gpus, "x", name)));
        const bool wanted = plan && plan->fits() && plan->run.hours <= options_.max_hours.value_or(1e18) &&
                            plan->dollars() <= options_.max_dollars.value_or(1e18);
        if (wanted) fitting.push_back(*std::move(plan));
      }
    }
    PlanAnswer answer;
    answer.fits = !fitting.empty();
    if (fitting.empty()) {
      answer.text = options_.json
                        ? Json{{"plans", Json::array()}}.dump(2) + "\n"
                        : str("no layout of at most ", options_.max_gpus,
                              " GPUs fits and stays within what is allowed; allow more of --max-gpus, --max-hours "
                              "or --max-dollars\n");
      return answer;
    }
    const auto by = [](const auto& key) {
      return [key](const RunPlan& a, const RunPlan& b) { return key(a) < key(b); };
    };
    const auto dollars = [](const RunPlan& p) { return p.request.price ? p.dollars() : 1e18; };
    const RunPlan& cheapest = *std::min_element(fitting.begin(), fitting.end(), by(dollars));
    const RunPlan& fastest =
        *std::min_element(fitting.begin(), fitting.end(), by([](const RunPlan& p) { return p.run.hours; }));
    if (options_.json) {
      Json all = Json::array();
      for (const RunPlan& plan : fitting) all.push_back(plan_json(plan, {}));
      answer.text =
          Json{{"plans", all}, {"cheapest", plan_json(cheapest, {})}, {"fastest", plan_json(fastest, {})}}.dump(2) +
          "\n";
    } else {
      for (const std::string& note : notes_) answer.text += str("note: ", note, "\n");
      answer.text +=
          plans_table(fitting) + "\ncheapest\n" + plans_table({cheapest}) + "fastest\n" + plans_table({fastest});
    }
    if (!options_.to.empty()) {
      const fs::path to(options_.to);
      const fs::path other = to.parent_path() / (to.stem().string() + "-fastest" + to.extension().string());
      write_recipe(to, cheapest);
      write_recipe(other, fastest);
      if (!options_.json) answer.text += str(to.string(), ": the cheapest; ", other.string(), ": the fastest\n");
    }
    return answer;
  }

  /// Kinds of GPUs, and how many of each at the most: --max-gpus, or fewer where --on says a number.
  std::vector<MachineChoice> searched_machines() const {
    std::vector<MachineChoice> machines;
    for (const std::string& text : split(options_.on, ',')) {
      const bool counted = std::isdigit(static_cast<unsigned char>(text.front())) != 0;
      MachineChoice machine =
          counted ? parse_machine_choice(text) : MachineChoice{options_.max_gpus, shipped_machine(text).name};
      machine.gpus = std::min(machine.gpus, options_.max_gpus);
      machines.push_back(std::move(machine));
    }
    if (!machines.empty()) return machines;
    for (const std::string& name : shipped_machines()) machines.push_back({options_.max_gpus, name});
    return machines;
  }

  static void write_recipe(const fs::path& to, const RunPlan& plan) {
    if (fs::exists(to)) throw UserError(str(to.string(), ": exists already; name a new file"));
    Recipe recipe = plan.request.recipe;
    for (const char* key : {"mesh.pp", "mesh.dp", "mesh.ep", "mesh.tp", "mesh.expert_tp", "mesh.shard", "train.batch",
                            "offload.optimizer"}) {
      recipe.origins[key] = "moetune plan --search";
    }
    write_text_atomically(to.string(), str("# ", plan.request.gpus, " x ", plan.request.machine.name, ", ",
                                           hours_text(plan.run.hours), "\n# mpirun -np ", plan.request.gpus,
                                           " moetune train ", to.filename().string(), "\n", dump_resolved(recipe)));
  }

  const PlanOptions& options_;
  PriceTable prices_;
  DiskProfile disk_;
  Recipe recipe_;
  Blueprint blueprint_;
  std::optional<DataAmount> data_;
  std::optional<Receipts> receipts_;
  std::vector<std::string> notes_;
};

}  // namespace

PlanAnswer plan(const PlanOptions& given) {
  PlanOptions options = given;
  if (!options.model.empty() && options.recipe.find('=') != std::string::npos) {
    options.overrides.insert(options.overrides.begin(), std::move(options.recipe));
    options.recipe.clear();
  }
  if (options.recipe.empty() && options.model.empty()) {
    if (options.receipts.empty()) throw UserError("plan: name a recipe, or --model");
    const Receipts receipts = load_receipts(options.receipts);
    return {options.json ? receipts.json() : receipts.table(), true};
  }
  if (!options.recipe.empty() && !options.model.empty()) {
    throw UserError("plan: a recipe and --model together; a recipe's model is model.path=...");
  }
  if (options.search && options.recipe.empty())
    throw UserError("plan --search: name the recipe whose layout is sought");
  return Planner(options).answer();
}

}  // namespace moetune
