#include "trainer/exports/export.h"

#include <algorithm>
#include <functional>
#include <map>
#include <set>

#include <ATen/ATen.h>
#include <nlohmann/json.hpp>

#include "lora/adapters/adapter.h"
#include "lora/adapters/peft_files.h"
#include "parallel/base/error.h"
#include "parallel/base/name_summary.h"
#include "parallel/base/units.h"
#include "parallel/bytes/tensor_io.h"
#include "trainer/exports/base_model.h"
#include "trainer/exports/reader_notes.h"
#include "trainer/exports/saved_run.h"
#include "trainer/exports/staged_folder.h"
#include "trainer/plan/model_banner.h"
#include "trainer/recipe/recipe_meaning.h"

namespace moetune {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;
using Spec = SafetensorsWriter::Spec;

/// One tensor of the file; `fill` puts values where zeros are.
struct AdapterTensor {
  Spec spec;
  std::function<void(at::Tensor& zeros)> fill;
};

/// "mlp.experts.*.gate_proj" of "model.layers.3.mlp.experts.*.gate_proj".
std::string path_in_layer(const std::string& module, int64_t layer) {
  const std::string front = str("model.layers.", layer, ".");
  MT_CHECK(module.starts_with(front), module, " is not in layer ", layer);
  return module.substr(front.size());
}

/// As PEFT matches a key of rank_pattern, "(.*\.)?KEY$", to the paths of modules and parameters.
std::string pattern_key(const std::string& path) {
  std::string key;
  for (const char c : path) {
    if (c == '.') key += "\\.";
    else if (c == '*') key += "\\d+";
    else key += c;
  }
  return key;
}

bool is_down(TensorRole role) { return role == TensorRole::kDown; }

/// The experts of one layer of which PEFT keeps one tensor: gate and up, or down.
struct Stack {
  std::string parameter;  ///< as target_parameters names it: "mlp.experts.gate_up_proj"
  bool down = false;
  int64_t experts = 0, rank = 0, inputs = 0, outputs = 0;
  /// Their part of the stack's rank and outputs: gate and up stand beside each other, one pair of twice the rank with a
  /// B that is zero outside two blocks.
  struct Piece {
    const SavedAdapter* adapter;
    int64_t first_rank, first_output;
  };
  std::vector<Piece> pieces;
};

/// What one export of adapters consists of.
class AdapterExport {
 public:
  AdapterExport(const SavedRun& saved, AdapterReader reader)
      : saved_(saved),
        recipe_(*saved.recipe().adapter),
        blueprint_(blueprint_of(saved.recipe())),
        readers_(readers_of(blueprint_.model_type)),
        reader_(reader),
        serves_(reader == AdapterReader::kVllm || reader == AdapterReader::kSglang),
        folds_(reader != AdapterReader::kPeft) {
    require_reader(blueprint_, reader);
    for (const TensorSpec& tensor : blueprint_.tensors(saved.mtp_layer() >= 0)) {
      const bool is_map = tensor.held == Held::kLinear || tensor.role == TensorRole::kRouter;
      if (!tensor.bias && is_map) maps_.emplace(tensor.module(), tensor);
    }
    for (const SavedAdapter& adapter : saved.adapters()) {
      require_map(adapter);
      // These do not load an adapter with a module that they do not know.
      if (folds_ && adapter.group == "router") left_out_routers_.push_back(adapter.path);
      else if (folds_ && adapter.layer == saved.mtp_layer()) left_out_.push_back(adapter.path);
      else adapters_.push_back(adapter);
    }
    if (adapters_.empty()) {
      throw UserError(str(saved.checkpoint().string(), ": only the MTP module and routers have adapters, and ",
                          program_of(reader_), " reads none of those; export with --for peft"));
    }
    require_packs();
    choose_rank();
    add_modules();
    plan();
  }

  PeftConfig config(const std::string& base_name) const {
    PeftConfig config;
    config.rank = rank_;
    config.alpha = folds_ ? static_cast<double>(rank_) : recipe_.alpha;
    config.rslora = !folds_ && recipe_.rslora;
    // PEFT wraps no parameter where there is dropout, which acts in training alone.
    config.dropout = parameters_.empty() ? recipe_.dropout : 0.0;
    config.target_modules.assign(leaves_.begin(), leaves_.end());
    config.target_parameters.assign(parameters_.begin(), parameters_.end());
    config.rank_pattern = rank_pattern_;
    config.modules_to_save.assign(modules_.begin(), modules_.end());
    if (reader_ == AdapterReader::kPeft3d) {
      for (const auto& [key, rank] : rank_pattern_) config.alpha_pattern[key] = static_cast<double>(rank);
    }
    config.base_model = base_name.empty() ? saved_.recipe().model.path : base_name;
    return config;
  }

