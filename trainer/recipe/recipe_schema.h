// The schema of a recipe: every key once, with what it means, its unit and what it may be.
//
//   struct Lister {                              // whatever walks the recipe
//     template <typename Value> void field(const char* key, Value& value, const FieldSpec& spec);
//     template <typename Section> void section(const char* key, const char* doc, Section& section);
//     template <typename Section>
//     void optional_section(const char* key, const char* doc, std::optional<Section>& section);
//   };
//   Lister lister;  visit_keys(lister, recipe);  // calls these for each key, in the order of the file
//
// section and optional_section go on with visit_keys(*this, section) when they want what is inside. The default of a
// key is the value that its member has in a default-constructed section (recipe.h).
#pragma once

#include <concepts>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

#include "trainer/recipe/recipe.h"

namespace moetune {

/// The interval that a number must lie in.
struct Range {
  double min = -std::numeric_limits<double>::infinity();
  double max = std::numeric_limits<double>::infinity();
  bool above_min = false;  ///< min itself is refused
  bool below_max = false;  ///< max itself is refused
};

/// What --resume makes of a key that has another value than in the recipe of the checkpoint.
enum class OnResume {
  kUndecided,  ///< a mistake of the schema; treated like kSame
  kSame,       ///< refused: it changes what is computed, or in which order
  kContents,   ///< a path: another one is fine where it leads to the same, which digests decide
  kFree,       ///< goes on with the new value, which is said
};

/// What the schema says of a key beside its type and default.
struct FieldSpec {
  const char* doc;
  const char* unit = "";
  Range range = {};                     ///< of a number, or of each number in a list or map
  const char* empty_word = "null";      ///< the word for an empty std::optional
  std::vector<std::string> words = {};  ///< what a list may hold, or the keys of a map
  const char* default_text = "";        ///< for a default that depends on another key
  bool required = false;
  bool path = false;         ///< text that names a file or folder
  bool weighted = false;     ///< data files may have weights, within `range`
  bool counts_true = false;  ///< a count that was a switch: `true` is 1 and `false` 0
  OnResume on_resume = OnResume::kUndecided;
};

template <typename S, typename Section>
concept SectionOf = std::same_as<std::remove_const_t<S>, Section>;

template <typename Visitor, SectionOf<RunRecipe> S>
void visit_keys(Visitor& v, S& run) {
  v.field("dir", run.dir,
          {.doc = "The run folder: resolved recipe, log, checkpoints. Made when it is missing.",
           .required = true,
           .path = true,
           .on_resume = OnResume::kFree});
  v.field("seed", run.seed,
          {.doc = "All randomness follows from it: data order, dropout, new adapters, random weights.",
           .range = {.min = 0},
           .on_resume = OnResume::kSame});
  v.field("device", run.device,
          {.doc = "Where to compute; `auto` is CUDA where there is a GPU.", .on_resume = OnResume::kFree});
  v.field(
      "threads", run.threads,
      {.doc = "CPU threads per rank; 0 chooses.", .unit = "threads", .range = {0, 1024}, .on_resume = OnResume::kFree});
  v.field("stall_timeout_s", run.stall_timeout_s,
          {.doc = "A rank that stands still for so long while others wait for it ends the job; 0: the job waits for "
                  "ever. Must "
                  "exceed what some dozens of operators take.",
           .unit = "s",
           .range = {0, 86400},
           .on_resume = OnResume::kFree});
  v.field("check_replicas_every", run.check_replicas_every,
          {.doc = "What ranks hold alike is compared after every so many steps; at the start and before each save in "
                  "any case. A difference "
                  "ends the run. 0: only then.",
           .unit = "steps",
           .range = {.min = 0},
           .on_resume = OnResume::kFree});
  v.field(
      "machine", run.machine,
      {.doc = "File of `moetune bench` on this machine: what the times that the run predicts at its start come from "
              "(docs/planner.md). null: figures of its kind that come with the program.",
       .path = true,
       .on_resume = OnResume::kFree});
}

template <typename Visitor, SectionOf<ModelRecipe> S>
void visit_keys(Visitor& v, S& model) {
  v.field("path", model.path,
          {.doc = "Hugging Face folder: `config.json`, `*.safetensors`, `tokenizer.json`.",
           .required = true,
           .path = true,
           .on_resume = OnResume::kContents});
  v.field(
      "weights", model.weights,
      {.doc = "`random` draws the weights from the seed; `config.json` is enough then.", .on_resume = OnResume::kSame});
  v.field("base", model.base,
          {.doc = "How frozen linear weights are held; `nf4_double` quantises the scales (absmax) too.",
           .on_resume = OnResume::kSame});
  v.field("compute", model.compute,
          {.doc = "Type of activations and matrix products; `fp64` is for proofs.", .on_resume = OnResume::kSame});
  v.field("cache", model.cache,
          {.doc = "Folder, best on a disk of each host, that keeps the frozen linear weights as they are held, so that "
                  "the next start on "
                  "any mesh need not read and quantise them. Made when it is missing.",
           .path = true,
           .on_resume = OnResume::kFree});
}

template <typename Visitor, SectionOf<AdapterRecipe> S>
void visit_keys(Visitor& v, S& adapter) {
  constexpr Range kRank = {1, 1024};
  v.field("rank", adapter.rank, {.doc = "Rank of A and B.", .range = kRank, .on_resume = OnResume::kSame});
  v.field("alpha", adapter.alpha,
          {.doc = "The adapter's output is scaled by alpha / rank.",
           .range = {.min = 0, .max = 65536, .above_min = true},
           .default_text = "the rank",
           .on_resume = OnResume::kSame});
  v.field("dropout", adapter.dropout,
          {.doc = "Probability that an input of A is dropped in training.",
           .range = {.min = 0, .max = 1, .below_max = true},
           .on_resume = OnResume::kSame});
  v.field("rslora", adapter.rslora, {.doc = "Scale by alpha / sqrt(rank) instead.", .on_resume = OnResume::kSame});
  v.field(
      "targets", adapter.targets,
      {.doc =
           "The linear maps that get adapters, by group or by leaf name. `gate_proj`, `up_proj` and "
           "`down_proj` are those of dense MLPs and shared experts; routed experts are `experts.gate_proj` and so on.",
       .words = target_words(),
       .on_resume = OnResume::kSame});
  v.field("ranks", adapter.ranks,
          {.doc = "Rank by leaf name, where it differs from `rank`.",
           .range = kRank,
           .words = target_leaf_words(),
           .on_resume = OnResume::kSame});
  v.field(
      "layers", adapter.layers,
      {.doc = "Layers whose maps get adapters, by number: `[0, 3, 10-20]` or `10-20`. Where some are named, the MTP "
              "module's block is one if `mtp` is among them.",
       .range = {0, 65535},
       .on_resume = OnResume::kSame});
  v.field(
      "experts", adapter.experts,
      {.doc = "Routed experts whose maps get adapters: the same numbers in every layer, as for `layers`, or `top N`: "
              "of each layer the N with the greatest load on the training data, which is counted in a pass before "
              "training, written to `experts.json` and saved (expert-specialised tuning, ESFT).",
       .range = {0, 65535},
       .on_resume = OnResume::kSame});
  v.field("from", adapter.from,
          {.doc = "Folder of a PEFT adapter to go on from.", .path = true, .on_resume = OnResume::kSame});
}

template <typename Visitor, SectionOf<DataRecipe> S>
void visit_keys(Visitor& v, S& data) {
  v.field(
      "train", data.train,
      {.doc = "Training data: a file, a folder, a pattern such as `data/*.jsonl.gz`, or a list of them. An epoch takes "
              "each document `weight` times: the whole part for all, the rest drawn from the seed.",
       .range = {.min = 0, .max = 1000, .above_min = true},
       .required = true,
       .path = true,
       .weighted = true,
       .on_resume = OnResume::kContents});
  v.field("eval", data.eval,
          {.doc = "Held-out data, likewise but without weights.", .path = true, .on_resume = OnResume::kFree});
  v.field("eval_split", data.eval_split,
          {.doc = "Part of the training documents that is held out instead, drawn from the seed; 0: none.",
           .range = {.min = 0, .max = 1, .below_max = true},
           .on_resume = OnResume::kSame});
  v.field(
      "cache", data.cache,
      {.doc = "Folder of the token caches; null: `.moetune` beside each data file. Name one where the data cannot be "
              "written beside. Made when it is missing.",
       .path = true,
       .on_resume = OnResume::kFree});
  v.field("max_tokens", data.max_tokens,
          {.doc = "Length of one packed sequence, and so of the longest document.",
           .unit = "tokens",
           .range = {2, 1 << 20},
           .on_resume = OnResume::kSame});
  v.field("packing", data.packing,
          {.doc = "Several documents share a sequence; `false`: each is a sequence of its own.",
           .on_resume = OnResume::kSame});
  v.field("shuffle", data.shuffle,
          {.doc = "A new order each epoch; `false`: the file's order.", .on_resume = OnResume::kSame});
  v.field("special_tokens_in_content", data.special_tokens_in_content,
          {.doc = "What to do with the text of a special token inside a message: encode it as ordinary text, "
                  "refuse the line, or let it be the token. Where the recipe does not say it, a `text`, prompt or "
                  "completion that holds the chat template's own tokens is refused.",
           .on_resume = OnResume::kSame});
  v.field("train_on", data.train_on,
          {.doc = "The tokens that are targets: the assistant's alone, or all. A `text` line is always trained on in "
                  "full.",
           .on_resume = OnResume::kSame});
  v.field("thoughts", data.thoughts,
          {.doc = "What to do where the chat template takes thoughts out of a trained answer: refuse the line, or put "
                  "the last turn into the text whole.",
           .on_resume = OnResume::kSame});
  v.field("add_bos", data.add_bos,
          {.doc = "Whether a document begins with `bos_token`: texts and completions as tokenizer.json puts it; every "
                  "document, where neither template nor text has it; nothing is put.",
           .on_resume = OnResume::kSame});
  v.field("chat_template_kwargs", data.chat_template_kwargs,
          {.doc = "Variables for the chat template, such as `{thinking: true}`; those of a line go before them.",
           .on_resume = OnResume::kSame});
  v.field("ignore_keys", data.ignore_keys,
          {.doc = "Keys of lines and messages that are as if they were not there.", .on_resume = OnResume::kSame});
}

template <typename Visitor, SectionOf<OptimizerRecipe> S>
void visit_keys(Visitor& v, S& optimizer) {
  v.field(
      "lr", optimizer.lr,
      {.doc = "Learning rate of AdamW at the top of the schedule.", .range = {0, 10}, .on_resume = OnResume::kFree});
  v.field("lr_b_ratio", optimizer.lr_b_ratio,
          {.doc = "Learning rate of B over that of A (LoRA+).",
           .range = {.min = 0, .max = 1000, .above_min = true},
           .on_resume = OnResume::kFree});
  v.field("betas", optimizer.betas,
          {.doc = "Decay of the first and of the second moment.",
           .range = {.min = 0, .max = 1, .below_max = true},
           .on_resume = OnResume::kSame});
  v.field("eps", optimizer.eps,
          {.doc = "Added to the root of the second moment.",
           .range = {.min = 0, .max = 1, .above_min = true},
           .on_resume = OnResume::kSame});
  v.field(
      "weight_decay", optimizer.weight_decay,
      {.doc = "Decoupled weight decay, of matrices alone: norms, biases, sinks and all else of one dimension do not "
              "decay.",
       .range = {0, 10},
       .on_resume = OnResume::kFree});
  v.field(
      "rounding", optimizer.rounding,
      {.doc = "How trained weights' new values, fp32 in host memory, become the bf16 that the model computes with: to "
              "the nearest, or up or down by chance, so that small updates are kept on average.",
       .on_resume = OnResume::kSame});
}

template <typename Visitor, SectionOf<ScheduleRecipe> S>
void visit_keys(Visitor& v, S& schedule) {
  v.field("kind", schedule.kind,
          {.doc = "Course of the learning rate after the warm-up.", .on_resume = OnResume::kFree});
  v.field("warmup_steps", schedule.warmup_steps,
          {.doc = "Steps over which the learning rate rises from 0.",
           .unit = "steps",
           .range = {0, 1e9},
           .on_resume = OnResume::kFree});
  v.field("min_lr_ratio", schedule.min_lr_ratio,
          {.doc = "Learning rate at the last step, as a part of `lr`.", .range = {0, 1}, .on_resume = OnResume::kFree});
}

template <typename Visitor, SectionOf<TrainRecipe> S>
void visit_keys(Visitor& v, S& train) {
  v.field("steps", train.steps,
          {.doc = "Length of the run in optimizer steps. Give this or `epochs`.",
           .unit = "steps",
           .range = {1, 1e9},
           .on_resume = OnResume::kFree});
  v.field("epochs", train.epochs,
          {.doc = "Length of the run in passes over the data, exactly: its last step holds what is left. Give this or "
                  "`steps`.",
           .unit = "epochs",
           .range = {1, 1e6},
           .on_resume = OnResume::kFree});
  v.field("parts", train.parts,
          {.doc = "Parts of the model whose own weights train; the rest is frozen in `model.base`, with the adapters "
                  "beside it. `auto`: all parts with `adapter: none`, none beside adapters. Biases belong to the part "
                  "of their map, sinks to attention, a shared expert's gate to that expert; of the MTP module the "
                  "projection to the head, all else to the part of its kind. Routers' correction biases are "
                  "`router.bias`'s.",
           .empty_word = "auto",
           .words = model_part_words(),
           .on_resume = OnResume::kSame});
  v.field("experts", train.experts,
          {.doc = "Routed experts of the part `experts` whose weights train, as `adapter.experts` says them: numbers, "
                  "or `top N` by the load that the training data puts on them. The others of each layer stay frozen "
                  "in `model.base` (expert-specialised fine-tuning, ESFT).",
           .range = {0, 65535},
           .on_resume = OnResume::kSame});
  v.field("batch", train.batch,
          {.doc = "Sequences per optimizer step, over the whole mesh.",
           .unit = "sequences",
           .range = {1, 1 << 20},
           .on_resume = OnResume::kSame});
  v.field("slice_tokens", train.slice_tokens,
          {.doc = "Tokens of whole documents that go through a block at once, per rank, at the most; a longer document "
                  "goes by itself.",
           .unit = "tokens",
           .range = {1, 1 << 24},
           .empty_word = "auto",
           .on_resume = OnResume::kFree});
  v.field(
      "keep", train.keep,
      {.doc =
           "What layers keep from their way down instead of recomputing it on their way up: memory for time. "
           "attention: the residual behind attention and what attention gave; experts: the routed experts' rows "
           "and activations too; all: their whole graph; N: the last N layers all, the others none, of each "
           "stage where mesh.pp has several. auto keeps as much as fits, in that order, each from the last layer down.",
       .unit = "layers",
       .range = {0, 10000},
       .on_resume = OnResume::kFree});
  v.field("clip", train.clip,
          {.doc = "The global gradient norm is scaled down to this; 0 is off.",
           .range = {0, 1e6},
           .on_resume = OnResume::kFree});
  v.field(
      "gradients", train.gradients,
      {.doc = "What the gradients of layers' trained matrices add up in on a rank: fp32, or, in half of the memory, "
              "bf16. Sums over ranks and all other gradients are fp32 anyway.",
       .on_resume = OnResume::kSame});
  v.section("optimizer", "AdamW.", train.optimizer);
  v.section("schedule", "The learning rate over the run.", train.schedule);
}

template <typename Visitor, SectionOf<MeshRecipe> S>
void visit_keys(Visitor& v, S& mesh) {
  v.field("pp", mesh.pp,
          {.doc = "Pipeline stages: each holds a run of the layers, the first the embedding too, the last head and MTP "
                  "module.",
           .unit = "ranks",
           .range = {1, 1024},
           .on_resume = OnResume::kFree});
  v.field("pp_layers", mesh.pp_layers,
          {.doc = "Layers of each stage, the first one's first. Empty: cut so that a step is as short as can be.",
           .unit = "layers",
           .range = {1, 10000},
           .on_resume = OnResume::kFree});
  v.field(
      "pp_groups", mesh.pp_groups,
      {.doc = "Groups of documents that the local batch goes through the stages in, one after the other. Of G groups "
              "(pp - 1) / (G + pp - 1) of a stage's time is idle, and its weights are used 2 G times a step; `auto` "
              "weighs the two.",
       .unit = "groups",
       .range = {1, 1 << 20},
       .empty_word = "auto",
       .on_resume = OnResume::kFree});
  v.field("dp", mesh.dp,
          {.doc = "Data-parallel replicas; `auto`: what the other axes leave of the ranks.",
           .unit = "ranks",
           .range = {1, 65536},
           .empty_word = "auto",
           .on_resume = OnResume::kFree});
  v.field("ep", mesh.ep,
          {.doc = "Ranks that share the experts of a layer.",
           .unit = "ranks",
           .range = {1, 65536},
           .on_resume = OnResume::kFree});
  v.field("tp", mesh.tp,
          {.doc = "Ranks that share each attention, dense, embedding and head matrix, and the rows between them.",
           .unit = "ranks",
           .range = {1, 1024},
           .on_resume = OnResume::kFree});
  v.field("expert_tp", mesh.expert_tp,
          {.doc = "Ranks that share each expert: 1, or the `tp` ranks together, for experts too large for one rank. "
                  "They go through the "
                  "experts with the rows of all of them.",
           .unit = "ranks",
           .range = {1, 1024},
           .on_resume = OnResume::kFree});
  v.field(
      "shard", mesh.shard,
      {.doc = "Weights of layers, frozen or trained, of which several ranks would hold copies: each rank holds them "
              "whole, or an equal part among the ranks of its node, or among all; what it lacks is gathered ahead of "
              "each use (ZeRO-3).",
       .on_resume = OnResume::kFree});
}

template <typename Visitor, SectionOf<OffloadRecipe> S>
void visit_keys(Visitor& v, S& offload) {
  v.field("frozen", offload.frozen,
          {.doc = "Frozen weights of a rank that lie in host memory and stream in ahead of each use, experts first: "
                  "what does not fit "
                  "on the device (`auto`), nothing, everything, or so much.",
           .range = {.min = 0},
           .on_resume = OnResume::kFree});
  v.field("activations", offload.activations,
          {.doc = "Where the inputs of the layers wait between the way down and the way up: on the device, or in host "
                  "memory.",
           .on_resume = OnResume::kFree});
  v.field("trained", offload.trained,
          {.doc = "Where the weights of layers that train themselves lie: on the device, or in host memory, from where "
                  "they stream in ahead of each use.",
           .on_resume = OnResume::kFree});
  v.field("optimizer", offload.optimizer,
          {.doc = "Where AdamW's masters and moments lie and are updated, 12 bytes a number that the rank updates: on "
                  "the device, with the summed gradients, or in host memory by the CPU, under the next way down.",
           .on_resume = OnResume::kFree});
  v.field("gradients", offload.gradients,
          {.doc = "Where the summed gradients of a step, 4 bytes a number that the rank updates, wait for an optimizer "
                  "in host memory: on the device, or there.",
           .on_resume = OnResume::kFree});
}

template <typename Visitor, SectionOf<ExchangeRecipe> S>
void visit_keys(Visitor& v, S& exchange) {
  v.field(
      "buffer_rows", exchange.buffer_rows,
      {.doc = "Rows of the buffer in which a rank receives tokens for its experts; a larger exchange runs in rounds.",
       .unit = "rows",
       .range = {1, 1e12},
       .empty_word = "auto",
       .on_resume = OnResume::kFree});
}

template <typename Visitor, SectionOf<BalanceRecipe> S>
void visit_keys(Visitor& v, S& balance) {
  v.field("kind", balance.kind,
          {.doc = "`sequence`: document by document (DeepSeek-V3). `switch`: one a layer over the step (Switch "
                  "Transformer). `pooled`: one over all layers together, as transformers has it. `deepseek_v2`: over "
                  "experts, devices and what they are sent. `auto`: the family's own. What config.json says of such a "
                  "loss turns none on.",
           .on_resume = OnResume::kSame});
  v.field("weight", balance.weight,
          {.doc = "Its weight. `auto`: 0.0001 of `sequence`, 0.01 of `switch`, 0.001 of `pooled`; 1 of `deepseek_v2`, "
                  "whose three losses have 0.003, 0.05 and 0.02 of their own.",
           .range = {.min = 0, .max = 100, .above_min = true},
           .empty_word = "auto",
           .on_resume = OnResume::kSame});
}

template <typename Visitor, SectionOf<RouterRecipe> S>
void visit_keys(Visitor& v, S& router) {
  v.field(
      "train", router.train,
      {.doc = "What trains of the routers beside the adapters: nothing, adapters of `adapter.rank` on their maps, or "
              "their weights themselves.",
       .on_resume = OnResume::kSame});
  v.field("bias", router.bias,
          {.doc = "The correction bias of the router: as loaded, or moved after each step against the load.",
           .on_resume = OnResume::kSame});
  v.field("bias_rate", router.bias_rate,
          {.doc = "How far the bias of an expert moves in a step, with `bias: update`.",
           .range = {0, 1},
           .on_resume = OnResume::kSame});
  v.field("balance_loss", router.balance_loss,
          {.doc = "Weight of DeepSeek-V3's sequence-wise balance loss: short for `balance` of kind `sequence`.",
           .range = {0, 100},
           .on_resume = OnResume::kSame});
  v.section("balance", "An auxiliary loss that spreads tokens over the experts.", router.balance);
}

template <typename Visitor, SectionOf<MtpRecipe> S>
void visit_keys(Visitor& v, S& mtp) {
  v.field("loss_weight", mtp.loss_weight,
          {.doc = "Weight of the multi-token-prediction loss. Above 0 the module must be in the checkpoint, "
                  "or `model.weights: random`.",
           .range = {0, 10},
           .on_resume = OnResume::kSame});
}

template <typename Visitor, SectionOf<CheckpointRecipe> S>
void visit_keys(Visitor& v, S& checkpoint) {
  v.field("every_steps", checkpoint.every_steps,
          {.doc = "Save each time so many steps are done; 0: only at the end.",
           .unit = "steps",
           .range = {0, 1e9},
           .on_resume = OnResume::kFree});
  v.field("every_minutes", checkpoint.every_minutes,
          {.doc = "Save when so much time has passed since the last one; 0: not by the clock.",
           .unit = "minutes",
           .range = {0, 1e6},
           .on_resume = OnResume::kFree});
  v.field("keep_last", checkpoint.keep_last,
          {.doc = "Checkpoints to keep; older ones are removed.",
           .unit = "checkpoints",
           .range = {1, 10000},
           .on_resume = OnResume::kFree});
  v.field("keep_best", checkpoint.keep_best,
          {.doc = "Save whenever an evaluation is among the best N so far, and keep these checkpoints beside the last "
                  "ones; `true` is 1.",
           .unit = "checkpoints",
           .range = {0, 10000},
           .counts_true = true,
           .on_resume = OnResume::kFree});
  v.field("async", checkpoint.async,
          {.doc = "Copy what is saved in host memory and write it while training goes on. `auto`: where a rank saves "
                  "more than 64 MiB at a time during training, and the host has the memory.",
           .on_resume = OnResume::kFree});
}

template <typename Visitor, SectionOf<EvalRecipe> S>
void visit_keys(Visitor& v, S& eval) {
  v.field("every_steps", eval.every_steps,
          {.doc = "Evaluate on the held-out data each time so many steps are done; 0: at the end alone.",
           .unit = "steps",
           .range = {0, 1e9},
           .on_resume = OnResume::kFree});
  v.field("at_start", eval.at_start, {.doc = "Evaluate before the first step too.", .on_resume = OnResume::kFree});
  v.field("max_sequences", eval.max_sequences,
          {.doc = "Evaluate on the first so many sequences; 0: all.",
           .unit = "sequences",
           .range = {0, 1e9},
           .on_resume = OnResume::kFree});
}

template <typename Visitor, SectionOf<Recipe> S>
void visit_keys(Visitor& v, S& recipe) {
  v.section("run", "The run folder and the process.", recipe.run);
  v.section("model", "The pretrained model, and how it is held.", recipe.model);
  v.optional_section("adapter",
                     "The LoRA adapters. `adapter: none` trains the weights themselves, all of them or those that "
                     "`train.parts` names.",
                     recipe.adapter);
  v.section("data", "What to train on.", recipe.data);
  v.section("train", "How long and how.", recipe.train);
  v.section("mesh", "How the ranks that `mpirun` starts are arranged; the product of the axes is their number.",
            recipe.mesh);
  v.section("offload", "What lies in host memory beside the device's.", recipe.offload);
  v.section("exchange", "The token exchange between the ranks of the expert axis.", recipe.exchange);
  v.section("router", "The routers of the expert layers.", recipe.router);
  v.section("mtp", "Multi-token prediction.", recipe.mtp);
  v.section("checkpoint", "When to save.", recipe.checkpoint);
  v.section("eval", "When to evaluate.", recipe.eval);
  v.field("deterministic", recipe.deterministic,
          {.doc = "The same run gives the same bits on GPUs too, at the cost of slower sums; on CPUs it does anyway.",
           .on_resume = OnResume::kFree});
}

}  // namespace moetune
