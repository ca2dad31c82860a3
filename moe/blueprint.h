// A model described once, as data: what its layers compute, and every tensor that they are made of.
//
//   const Blueprint blueprint = load_blueprint("/models/DeepSeek-V3");        // moe/families/family.h
//   blueprint.layer(LayerId::block(3)).has_experts();                         // true
//   for (const TensorSpec& tensor : blueprint.tensors(/*with_mtp=*/false)) ... // names, shapes, how ranks cut them
//
// A family (moe/families/) fills this in from its config.json; builder, loader, memory, targets, validation, exports
// and digests walk it. What a family needs that no part has yet becomes a value of that part's spec.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "lora/formats/matrix_cut.h"
#include "lora/layer_id.h"

namespace moetune {

/// Angles of rotary features (Su et al. 2021), the same in every layer that has any.
struct RotarySpec {
  enum class Scaling {
    kDefault,
    kYarn,    ///< Peng et al. 2023
    kLlama3,  ///< Llama 3.1: long wavelengths by `factor`, a ramp between low_freq and high_freq
  };
  /// Which two features of a head turn together.
  enum class Layout {
    kPairs,   ///< 2 i and 2 i + 1
    kHalves,  ///< i and i + dim / 2
  };
  Layout layout = Layout::kPairs;
  Scaling scaling = Scaling::kDefault;
  int64_t dim = 0;  ///< rotary features of a head
  double theta = 10000.0;
  double factor = 1.0;
  double original_max_positions = 0;
  double beta_fast = 32, beta_slow = 1;
  double low_freq_factor = 1, high_freq_factor = 4;  ///< Llama 3's
  bool truncate = true;
  std::optional<double> mscale, mscale_all_dim, attention_factor;
  bool operator==(const RotarySpec&) const = default;
};
/// The rotary scaling in force, for people: "default, theta 10000", "yarn 40 x 4096 positions, theta 10000, ...".
std::string rotary_text(const RotarySpec& rotary);

/// What a token sees of its own document, itself and those before it being all there is.
struct MaskSpec {
  enum class Kind {
    kCausal,  ///< all of them
    kWindow,  ///< the last `size`, itself included
    kChunk,   ///< those whose position / size is its own
  };
  Kind kind = Kind::kCausal;
  int64_t size = 0;
  /// Whether it is plain causal attention in documents of at most `longest` tokens.
  bool is_causal_up_to(int64_t longest) const { return kind == Kind::kCausal || longest <= size; }
  bool operator==(const MaskSpec&) const = default;
};

struct AttentionSpec {
  enum class Kind {
    kLatent,        ///< multi-head latent attention (DeepSeek-V2 report, section 2.1)
    kGroupedQuery,  ///< Ainslie et al. 2023; one key and value for heads / kv_heads queries
  };
  /// RMS norms of queries and keys in grouped-query attention.
  enum class HeadNorm {
    kNone,
    kPerHead,               ///< over the features of a head, before the rotation; one weight for all heads
    kAllHeads,              ///< over the features of all heads together, before the rotation
    kWeightlessAfterwards,  ///< over those of a head, after the rotation and only where there is one, no weight
  };
  Kind kind = Kind::kLatent;
  int64_t heads = 0;              ///< H
  int64_t kv_heads = 0;           ///< G; H in latent attention
  int64_t nope_dim = 0;           ///< features of a query or key that are not rotated; latent attention has them first
  int64_t rotary_dim = 0;         ///< those that are; 0: a layer without positions
  int64_t value_dim = 0;          ///< features of a value
  std::optional<int64_t> q_lora;  ///< width of the query latent; none: one plain q_proj
  int64_t kv_lora = 0;            ///< width of the latent of keys and values
  bool qkv_bias = false, o_bias = false;
  bool sinks = false;  ///< a learnt logit a head, which takes part in the softmax and is dropped
  HeadNorm head_norm = HeadNorm::kNone;
  double head_norm_eps = 1e-6;
  double softmax_scale = 0.0;
  /// Queries of a layer without positions times 1 + scale ln(1 + floor((position + 1) / floor)) (Llama-4); 0: none
  double temperature_scale = 0.0, temperature_floor = 0.0;
  MaskSpec mask;