  void write(const fs::path& folder) const {
    std::vector<Spec> specs;
    for (const AdapterTensor& tensor : tensors_) specs.push_back(tensor.spec);
    SafetensorsWriter writer((folder / "adapter_model.safetensors").string(), specs, {});
    for (const AdapterTensor& tensor : tensors_) {
      at::Tensor out = at::zeros(tensor.spec.shape, at::kFloat);
      if (tensor.fill) tensor.fill(out);
      writer.append(tensor.spec.name, out.const_data_ptr(), out.nbytes());
    }
    writer.commit();
  }

  std::string report(const std::string& base, const fs::path& to) const {
    struct Sums {
      int64_t maps = 0, parameters = 0;
    };
    std::map<std::string, Sums> groups;
    for (const SavedAdapter& adapter : adapters_) {
      Sums& sums = groups[adapter.group];
      ++sums.maps;
      sums.parameters += adapter.rank * (adapter.inputs + adapter.outputs);
    }
    std::string text;
    for (const auto& [group, sums] : groups) {
      text += str("  ", group, ": ", sums.maps, " linear maps, ", 2 * sums.maps, " tensors, ", sums.parameters,
                  " parameters\n");
    }
    if (!modules_.empty()) {
      text += str("  ", num_module_tensors_,
                  " tensors of modules that trained themselves, which PEFT puts in place of the "
                  "model's (modules_to_save)\n");
    }
    if (!left_out_modules_.empty()) {
      text += "  note: left out, since transformers has no MTP module; moetune merge puts them into the model:\n";
      for (const std::string& line : summarise_names(left_out_modules_)) text += "      " + line + "\n";
    }
    if (num_zero_maps_ > 0) text += str("  zeros for ", num_zero_maps_, " maps that were not trained\n");
    const ExportedAdapter file = {recipe_,   blueprint_,         reader_,
                                  adapters_, left_out_,          left_out_routers_,
                                  rank_,     saved_.mtp_layer(), !parameters_.empty()};
    if (reader_ == AdapterReader::kPeft) text += reader_table(file);
    text += reader_notes(file);
    const std::string name = to.has_filename() ? to.filename().string() : to.parent_path().filename().string();
    if (reader_ == AdapterReader::kVllm) {
      text += str("  start vLLM with: vllm serve ", base, " --enable-lora --max-lora-rank ", vllm_max_rank(rank_),
                  " --lora-modules ", name, "=", to.string(), "\n");
    } else if (reader_ == AdapterReader::kSglang) {
      text += str("  start SGLang with: python -m sglang.launch_server --model-path ", base,
                  " --enable-lora --max-lora-rank ", rank_, " --lora-paths ", name, "=", to.string(), "\n");
    }
    return text;
  }

  const Blueprint& blueprint() const { return blueprint_; }
  /// Layers whose routers' correction biases are with the routers, as buffers of modules that PEFT puts in place.
  const std::set<int64_t>& carried_biases() const { return carried_biases_; }

 private:
  using PathSet = std::set<std::string>;

  void require_map(const SavedAdapter& adapter) const {
    const auto map = maps_.find(adapter.module);
    if (map == maps_.end() || map->second.shape != std::vector<int64_t>{adapter.outputs, adapter.inputs}) {
      throw UserError(str(saved_.recipe().model.path, ": has no map of the right shape for the adapter of ",
                          adapter.path, " in ", saved_.checkpoint().string(), "; is it the model of the run?"));
    }
  }

  // SGLang packs q_proj with k_proj and v_proj, and kv_a_proj_with_mqa with q_a_proj.
  void require_packs() const {
    const AttentionSpec& attention = blueprint_.attention();
    if (reader_ != AdapterReader::kSglang || attention.kind != AttentionSpec::Kind::kLatent || attention.q_lora) return;
    for (const SavedAdapter& adapter : adapters_) {
      if (adapter.group != "attention" || adapter.leaf == "o_proj" || adapter.leaf == "kv_b_proj") continue;
      throw UserError(str("--for sglang: ", adapter.path,
                          ": SGLang loads adapters of latent attention only where queries have a latent of their own "
                          "(q_lora_rank); export with --for vllm, or merge"));
    }
  }

