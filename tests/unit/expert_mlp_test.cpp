// The MLPs of a chunk of experts against the formula of one row at a time, differentiated by torch's autograd, in fp64:
// every activation, biases, gate and up apart and joint, and each place where the routing weight acts.
#include "tests/support/catch.h"

#include <torch/csrc/autograd/autograd.h>

#include "moe/expert_mlp.h"
#include "parallel/base/error.h"
#include "tests/support/gradients.h"
#include "tests/support/numbers.h"

using namespace moetune;

namespace {

using Activation = ExpertSpec::Activation;
using WeightActs = ExpertSpec::WeightActs;

constexpr int64_t E = 6, D = 7, F = 4, kRank = 2;
constexpr int64_t kFirst = 1;                   // of the chunk's experts
const std::vector<int64_t> kRows{3, 0, 5, 1};   // of each of them
constexpr double kLimit = 0.6, kAlpha = 1.702;  // so that many numbers are clamped

enum class Trains { kAdapters, kAdaptersFolded, kAdaptersAndBiases, kWeights };

ExpertSpec spec_of(Activation activation, WeightActs acts, bool biases, bool joint) {
  ExpertSpec spec;
  spec.width = F;
  spec.activation = activation;
  spec.activation_limit = kLimit;
  spec.activation_alpha = kAlpha;
  spec.weight_acts = acts;
  spec.biases = biases;
  spec.layout = joint ? ExpertSpec::Layout::kInterleaved : ExpertSpec::Layout::kApart;
  return spec;
}

/// One map of all experts, its pieces as autograd sees them.
struct SlowMap {
  at::Tensor weight, bias, a, b;
  at::Tensor of(int64_t e, const at::Tensor& x) const {
    at::Tensor y = x.matmul(weight[e].t());
    if (a.defined()) y = y + 1.5 * x.matmul(a[e].t()).matmul(b[e].t());
    return bias.defined() ? y + bias[e] : y;
  }
};

struct Case {
  Case(const ExpertSpec& spec, Trains trains) : spec(spec), trains(trains), scratch(at::kCPU, at::kDouble) {
    auto gate = map(spec.joint_gate_up() ? "gate_up" : "gate", spec.joint_gate_up() ? 2 * F : F, D, 1);
    std::unique_ptr<GroupedLinear> up;
    if (!spec.joint_gate_up()) up = map("up", F, D, 2);
    auto down = map("down", D, F, 3);
    mlp = up ? std::make_unique<ExpertMlp>(spec, std::move(gate), std::move(up), std::move(down))
             : std::make_unique<ExpertMlp>(spec, std::move(gate), std::move(down));
    if (trains == Trains::kAdaptersFolded) mlp->fold_adapters(true);
    scratch.reserve(2 * E * mlp->scratch_elements_per_expert());
    scratch.poison_released(true);
  }

  std::unique_ptr<GroupedLinear> map(const std::string& name, int64_t outputs, int64_t inputs, uint64_t seed) {
    SlowMap& slow = slow_maps.emplace_back();
    ParameterInfo info;
    info.name = "experts.*." + name;
    info.num_experts = E;
    GroupedBias bias;
    if (spec.biases) {
      const at::Tensor values = random_normal({E, outputs}, seed + 200) * 0.5;
      slow.bias = values;
      if (trains == Trains::kAdapters || trains == Trains::kAdaptersFolded) {
        bias = GroupedBias(values);
      } else {
        ParameterInfo of_bias = info;
        of_bias.name += ".bias";
        Parameter& parameter = parameters.add(of_bias, values);
        bias = GroupedBias(parameter);
        slow.bias = parameter.working;
      }
    }
    const at::Tensor weight = random_normal({E, outputs, inputs}, seed, at::kFloat).to(at::kDouble) * 0.5;
    slow.weight = weight;
    if (trains == Trains::kWeights) {
      Parameter& parameter = parameters.add(info, weight);
      slow.weight = parameter.working;
      return std::make_unique<GroupedLinear>(parameter, bias);
    }
    auto frozen =
        std::make_unique<FrozenWeight>(FrozenShape{BaseFormat::kFp32, E, outputs, inputs}, at::kCPU, at::kDouble);
    for (int64_t e = 0; e < E; ++e) frozen->set(e, weight[e]);
    auto adapter = std::make_unique<Adapter>(AdapterSpec{kRank, 1.5, 0.0}, info, E, outputs, inputs, 1, parameters);
    adapter->b().master().copy_(random_normal({E, outputs, kRank}, seed + 100));
    adapter->b().refresh_working();
    slow.a = adapter->a().working;
    slow.b = adapter->b().working;
    return std::make_unique<GroupedLinear>(std::move(frozen), std::move(adapter), bias);
  }