  int64_t key_dim() const { return nope_dim + rotary_dim; }
  bool operator==(const AttentionSpec&) const = default;
};

/// Losses that spread tokens over experts (moe/balance.h).
enum class BalanceKind {
  kAuto,  ///< the family's own
  kNone,
  kSequence,    ///< DeepSeek-V3's, document by document
  kSwitch,      ///< one a layer over the whole step
  kPooled,      ///< one over all layers together, as transformers has it
  kDeepseekV2,  ///< over experts, devices and what they are sent
};
constexpr std::array<std::string_view, 6> words_of(BalanceKind) {
  return {"auto", "none", "sequence", "switch", "pooled", "deepseek_v2"};
}

/// How experts are chosen and weighted; each member on its own.
struct RouterSpec {
  enum class Scores {
    kSigmoid,          ///< of each logit
    kSoftmax,          ///< over all experts
    kSoftmaxOfChosen,  ///< over the chosen ones alone; the logits choose
  };
  enum class Choice {
    kGreedy,           ///< the best K
    kGroupsByMax,      ///< of the best groups, a group's score being its best expert's (DeepSeek-V2)
    kGroupsByBestTwo,  ///< the same by the sum of its two best (DeepSeek-V3)
  };
  int64_t experts = 0;  ///< E
  int64_t top_k = 0;    ///< K
  Scores scores = Scores::kSigmoid;
  Choice choice = Choice::kGreedy;
  int64_t num_groups = 1, top_groups = 1;
  bool correction_bias = false;  ///< added to scores for the choice alone
  bool bias = false;             ///< of the logits
  bool normalise = true;         ///< weights of the chosen ones sum to 1
  double normalise_eps = 0.0;    ///< added to that sum
  double scale = 1.0;            ///< of the weights
  /// what the family's authors trained with; kAuto: what is usual with such scores. A recipe asks for it by name.
  BalanceKind balance = BalanceKind::kAuto;
  bool operator==(const RouterSpec&) const = default;
};

struct ExpertSpec {
  enum class Activation {
    kSwiglu,         ///< silu(gate) up (Shazeer 2020)
    kClampedSwiglu,  ///< gpt-oss: (up + 1) gate sigmoid(alpha gate), gate at most the limit, up within +- the limit
  };
  enum class WeightActs {
    kInput,   ///< expert(w x) (Llama-4)
    kOutput,  ///< w expert(x)
  };
  /// How the stack lies in a checkpoint.
  enum class Layout {
    kApart,        ///< a matrix [O, I] an expert and map
    kFused,        ///< [E, I, O] for all experts; gate and up beside each other, gate first
    kInterleaved,  ///< [E, I, O]; gate and up one map whose outputs alternate, gate first
  };
  int64_t width = 0;  ///< F of one expert
  Activation activation = Activation::kSwiglu;
  double activation_limit = 0.0, activation_alpha = 0.0;
  WeightActs weight_acts = WeightActs::kOutput;
  bool biases = false;
  Layout layout = Layout::kApart;
  int64_t shared_width = 0;  ///< F of the shared expert; 0: none
  bool shared_gate = false;  ///< its output times sigmoid(x . g)
  /// Gate and up are one map with alternating outputs, on disk, in use and for adapters.
  bool joint_gate_up() const { return layout == Layout::kInterleaved; }
  bool operator==(const ExpertSpec&) const = default;
};

/// One decoder block.
struct LayerSpec {
  AttentionSpec attention;
  int64_t dense_width = 0;  ///< F of a dense MLP; 0: routed experts
  bool has_experts() const { return dense_width == 0; }
  bool operator==(const LayerSpec&) const = default;
};

/// What a family calls its parts.
struct Naming {
  std::string prefix;                         ///< of every name on disk: "language_model."
  std::string dense = "mlp", sparse = "mlp";  ///< of a layer: its dense MLP; all that has to do with experts
  std::string router = "gate";                ///< below `sparse`, as what follows
  std::string correction_bias = "gate.e_score_correction_bias";
  std::string shared = "shared_experts";
  std::string gate = "gate_proj", up = "up_proj", down = "down_proj";  ///< of an expert
  bool operator==(const Naming&) const = default;
};

enum class TensorRole {
  kEmbedding,
  kFinalNorm,
  kHead,
  kInputNorm,
  kPostAttentionNorm,
  kQ,
  kQA,
  kQANorm,
  kQB,
  kKvA,
  kKvANorm,
  kKvB,
  kK,
  kV,
  kO,
  kQNorm,
  kKNorm,
  kSinks,
  kGate,
  kUp,
  kDown,
  kGateUp,
  kSharedGate,
  kRouter,
  kCorrectionBias,
  kMtpEmbeddingNorm,
  kMtpHiddenNorm,
  kMtpProjection,
  kMtpEmbedding,
  kMtpHeadNorm,
  kMtpHead,
};

/// How a run that does not train a tensor holds it.
enum class Held {
  kLinear,   ///< as a FrozenWeight in the run's base format
  kJoint,    ///< MTP's eh_proj: fp32 under base fp32, bf16 under every other
  kCompute,  ///< in the compute dtype: embedding, head, norms, biases
  kStored,   ///< in the dtype it is stored in: the router
  kBias,     ///< the router's correction bias, in fp32
};

/// A tensor of the model, or of a stack of E experts.
struct TensorSpec {
  TensorRole role = TensorRole::kEmbedding;
  bool bias = false;  ///< of the map that has this role
  LayerId layer;      ///< the block, or MTP for all of the module's; embedding, turn
  /// Hugging Face key, '*' for the expert of a stack: "model.layers.3.self_attn.q_a_proj.weight"
  std::string name;
  std::vector<int64_t> shape;  ///< of the tensor, of a stack one expert's; [O, I] of a map
  int64_t stack = 0;           ///< E of a stack, all ranks together; 0: none
  Held held = Held::kCompute;
  /// of a map and its bias attention, dense_mlp, shared_expert, experts or mtp; else embedding, head, norms, router, or
  /// that of the maps that it acts on: sinks, the gate of a shared expert
  std::string group;
  /// how ranks that share it cut it, each map of a stack; kNone: each holds it whole
  MatrixCut::Dim cut = MatrixCut::Dim::kNone;
  /// of a cut along the hidden features of an MLP: F, which need no equal parts; 0: a cut into equal parts
  int64_t cut_features = 0;
  /// of a cut along the heads of keys and values: G; several ranks hold the same one where there are more ranks
  int64_t cut_heads = 0;
  bool may_be_shared = false;  ///< embedding and head of the MTP module: absent where a checkpoint shares the trunk's

