#include "trainer/exports/export.h"

#include <algorithm>
#include <functional>
#include <map>
#include <set>

#include <ATen/ATen.h>
#include <nlohmann/json.hpp>

#include "lora/adapters/peft_files.h"
#include "parallel/base/error.h"
#include "parallel/base/units.h"
#include "parallel/bytes/tensor_io.h"
#include "trainer/exports/name_summary.h"
#include "trainer/exports/saved_run.h"
#include "trainer/exports/staged_folder.h"

namespace moetune {
namespace {

namespace fs = std::filesystem;
using Spec = SafetensorsWriter::Spec;

const std::vector<std::string> kExpertLeaves = {"down_proj", "gate_proj", "up_proj"};

/// One tensor of the file, and how to make it.
struct AdapterTensor {
  Spec spec;
  std::string source;   // name in the checkpoint; empty: zeros
  double factor = 1.0;  // of the values
};

// "(.*\.)?KEY$" is how PEFT matches the keys of rank_pattern to module paths; a leaf name alone would match other
// groups too.
std::string pattern_key(const SavedAdapter& adapter) {
  if (adapter.group == "experts") return "experts\\.\\d+\\." + adapter.leaf;
  if (adapter.group == "shared_expert") return "shared_experts\\." + adapter.leaf;
  if (adapter.group == "dense_mlp") return "mlp\\." + adapter.leaf;
  return adapter.leaf;
}

/// What one export of adapters consists of.
class AdapterExport {
 public:
  AdapterExport(const SavedRun& saved, AdapterReader reader)
      : saved_(saved), recipe_(*saved.recipe().adapter), vllm_(reader == AdapterReader::kVllm) {
    for (const SavedAdapter& adapter : saved.adapters()) {
      // vLLM does not load an adapter with a module it does not know.
      if (vllm_ && adapter.layer == saved.mtp_layer()) left_out_.push_back(adapter.path);
      else adapters_.push_back(adapter);
    }
    if (adapters_.empty()) {
      throw UserError(str(saved.checkpoint().string(),
                          ": only the MTP module has adapters, and vLLM reads none of those; export with --for peft"));
    }
    choose_rank();
    plan();
  }

  PeftConfig config(const std::string& base_name) const {
    PeftConfig config;
    config.rank = rank_;
    config.alpha = vllm_ ? static_cast<double>(rank_) : recipe_.alpha;
    config.rslora = !vllm_ && recipe_.rslora;
    config.dropout = recipe_.dropout;
    std::set<std::string> leaves;
    for (const SavedAdapter& adapter : adapters_) leaves.insert(adapter.leaf);
    if (num_zero_maps_ > 0) leaves.insert(kExpertLeaves.begin(), kExpertLeaves.end());
    config.target_modules.assign(leaves.begin(), leaves.end());
    for (const SavedAdapter& adapter : adapters_) {
      if (!vllm_ && adapter.rank != rank_) config.rank_pattern[pattern_key(adapter)] = adapter.rank;
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
      if (!tensor.source.empty()) {
        const at::Tensor saved = saved_.read(tensor.source);
        // A smaller rank leaves zeros: rows of A, columns of B.
        out.narrow(0, 0, saved.size(0))
            .narrow(1, 0, saved.size(1))
            .copy_(tensor.factor == 1.0 ? saved : saved.to(at::kDouble) * tensor.factor);
      }
      writer.append(tensor.spec.name, out.const_data_ptr(), out.nbytes());
    }
    writer.commit();
  }

  std::string report() const {
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
    if (num_zero_maps_ > 0) {
      text += str("  zeros for ", num_zero_maps_, " projections of experts that were not trained\n");
    }
    return text + notes();
  }

 private:
  void choose_rank() {
    rank_ = recipe_.rank;
    std::set<int64_t> expert_ranks, ranks;
    for (const SavedAdapter& adapter : adapters_) {
      ranks.insert(adapter.rank);
      if (adapter.group == "experts") expert_ranks.insert(adapter.rank);
    }
    // PEFT gives fused experts the rank r whatever rank_pattern says.
    if (expert_ranks.size() == 1) rank_ = *expert_ranks.begin();
    if (vllm_) rank_ = *ranks.rbegin();
    same_expert_rank_ = expert_ranks.size() <= 1;
    same_rank_ = ranks.size() == 1;
  }