  TensorRole role_of(const SavedAdapter& adapter) const { return maps_.at(adapter.module).role; }

  void choose_rank() {
    rank_ = recipe_.rank;
    std::set<int64_t> expert_ranks, ranks;
    for (const SavedAdapter& adapter : adapters_) {
      ranks.insert(adapter.rank);
      if (adapter.group == "experts") expert_ranks.insert(adapter.rank);
    }
    // PEFT gives experts that it fuses the rank r whatever rank_pattern says.
    if (expert_ranks.size() == 1) rank_ = *expert_ranks.begin();
    if (serves_) rank_ = *ranks.rbegin();
  }

  /// What trained itself, for PEFT: routers, norms, embedding and head, each module whole under its name in
  /// transformers. Other readers get none (require_carried).
  void add_modules() {
    const TrainedParts trained = trained_parts(saved_.recipe());
    if (serves_ || trained.none()) return;
    const Naming& naming = blueprint_.naming;
    for (const TensorSpec& tensor : blueprint_.tensors(saved_.mtp_layer() >= 0)) {
      // A router's buffer is part of its module where the family has it there.
      const bool buffer = tensor.role == TensorRole::kCorrectionBias && trained.has(ModelPart::kRouter) &&
                          naming.correction_bias.starts_with(naming.router + ".");
      if (!buffer && !trained.trains(tensor)) continue;
      if (!buffer && tensor.may_be_shared && !saved_.has(tensor.name)) continue;
      if (tensor.layer.is_mtp()) {
        if (!buffer) left_out_modules_.push_back(tensor.name);
        continue;
      }
      std::string module = tensor.module(), name = module.substr(module.rfind('.') + 1);
      const std::string leaf = tensor.name.substr(tensor.name.rfind('.'));
      if (buffer || tensor.role == TensorRole::kRouter) {
        name = str(readers_.sparse, ".", naming.router);
        module = str("model.layers.", tensor.layer.number(), ".", name);
      } else if (tensor.role == TensorRole::kFinalNorm) {
        name = "model.norm";  // PEFT takes a name for that of all modules whose path ends so
      }
      modules_.insert(name);
      ++num_module_tensors_;
      if (buffer) carried_biases_.insert(tensor.layer.number());
      tensors_.push_back(
          {{key(module, leaf.c_str()), DType::kF32, tensor.shape}, [this, tensor, buffer](at::Tensor& out) {
             out.copy_(buffer ? saved_.router_bias(tensor.layer.number()) : saved_.read(tensor.name));
           }});
    }
  }

  void plan() {
    for (const SavedAdapter& adapter : adapters_) {
      const bool fused = reader_ == AdapterReader::kPeft3d && adapter.group == "experts";
      if (fused || !adapter.joint.empty()) continue;
      add(adapter);
    }
    if (serves_) complete_packs();
    add_stacks();
    std::sort(tensors_.begin(), tensors_.end(),
              [](const AdapterTensor& a, const AdapterTensor& b) { return a.spec.name < b.spec.name; });
  }

  std::string key(const std::string& path, const char* part) const {
    // vLLM knows the modules of a multimodal model by their whole path.
    return peft_key(str(reader_ == AdapterReader::kVllm ? blueprint_.naming.prefix : "", path, part));
  }

  void target(const SavedAdapter& adapter) {
    const std::string path = path_in_layer(adapter.module, adapter.layer);
    // PEFT on transformers 5 takes the leaf names of experts for those of experts wherever they stand, but not the
    // parameters of single maps.
    if (reader_ == AdapterReader::kPeft3d && adapter.group != "attention") {
      parameters_.insert(path + ".weight");
      if (adapter.rank != rank_) rank_pattern_[pattern_key(path + ".weight")] = adapter.rank;
      return;
    }
    // PEFT would take a router's name for a linear map's and refuse it: its tensors are there, its name is not.
    if (adapter.group == "router") return;
    leaves_.insert(adapter.leaf);
    if (!serves_ && adapter.rank != rank_) rank_pattern_[pattern_key(path)] = adapter.rank;
  }