  /// Without ".weight" or ".bias": the module's, which its adapter is named after.
  std::string module() const;
  /// As adapter.targets says it: "q_a_proj", "experts.up_proj".
  std::string leaf() const;
  /// Of a stack that a checkpoint holds as one parameter with outputs of more than one map: what PEFT names the
  /// adapters of all experts after, which are one tensor there; else empty. "...mlp.experts.base_layer",
  /// "...mlp.experts"
  std::string joint_module;
  int64_t numel() const;  ///< of one expert where it is a stack
};

struct Blueprint {
  std::string model_type;
  int64_t vocab = 0;              ///< V
  int64_t width = 0;              ///< D
  std::vector<LayerSpec> layers;  ///< L, without the MTP module
  int64_t num_mtp_layers = 0;
  LayerSpec mtp_layer;  ///< the MTP module's block, where there is one
  RotarySpec rotary;
  RouterSpec router;
  ExpertSpec experts;
  double norm_eps = 1e-6;  ///< of the norms on D
  bool tied_embeddings = false;
  double initializer_range = 0.02;
  int64_t max_positions = 0;
  int64_t longest_document = 0;  ///< tokens of a document that are computed exactly; 0: any number
  bool fp8_blocks = false;       ///< weights are FP8 e4m3 with 128 x 128 scales
  bool mxfp4_experts = false;    ///< stacks are MXFP4 blocks with scales
  Naming naming;

  int64_t num_layers() const { return static_cast<int64_t>(layers.size()); }
  /// The trunk's blocks from the first to the last; `with_mtp`: the MTP module's behind them.
  std::vector<LayerId> blocks(bool with_mtp) const;
  LayerId mtp() const { return LayerId::mtp(num_layers()); }
  LayerId turn() const { return LayerId::turn(num_layers()); }
  const LayerSpec& layer(LayerId block) const { return block.is_mtp() ? mtp_layer : layers.at(block.number()); }
  bool has_experts(LayerId block) const { return layer(block).has_experts(); }
  /// The first layer's; heads and their widths are the same in all.
  const AttentionSpec& attention() const { return layers.at(0).attention; }
  /// Blocks of the trunk whose MLP is dense.
  int64_t num_dense_layers() const;

  /// Every tensor, in the order of the layers and of their use; the MTP module's last.
  std::vector<TensorSpec> tensors(bool with_mtp) const;
  /// Name of the correction bias of the router of the block with this number, the MTP module's too; empty: it has none.
  std::string correction_bias_name(int64_t block) const;
  /// Those of one block, or of the MTP module's.
  std::vector<TensorSpec> block_tensors(LayerId block) const;
  /// The layer on whose way up the gradient of a tensor is complete: its own, or the turn for what of the MTP module
  /// stands beside its block.
  LayerId completing_layer(const TensorSpec& tensor) const;
  bool operator==(const Blueprint&) const = default;
};

}  // namespace moetune