  void plan() {
    for (const SavedAdapter& adapter : adapters_) add(adapter, adapter.path, true);
    if (vllm_) add_zero_experts();
    std::sort(tensors_.begin(), tensors_.end(),
              [](const AdapterTensor& a, const AdapterTensor& b) { return a.spec.name < b.spec.name; });
  }

  void add(const SavedAdapter& adapter, const std::string& path, bool trained) {
    const int64_t rank = vllm_ ? rank_ : adapter.rank;
    const std::string a = path + ".lora_A.weight", b = path + ".lora_B.weight";
    tensors_.push_back({{peft_key(a), DType::kF32, {rank, adapter.inputs}}, trained ? a : "", 1.0});
    tensors_.push_back(
        {{peft_key(b), DType::kF32, {adapter.outputs, rank}}, trained ? b : "", vllm_ ? adapter.scale : 1.0});
  }

  // vLLM packs the three projections of all experts of a layer together and takes no layer in part.
  void add_zero_experts() {
    std::set<std::string> paths;
    std::map<std::string, SavedAdapter> first_of_layer;  // by "...mlp.experts.N"
    for (const SavedAdapter& adapter : adapters_) {
      if (adapter.group != "experts") continue;
      paths.insert(adapter.path);
      first_of_layer.emplace(adapter.path.substr(0, adapter.path.rfind('.')), adapter);
    }
    for (const auto& [expert, adapter] : first_of_layer) {
      for (const std::string& leaf : kExpertLeaves) {
        if (paths.count(expert + "." + leaf) > 0) continue;
        SavedAdapter zero = adapter;
        if ((leaf == "down_proj") != (adapter.leaf == "down_proj")) std::swap(zero.inputs, zero.outputs);
        add(zero, expert + "." + leaf, false);
        ++num_zero_maps_;
      }
    }
  }

  std::string listed(const std::function<bool(const SavedAdapter&)>& wanted) const {
    std::vector<std::string> paths;
    for (const SavedAdapter& adapter : adapters_) {
      if (wanted(adapter)) paths.push_back(adapter.path);
    }
    return listed(paths);
  }
  static std::string listed(const std::vector<std::string>& paths) {
    std::string text;
    for (const std::string& line : summarise_names(paths)) text += "      " + line + "\n";
    return text;
  }