  void add(const SavedAdapter& adapter) {
    target(adapter);
    const int64_t rank = serves_ ? rank_ : adapter.rank;
    const double scale = folds_ ? adapter.scale : 1.0;
    // A smaller rank leaves zeros: rows of A, columns of B.
    tensors_.push_back({{key(adapter.path, ".lora_A.weight"), DType::kF32, {rank, adapter.inputs}},
                        [this, adapter](at::Tensor& out) { out.narrow(0, 0, adapter.rank).copy_(a_of(adapter)); }});
    tensors_.push_back(
        {{key(adapter.path, ".lora_B.weight"), DType::kF32, {adapter.outputs, rank}},
         [this, adapter, scale](at::Tensor& out) { out.narrow(1, 0, adapter.rank).copy_(b_of(adapter, scale)); }});
  }

  at::Tensor a_of(const SavedAdapter& adapter) const { return saved_.read(adapter.path + ".lora_A.weight"); }
  at::Tensor b_of(const SavedAdapter& adapter, double scale) const {
    const at::Tensor b = saved_.read(adapter.path + ".lora_B.weight");
    return scale == 1.0 ? b : b.to(at::kDouble) * scale;
  }

  void add_zeros(const TensorSpec& map, int64_t expert) {
    const std::string path = expert < 0 ? map.module() : expert_name(map.module(), expert);
    leaves_.insert(path.substr(path.rfind('.') + 1));
    tensors_.push_back({{key(path, ".lora_A.weight"), DType::kF32, {rank_, map.shape[1]}}, {}});
    tensors_.push_back({{key(path, ".lora_B.weight"), DType::kF32, {map.shape[0], rank_}}, {}});
    ++num_zero_maps_;
  }

  // vLLM packs the three maps of all experts of a layer together and takes no layer in part. SGLang does, and packs
  // maps elsewhere that read the same input.
  void complete_packs() {
    std::set<std::string> trained;
    std::set<std::pair<int64_t, std::string>> packs;  // layer, name of the pack
    for (const SavedAdapter& adapter : adapters_) {
      if (!adapter.joint.empty()) continue;
      trained.insert(adapter.path);
      packs.emplace(adapter.layer, pack_of(maps_.at(adapter.module)));
    }
    for (const auto& [module, map] : maps_) {
      if (!map.joint_module.empty() || packs.count({map.layer.number(), pack_of(map)}) == 0) continue;
      for (int64_t expert = map.stack > 0 ? 0 : -1; expert < map.stack; ++expert) {
        if (trained.count(expert < 0 ? module : expert_name(module, expert)) == 0) add_zeros(map, expert);
        if (expert < 0) break;
      }
    }
  }

  std::string pack_of(const TensorSpec& map) const {
    if (map.stack > 0) return "experts";
    if (reader_ == AdapterReader::kSglang) {
      switch (map.role) {
        case TensorRole::kQ:
        case TensorRole::kK:
        case TensorRole::kV: return "qkv";
        case TensorRole::kQA:
        case TensorRole::kKvA: return "qkv_a";
        case TensorRole::kGate:
        case TensorRole::kUp: return map.group + ".gate_up";
        default: break;
      }
    }
    return map.module();
  }

  /// Adapters that leave as one tensor for all experts.
  void add_stacks() {
    std::map<std::pair<int64_t, bool>, std::vector<const SavedAdapter*>> by_layer;  // layer, down
    for (const SavedAdapter& adapter : adapters_) {
      const bool fused = reader_ == AdapterReader::kPeft3d && adapter.group == "experts";
      if (fused || !adapter.joint.empty()) by_layer[{adapter.layer, is_down(role_of(adapter))}].push_back(&adapter);
    }
    bool any[2] = {false, false};
    for (const auto& [place, adapters] : by_layer) any[place.second ? 1 : 0] = true;
    std::set<int64_t> layers;
    for (const auto& [place, adapters] : by_layer) {
      layers.insert(place.first);
      add_stack(stack_of(place.first, place.second, adapters), place.first, /*both=*/serves_ || (any[0] && any[1]));
    }
    if (!serves_) return;
    for (const int64_t layer : layers) {  // vLLM wants both
      for (const bool down : {false, true}) {
        if (by_layer.count({layer, down}) > 0) continue;
        Stack zero = stack_of(layer, down, {});
        num_zero_maps_ += zero.experts;
        add_stack(zero, layer, /*both=*/true);
      }
    }
  }