  /// One row of expert e.
  at::Tensor slow(int64_t e, const at::Tensor& x, const at::Tensor& w) const {
    const bool at_input = spec.weight_acts == WeightActs::kInput;
    const at::Tensor in = at_input ? w * x : x;
    at::Tensor gate = slow_maps[0].of(e, in), up;
    if (spec.joint_gate_up()) {
      const at::Tensor pairs = gate.view({F, 2});
      gate = pairs.select(1, 0);
      up = pairs.select(1, 1);
    } else {
      up = slow_maps[1].of(e, in);
    }
    at::Tensor h;
    if (spec.activation == Activation::kSwiglu) {
      h = gate / (1 + (-gate).exp()) * up;
    } else {
      const at::Tensor g = at::where(gate > kLimit, at::full_like(gate, kLimit), gate);
      at::Tensor u = at::where(up > kLimit, at::full_like(up, kLimit), up);
      u = at::where(u < -kLimit, at::full_like(u, -kLimit), u);
      h = (u + 1) * g / (1 + (-kAlpha * g).exp());
    }
    const at::Tensor out = slow_maps.back().of(e, h);
    return at_input ? out : w * out;
  }

  std::vector<at::Tensor> parameter_gradients() { return taken_gradients(parameters); }

  ExpertSpec spec;
  Trains trains;
  ParameterSet parameters{at::kCPU, at::kDouble};
  std::vector<SlowMap> slow_maps;
  Scratch scratch;
  DequantCounters counters;
  PassContext pass{scratch, counters, {}};
  std::unique_ptr<ExpertMlp> mlp;
};

ExpertChunk chunk_of(const std::vector<int64_t>& rows) {
  return {kFirst, static_cast<int64_t>(rows.size()), 0, RowGroups::from_counts(rows, at::kCPU)};
}

struct Form {
  Activation activation;
  WeightActs acts;
  bool biases, joint;
};
// DeepSeek, Llama-4, gpt-oss, and what no family has yet.
const std::vector<Form> kForms{{Activation::kSwiglu, WeightActs::kOutput, false, false},
                               {Activation::kSwiglu, WeightActs::kInput, false, false},
                               {Activation::kClampedSwiglu, WeightActs::kOutput, true, true},
                               {Activation::kSwiglu, WeightActs::kOutput, true, false},
                               {Activation::kSwiglu, WeightActs::kInput, true, true},
                               {Activation::kClampedSwiglu, WeightActs::kInput, false, false}};

}  // namespace

TEST_CASE("experts' MLPs equal the formula of a row, forward and backward", "[expert_mlp]") {
  const ExpertChunk chunk = chunk_of(kRows);
  const int64_t X = chunk.groups.num_rows();
  const at::Tensor x = leaf(random_normal({X, D}, 10)), w = leaf(random_normal({X}, 11)), d = random_normal({X, D}, 12);
  for (const Form& form : kForms) {
    for (const auto trains :
         {Trains::kAdapters, Trains::kAdaptersFolded, Trains::kAdaptersAndBiases, Trains::kWeights}) {
      INFO("activation " << static_cast<int>(form.activation) << ", weight acts " << static_cast<int>(form.acts)
                         << ", biases " << form.biases << ", joint " << form.joint << ", trains "
                         << static_cast<int>(trains));
      Case c(spec_of(form.activation, form.acts, form.biases, form.joint), trains);
      std::vector<at::Tensor> rows;
      for (size_t e = 0; e < kRows.size(); ++e) {
        for (int64_t i = 0; i < kRows[e]; ++i) {
          const int64_t row = static_cast<int64_t>(rows.size());
          rows.push_back(c.slow(kFirst + static_cast<int64_t>(e), x[row], w[row]));
        }
      }
      const at::Tensor expected = at::stack(rows);
      at::Tensor kept;
      CHECK(distance(c.mlp->forward(chunk, {x.detach().clone(), w.detach(), {}}, c.pass, &kept), expected) < 1e-14);
      CHECK(distance(c.mlp->forward(chunk, {x.detach().clone(), w.detach(), {}}, c.pass), expected) < 1e-14);
      c.scratch.reset();

      std::vector<at::Tensor> inputs{x, w};
      for (Parameter& parameter : c.parameters.all()) inputs.push_back(parameter.working);
      const auto wanted = torch::autograd::grad({expected}, inputs, {d});
      for (const at::Tensor* before :
           {static_cast<const at::Tensor*>(nullptr), static_cast<const at::Tensor*>(&kept)}) {
        const RowGradients got = c.mlp->backward(chunk, {x.detach().clone(), w.detach(), {}}, d, c.pass, before);
        c.scratch.reset();
        CHECK(distance(got.d_x_XD, wanted[0]) < 1e-13);
        CHECK(distance(got.d_weight_X, wanted[1]) < 1e-13);
        const std::vector<at::Tensor> gradients = c.parameter_gradients();
        for (size_t i = 0; i < gradients.size(); ++i) {
          CHECK(distance(gradients[i], wanted[2 + i]) < 1e-13);
          CHECK(gradients[i][kFirst + 1].count_nonzero().item<int64_t>() == 0);  // without rows
          CHECK(gradients[i][kFirst + 2].count_nonzero().item<int64_t>() > 0);
        }
      }
    }
  }
}