  // Sources: peft 0.21 utils/transformers_weight_conversion.py, run against transformers 5; vllm/lora.
  std::string notes() const {
    std::string text;
    auto note = [&](const std::string& what, const std::string& which) {
      if (!which.empty()) text += "  note: " + what + "\n" + which;
    };
    auto of_group = [](const char* group) {
      return [group](const SavedAdapter& adapter) { return adapter.group == group; };
    };
    std::set<std::string> leaves, expert_leaves;
    for (const SavedAdapter& adapter : adapters_) {
      leaves.insert(adapter.leaf);
      if (adapter.group == "experts") expert_leaves.insert(adapter.leaf);
    }
    const bool experts = !expert_leaves.empty();
    note(
        "PEFT on transformers 5 (seen with 0.21) drops these without a word, as it takes their names for those of "
        "experts; merge instead:",
        listed([](const SavedAdapter& adapter) {
          return adapter.group == "dense_mlp" || adapter.group == "shared_expert";
        }));
    if (saved_.mtp_layer() >= 0) {
      note("transformers does not know the MTP module and ignores its adapters:",
           listed([&](const SavedAdapter& adapter) { return adapter.layer == saved_.mtp_layer(); }));
    }
    note("left out, since vLLM does not load an adapter of the MTP module:", listed(left_out_));
    note("vLLM loads these and ignores them, since it absorbs kv_b_proj into its attention; merge instead:",
         listed([](const SavedAdapter& adapter) { return adapter.leaf == "kv_b_proj"; }));
    if (vllm_) return text + str("  note: start vLLM with --max-lora-rank of at least ", rank_, "\n");
    const std::string instead = "export with --for vllm, whose files PEFT reads too:";
    if (leaves.count("gate_proj") != leaves.count("up_proj")) {
      note(
          "PEFT on transformers 5 refuses to load an adapter of only one of gate_proj and up_proj; " +
              (experts ? instead : "merge instead:"),
          listed([](const SavedAdapter& adapter) { return adapter.leaf == "gate_proj" || adapter.leaf == "up_proj"; }));
    }
    if (expert_leaves == std::set<std::string>{"gate_proj", "up_proj"}) {
      note(
          "PEFT on transformers 5 (seen with 0.21) does not use adapters of gate_proj and up_proj of experts without "
          "those of down_proj; " +
              instead,
          listed(of_group("experts")));
    }
    if (experts && expert_leaves.size() < 3) {
      note("vLLM wants all three projections of every expert; " + instead, listed(of_group("experts")));
    }
    if (experts && recipe_.rslora) {
      note(
          "the scale of rsLoRA on experts is wrong in PEFT on transformers 5 (by sqrt 2, where gate_proj and up_proj "
          "are fused) and in vLLM; " +
              instead,
          listed(of_group("experts")));
    }
    if (!same_expert_rank_) {
      note("PEFT on transformers 5 wants one rank for all projections of experts; " + instead,
           listed(of_group("experts")));
    }
    if (!same_rank_) {
      note("vLLM ignores rank_pattern; " + instead,
           listed([&](const SavedAdapter& adapter) { return adapter.rank != rank_; }));
    }
    return text;
  }

  const SavedRun& saved_;
  const AdapterRecipe& recipe_;
  bool vllm_;
  std::vector<SavedAdapter> adapters_;
  std::vector<std::string> left_out_;
  std::vector<AdapterTensor> tensors_;
  int64_t rank_ = 0, num_zero_maps_ = 0;
  bool same_rank_ = true, same_expert_rank_ = true;
};

void write_router_bias(const SavedRun& saved, const fs::path& folder) {
  std::vector<std::pair<std::string, at::Tensor>> biases;
  for (int64_t layer : saved.router_layers()) biases.emplace_back(router_bias_name(layer), saved.router_bias(layer));
  write_tensors((folder / "router_bias.safetensors").string(), biases, {});
}

}  // namespace

std::string export_adapter(const fs::path& run, const fs::path& to, AdapterReader reader,
                           const std::string& base_name) {
  at::NoGradGuard no_grad;
  const SavedRun saved(run);
  if (!saved.recipe().adapter) {
    throw UserError(str(run.string(), ": was trained with adapter: none; export its weights with --base"));
  }
  const AdapterExport adapter(saved, reader);
  const PeftConfig config = adapter.config(base_name);
  StagedFolder out(to);
  adapter.write(out.path());
  write_peft_config(out.path(), config);
  const bool biases = saved.router_bias_moved() && !saved.router_layers().empty();
  if (biases) write_router_bias(saved, out.path());
  const auto bytes = static_cast<int64_t>(fs::file_size(out.path() / "adapter_model.safetensors"));
  out.commit({{"kind", "adapter"},
              {"checkpoint", saved.origin()},
              {"step", saved.step()},
              {"for", reader == AdapterReader::kPeft ? "peft" : "vllm"}});
  std::string text =
      str("adapter of step ", saved.step(), " -> ", to.string(), "\n  from ", saved.checkpoint().string(), "\n  rank ",
          config.rank, ", alpha ", config.alpha, config.rslora ? ", rsLoRA" : "", ", base ", config.base_model,
          ", adapter_model.safetensors: ", bytes_text(bytes), " in fp32\n");
  text += adapter.report();
  if (biases) {
    text +=
        "  note: training moved the routers' correction biases, which PEFT has no place for: they are in "
        "router_bias.safetensors under their Hugging Face\n"
        "        names and belong into the base model; moetune merge and moetune export --base put them there\n";
  }
  return text;
}

}  // namespace moetune