  Stack stack_of(int64_t layer, bool down, const std::vector<const SavedAdapter*>& adapters) const {
    Stack stack;
    stack.down = down;
    stack.parameter = str(readers_.sparse, ".experts.", down ? "down_proj" : "gate_up_proj");
    std::map<std::string, std::pair<int64_t, int64_t>> first;  // by module: of the ranks, of the outputs
    std::map<std::string, int64_t> ranks;
    for (const SavedAdapter* adapter : adapters) ranks[adapter->module] = adapter->rank;
    const LayerId block = layer == blueprint_.num_layers() ? blueprint_.mtp() : LayerId::block(layer);
    for (const TensorSpec& map : blueprint_.block_tensors(block)) {
      if (map.stack == 0 || map.bias || is_down(map.role) != down) continue;
      first[map.module()] = {stack.rank, stack.outputs};
      stack.experts = map.stack;
      stack.inputs = map.shape[1];
      stack.outputs += map.shape[0];
      const auto rank = ranks.find(map.module());
      if (rank != ranks.end()) stack.rank += rank->second;
    }
    if (serves_) stack.rank = rank_;
    for (const SavedAdapter* adapter : adapters) {
      stack.pieces.push_back({adapter, first.at(adapter->module).first, first.at(adapter->module).second});
    }
    return stack;
  }

  /// `both`: PEFT wraps both parameters of the module, gate and up first, so that these lie in the wrapper's base
  /// layer.
  void add_stack(const Stack& stack, int64_t layer, bool both) {
    parameters_.insert(stack.parameter);
    if (!serves_ && stack.rank != rank_) rank_pattern_[pattern_key(stack.parameter)] = stack.rank;
    const std::string path =
        str("model.layers.", layer, ".", readers_.sparse, ".experts", both && !stack.down ? ".base_layer" : "");
    const int64_t E = stack.experts, R = stack.rank;
    const auto fill_a = [this, stack, E, R](at::Tensor out) {  // [E, R, I]
      for (const Stack::Piece& piece : stack.pieces) {
        out[piece.adapter->expert].narrow(0, piece.first_rank, piece.adapter->rank).copy_(a_of(*piece.adapter));
      }
    };
    const auto fill_b = [this, stack](at::Tensor out) {  // [E, O, R]
      for (const Stack::Piece& piece : stack.pieces) {
        const SavedAdapter& adapter = *piece.adapter;
        out[adapter.expert]
            .narrow(0, piece.first_output, adapter.outputs)
            .narrow(1, piece.first_rank, adapter.rank)
            .copy_(b_of(adapter, folds_ ? adapter.scale : 1.0));
      }
    };
    // PEFT has an expert's rows of A together, and its columns of B apart.
    if (readers_.outputs_for_inputs) {
      tensors_.push_back({{key(path, ".lora_A.weight"), DType::kF32, {E * R, stack.outputs}},
                          [=](at::Tensor& out) { fill_b(out.view({E, R, stack.outputs}).transpose(1, 2)); }});
      tensors_.push_back({{key(path, ".lora_B.weight"), DType::kF32, {stack.inputs, R * E}},
                          [=](at::Tensor& out) { fill_a(out.view({stack.inputs, R, E}).permute({2, 1, 0})); }});
      return;
    }
    tensors_.push_back({{key(path, ".lora_A.weight"), DType::kF32, {E * R, stack.inputs}},
                        [=](at::Tensor& out) { fill_a(out.view({E, R, stack.inputs})); }});
    tensors_.push_back({{key(path, ".lora_B.weight"), DType::kF32, {stack.outputs, R * E}},
                        [=](at::Tensor& out) { fill_b(out.view({stack.outputs, R, E}).permute({2, 0, 1})); }});
  }