TEST_CASE("experts' MLPs take no rows", "[expert_mlp]") {
  for (const Form& form : kForms) {
    Case c(spec_of(form.activation, form.acts, form.biases, form.joint), Trains::kAdaptersAndBiases);
    const ExpertChunk chunk = chunk_of({0, 0, 0});
    const ExpertRows none{at::zeros({0, D}, at::kDouble), at::zeros({0}, at::kDouble), {}};
    CHECK(c.mlp->forward(chunk, none, c.pass).sizes() == at::IntArrayRef({0, D}));
    c.scratch.reset();
    const RowGradients got = c.mlp->backward(chunk, none, none.x_XD, c.pass);
    CHECK(got.d_x_XD.sizes() == at::IntArrayRef({0, D}));
    CHECK(got.d_weight_X.sizes() == at::IntArrayRef({0}));
  }
}

TEST_CASE("parts of experts by features add up to the whole", "[expert_mlp]") {
  const ExpertChunk chunk{0, E, 0, RowGroups::from_counts({2, 0, 3, 1, 1, 4}, at::kCPU)};
  const int64_t X = chunk.groups.num_rows();
  const at::Tensor x = random_normal({X, D}, 10), w = random_normal({X}, 11), d = random_normal({X, D}, 12);
  for (const Form& form : kForms) {
    const ExpertSpec spec = spec_of(form.activation, form.acts, form.biases, form.joint);
    Case whole(spec, Trains::kWeights);
    const at::Tensor out = whole.mlp->forward(chunk, {x.clone(), w, {}}, whole.pass);
    const RowGradients gradients = whole.mlp->backward(chunk, {x.clone(), w, {}}, d, whole.pass);
    at::Tensor out_sum = at::zeros_like(out), d_x_sum = at::zeros_like(x), d_w_sum = at::zeros_like(w), d_bias_sum;
    for (int64_t part = 0; part < 2; ++part) {
      std::vector<Parameter*> biases;
      ParameterSet parameters{at::kCPU, at::kDouble};
      size_t index = 0;
      const auto map = [&](int64_t dim) {
        const SlowMap& slow = whole.slow_maps[index++];
        const auto cut = [&](const at::Tensor& t, int64_t along) {
          const int64_t size = t.size(along) / 2;
          return t.detach().narrow(along, part * size, size).contiguous();
        };
        ParameterInfo info;
        info.name = str("map ", index);
        info.num_experts = E;
        Parameter& weight = parameters.add(info, cut(slow.weight, dim));
        if (!slow.bias.defined()) return std::make_unique<GroupedLinear>(weight);
        info.name += ".bias";
        biases.push_back(&parameters.add(info, dim == 1 ? cut(slow.bias, 1) : slow.bias.detach().clone()));
        return std::make_unique<GroupedLinear>(weight, GroupedBias(*biases.back()));
      };
      auto gate = map(1);
      std::unique_ptr<GroupedLinear> up;
      if (!spec.joint_gate_up()) up = map(1);
      auto down = map(2);
      if (part > 0) down->leave_bias();
      ExpertMlp mlp = up ? ExpertMlp(spec, std::move(gate), std::move(up), std::move(down))
                         : ExpertMlp(spec, std::move(gate), std::move(down));
      out_sum += mlp.forward(chunk, {x.clone(), w, {}}, whole.pass);
      const RowGradients got = mlp.backward(chunk, {x.clone(), w, {}}, d, whole.pass);
      d_x_sum += got.d_x_XD;
      d_w_sum += got.d_weight_X;
      if (spec.biases) {
        const at::Tensor& d_bias = biases.back()->gradient();
        d_bias_sum = part == 0 ? d_bias.clone() : d_bias_sum + d_bias;
      }
    }
    CHECK(distance(out_sum, out) < 1e-14);
    CHECK(distance(d_x_sum, gradients.d_x_XD) < 1e-13);
    CHECK(distance(d_w_sum, gradients.d_weight_X) < 1e-13);
    if (spec.biases) CHECK(distance(d_bias_sum, whole.mlp->down().bias().trained()->gradient()) < 1e-14);
  }
}
