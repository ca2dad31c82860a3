#include "trainer/exports/reader_notes.h"

#include <algorithm>
#include <functional>
#include <iomanip>
#include <set>
#include <sstream>

#include "parallel/base/error.h"
#include "parallel/base/name_summary.h"

namespace moetune {
namespace {

using PeftExperts = FamilyReaders::PeftExperts;

class Readers {
 public:
  explicit Readers(const ExportedAdapter& file) : file_(file), readers_(readers_of(file.blueprint.model_type)) {
    std::set<int64_t> ranks, expert_ranks;
    for (const SavedAdapter& adapter : file.adapters) {
      ranks.insert(adapter.rank);
      if (adapter.group == "experts") expert_ranks.insert(adapter.rank);
    }
    same_rank_ = ranks.size() == 1;
    same_expert_rank_ = expert_ranks.size() <= 1;
  }

  /// What becomes of the file in each reader's hands, group by group.
  std::string table() const {
    std::set<std::string> groups;
    for (const SavedAdapter& adapter : file_.adapters) groups.insert(adapter.group);
    std::ostringstream text;
    const auto row = [&](const std::string& group, const std::string& peft, const std::string& vllm,
                         const std::string& sglang) {
      text << "    " << std::left << std::setw(16) << group << std::setw(22) << peft << std::setw(26) << vllm << sglang
           << "\n";
    };
    text << "  what readers make of it:\n";
    row("", "PEFT, transformers 5", "vLLM", "SGLang");
    for (const std::string& group : groups) {
      const auto in_group = [&](const SavedAdapter& adapter) { return adapter.group == group; };
      const bool drops =
          any([&](const SavedAdapter& adapter) { return in_group(adapter) && dropped_by_peft(adapter); });
      const bool inert =
          any([&](const SavedAdapter& adapter) { return in_group(adapter) && adapter.leaf == "kv_b_proj"; });
      const bool as_trained = group == "experts" ? served_as_trained() : same_rank_;
      row(group,
          drops                                         ? "drops it"
          : group == "experts" && !peft_reads_experts() ? "not as it is"
                                                        : "reads it",
          !as_trained ? "needs --for vllm"
          : inert     ? "all but kv_b_proj"
                      : "reads it",
          !readers_.sglang ? "does not read it" : "needs --for sglang");
    }
    return text.str();
  }

  std::string notes() const {
    std::string text;
    const auto note = [&](const std::string& what, const std::string& which) {
      if (!which.empty()) text += "  note: " + what + "\n" + which;
    };
    note(str("left out, since ", program_of(file_.reader), " does not load an adapter of the MTP module:"),
         listed(file_.left_out));
    note(str("left out, since ", program_of(file_.reader), " does not load an adapter of a router; merge instead:"),
         listed(file_.left_out_routers));
    note("PEFT on transformers 5 has no place for an adapter of a router and ignores these; merge instead:",
         listed([](const SavedAdapter& adapter) { return adapter.group == "router"; }));
    if (file_.recipe.experts.kind != ExpertChoice::Kind::kAll && file_.reader == AdapterReader::kPeft) {
      note("PEFT on transformers 5 and vLLM want adapters of all experts of a layer; export with --for vllm:",
           listed([](const SavedAdapter& adapter) { return adapter.group == "experts"; }));
    }
    if (file_.reader == AdapterReader::kPeft) peft_notes(note);
    if (file_.reader == AdapterReader::kPeft || file_.reader == AdapterReader::kVllm) {
      note("vLLM loads these and ignores them, since it absorbs kv_b_proj into its attention; merge instead:",
           listed([](const SavedAdapter& adapter) { return adapter.leaf == "kv_b_proj"; }));
    }
    if (file_.reader == AdapterReader::kPeft) vllm_notes(note);
    if (file_.wraps_parameters && file_.recipe.dropout > 0.0) {
      text += "  note: lora_dropout is written as 0, since PEFT wraps no parameter where there is dropout\n";
    }
    return text;
  }

 private:
  using PathSet = std::set<std::string>;

  std::string listed(const std::function<bool(const SavedAdapter&)>& wanted) const {
    std::vector<std::string> paths;
    for (const SavedAdapter& adapter : file_.adapters) {
      if (wanted(adapter)) paths.push_back(adapter.path);
    }
    return listed(paths);
  }
  static std::string listed(const std::vector<std::string>& paths) {
    std::string text;
    for (const std::string& line : summarise_names(paths)) text += "      " + line + "\n";
    return text;
  }
  bool any(const std::function<bool(const SavedAdapter&)>& wanted) const {
    return std::any_of(file_.adapters.begin(), file_.adapters.end(), wanted);
  }
  static std::function<bool(const SavedAdapter&)> of_group(const char* group) {
    return [group](const SavedAdapter& adapter) { return adapter.group == group; };
  }