  const SavedRun& saved_;
  const AdapterRecipe& recipe_;
  Blueprint blueprint_;
  const FamilyReaders& readers_;
  AdapterReader reader_;
  bool serves_;                             ///< for a server: one rank, packs complete
  bool folds_;                              ///< scales are in B
  std::map<std::string, TensorSpec> maps_;  ///< what an adapter may be of, by module
  std::vector<SavedAdapter> adapters_;
  std::vector<std::string> left_out_, left_out_routers_;
  std::vector<AdapterTensor> tensors_;
  PathSet leaves_, parameters_, modules_;  ///< target_modules, target_parameters, modules_to_save
  int64_t num_module_tensors_ = 0;
  std::set<int64_t> carried_biases_;
  std::vector<std::string> left_out_modules_;  ///< of the MTP module
  std::map<std::string, int64_t> rank_pattern_;
  int64_t rank_ = 0, num_zero_maps_ = 0;
};

/// The routers that trained beside the adapter, for readers that have no place for them.
void write_routers(const SavedRun& saved, const fs::path& folder) {
  std::vector<std::pair<std::string, at::Tensor>> routers;
  for (const std::string& name : saved.trained_tensors()) routers.emplace_back(name, saved.read(name));
  write_tensors((folder / "router.safetensors").string(), routers, {});
}

/// An adapter alone is not the model of a run of which parts trained themselves. PEFT puts whole modules in place of
/// the model's; servers know none of this, and get the routers beside the adapter. What is not carried so leaves with
/// the weights alone.
void require_carried(const SavedRun& saved, const Blueprint& blueprint, AdapterReader reader) {
  const bool peft = reader == AdapterReader::kPeft || reader == AdapterReader::kPeft3d;
  const TrainedParts carried = peft ? parts_beside_adapter(blueprint) : TrainedParts{ModelPart::kRouter};
  const TrainedParts trained = trained_parts(saved.recipe());
  TrainedParts left;
  for (size_t i = 0; i < words_of(ModelPart()).size(); ++i) {
    const auto part = static_cast<ModelPart>(i);
    if (trained.has(part) && !carried.has(part)) left.add(part);
  }
  if (left.none()) return;
  throw UserError(str(
      "--for ", to_string(reader), ": ", saved.checkpoint().string(), ": besides the adapter the weights of ",
      to_string(left), " trained (train.parts), which ", program_of(reader), " does not take from an adapter's folder",
      ", and without which it is another model; moetune merge writes the model with both, moetune export "
      "--base the weights that the adapter stands on"));
}

/// The correction biases that training moved, but for those that leave with their routers; whether there are any.
bool write_router_bias(const SavedRun& saved, const AdapterExport& adapter, const fs::path& folder) {
  if (!saved.router_bias_moved()) return false;
  std::vector<std::pair<std::string, at::Tensor>> biases;
  for (int64_t layer : saved.router_layers()) {
    if (adapter.carried_biases().contains(layer)) continue;
    biases.emplace_back(router_bias_name(adapter.blueprint(), layer), saved.router_bias(layer));
  }
  if (biases.empty()) return false;
  write_tensors((folder / "router_bias.safetensors").string(), biases, {});
  return true;
}

}  // namespace

std::string export_adapter(const fs::path& run, const fs::path& to, AdapterReader reader,
                           const std::string& base_name) {
  at::NoGradGuard no_grad;
  const SavedRun saved(run);
  if (!saved.recipe().adapter) {
    throw UserError(str(run.string(), ": was trained with adapter: none; export its weights with --base"));
  }
  require_carried(saved, blueprint_of(saved.recipe()), reader);
  const AdapterExport adapter(saved, reader);
  const PeftConfig config = adapter.config(base_name);
  StagedFolder out(to, "adapter");
  adapter.write(out.path());
  write_peft_config(out.path(), config);
  const bool routers = config.modules_to_save.empty() && !saved.trained_tensors().empty();
  if (routers) write_routers(saved, out.path());
  const bool biases = write_router_bias(saved, adapter, out.path());
  const auto bytes = static_cast<int64_t>(fs::file_size(out.path() / "adapter_model.safetensors"));
  ordered_json about = {{"checkpoint", saved.origin()}, {"step", saved.step()}, {"for", to_string(reader)}};
  // The file may not show it: some readers want zeros for what was not trained.
  const std::string narrowing = narrowing_text(*saved.recipe().adapter);
  if (!narrowing.empty()) about["narrowed"] = narrowing;
  out.commit(about);
  std::string text =
      str("adapter of step ", saved.step(), " -> ", to.string(), "\n  from ", saved.checkpoint().string(), "\n  rank ",
          config.rank, ", alpha ", config.alpha, config.rslora ? ", rsLoRA" : "", ", base ", config.base_model,
          ", adapter_model.safetensors: ", bytes_text(bytes), " in fp32\n");
  text += adapter.report(config.base_model, to);
  if (routers) {
    text +=
        "  note: the routers trained too, which servers have no place for: they are in router.safetensors under their "
        "Hugging Face names and belong\n"
        "        into the base model; moetune merge and moetune export --base put them there\n";
  }
  if (biases) {
    text +=
        "  note: training moved the routers' correction biases, which PEFT has no place for: they are in "
        "router_bias.safetensors under their Hugging Face\n"
        "        names and belong into the base model; moetune merge and moetune export --base put them there\n";
  }
  return text;
}

}  // namespace moetune