  PathSet expert_leaves() const {
    PathSet leaves;
    for (const SavedAdapter& adapter : file_.adapters) {
      if (adapter.group == "experts") leaves.insert(adapter.leaf);
    }
    return leaves;
  }
  size_t num_expert_leaves() const { return file_.blueprint.experts.joint_gate_up() ? 2 : 3; }

  // PEFT takes maps with the leaf names of experts for experts'.
  bool dropped_by_peft(const SavedAdapter& adapter) const {
    if (adapter.group == "experts") return readers_.peft_experts == PeftExperts::kDropped;
    const Naming& naming = file_.blueprint.naming;
    return readers_.peft_experts == PeftExperts::kFused &&
           (adapter.leaf == naming.gate || adapter.leaf == naming.up || adapter.leaf == naming.down);
  }

  /// Whether a server takes the experts' adapters as they are.
  bool served_as_trained() const {
    return expert_leaves().size() == num_expert_leaves() && same_rank_ && !file_.recipe.rslora;
  }

  bool peft_reads_experts() const {
    if (readers_.peft_experts != PeftExperts::kFused) return true;
    return expert_leaves().size() == num_expert_leaves() && same_expert_rank_ && !file_.recipe.rslora;
  }

  using Note = std::function<void(const std::string& what, const std::string& which)>;

  void peft_notes(const Note& note) const {
    const Naming& naming = file_.blueprint.naming;
    note(
        "PEFT on transformers 5 (seen with 0.21) drops these without a word, as it takes their names for those of "
        "experts; export with --for peft3d, or merge instead:",
        listed([&](const SavedAdapter& adapter) { return adapter.group != "experts" && dropped_by_peft(adapter); }));
    note(
        "PEFT on transformers 5 (seen with 0.21) drops adapters of single experts of this family without a word; "
        "export with --for peft3d, or merge instead:",
        listed([&](const SavedAdapter& adapter) { return adapter.group == "experts" && dropped_by_peft(adapter); }));
    if (file_.mtp_layer >= 0) {
      note("transformers does not know the MTP module and ignores its adapters:",
           listed([&](const SavedAdapter& adapter) { return adapter.layer == file_.mtp_layer; }));
    }
    if (readers_.peft_experts != PeftExperts::kFused) return;
    PathSet leaves;
    for (const SavedAdapter& adapter : file_.adapters) leaves.insert(adapter.leaf);
    const PathSet of_experts = expert_leaves();
    const std::string instead = "export with --for peft3d, or with --for vllm, whose files PEFT reads too:";
    if (leaves.count(naming.gate) != leaves.count(naming.up)) {
      note(str("PEFT on transformers 5 refuses to load an adapter of only one of ", naming.gate, " and ", naming.up,
               "; ", of_experts.empty() ? "export with --for peft3d, or merge instead:" : instead),
           listed(
               [&](const SavedAdapter& adapter) { return adapter.leaf == naming.gate || adapter.leaf == naming.up; }));
    }
    if (of_experts == PathSet{naming.gate, naming.up}) {
      note(str("PEFT on transformers 5 (seen with 0.21) does not use adapters of ", naming.gate, " and ", naming.up,
               " of experts without those of ", naming.down, "; ", instead),
           listed(of_group("experts")));
    }
    if (!of_experts.empty() && file_.recipe.rslora) {
      note(str("the scale of rsLoRA on experts is wrong in PEFT on transformers 5 (by sqrt 2, where ", naming.gate,
               " and ", naming.up, " are fused) and in vLLM; ", instead),
           listed(of_group("experts")));
    }
    if (!same_expert_rank_) {
      note("PEFT on transformers 5 wants one rank for all projections of experts; " + instead,
           listed(of_group("experts")));
    }
  }

  void vllm_notes(const Note& note) const {
    const size_t num_leaves = expert_leaves().size();
    if (num_leaves > 0 && num_leaves < num_expert_leaves()) {
      note(str("vLLM wants all ", num_expert_leaves() == 3 ? "three projections" : "maps",
               " of every expert; export with --for vllm:"),
           listed(of_group("experts")));
    }
    if (num_leaves > 0 && file_.recipe.rslora && readers_.peft_experts == PeftExperts::kDropped) {
      note("the scale of rsLoRA on experts is wrong in vLLM; export with --for vllm:", listed(of_group("experts")));
    }
    if (!same_rank_) {
      note("vLLM ignores rank_pattern; export with --for vllm:",
           listed([&](const SavedAdapter& adapter) { return adapter.rank != file_.rank; }));
    }
  }

  const ExportedAdapter& file_;
  const FamilyReaders& readers_;
  bool same_rank_ = true, same_expert_rank_ = true;
};

}  // namespace

std::string reader_table(const ExportedAdapter& file) { return Readers(file).table(); }
std::string reader_notes(const ExportedAdapter& file) { return Readers(file).notes(); }

}  // namespace moetune
