// Experts dealt out over ranks, and each shared by the ranks of a tensor axis, against one rank that holds them all:
// uneven, empty and padded loads, rounds, dropout, in fp64.
#include "moe/routed_experts.h"

#include "parallel/base/error.h"
#include "parallel/comm/mesh.h"
#include "tests/support/catch.h"
#include "tests/support/dist.h"
#include "tests/support/numbers.h"
#include "trainer/assemble.h"

using namespace moetune;

namespace {

constexpr int64_t D = 8, F = 12, E = 8, K = 3, R = 2;
constexpr int64_t kEmptyExpert = 3;

enum class Form {
  kAdapters,
  kTrained,
  kJoint,    ///< adapters; gate and up one map, biases that train, the clamped activation
  kAtInput,  ///< adapters; the routing weight acts on the input
};

ExpertSpec spec_of(Form form) {
  ExpertSpec spec;
  if (form == Form::kAtInput) spec.weight_acts = ExpertSpec::WeightActs::kInput;
  if (form != Form::kJoint) return spec;
  spec.activation = ExpertSpec::Activation::kClampedSwiglu;
  spec.activation_limit = 0.6;
  spec.activation_alpha = 1.702;
  spec.layout = ExpertSpec::Layout::kInterleaved;
  return spec;
}

/// A rank's experts.
struct Experts {
  Experts(int64_t first, int64_t count, const TensorAxis& axis, std::unique_ptr<TokenExchange> rows, Form form)
      : exchange(std::move(rows)) {
    const at::Device device = test_launch().device();
    const bool train = form == Form::kTrained;
    auto map = [&](const char* leaf, int64_t outputs, int64_t inputs, MatrixCut::Dim dim, uint64_t seed) {
      const MatrixCut cut{dim, axis.index(), axis.size()};
      const at::Tensor weight = random_normal({E, outputs, inputs}, seed, at::kFloat) * 0.5;
      ParameterInfo info;
      info.name = str("layers.0.experts.*.", leaf);
      info.replicas = Replicas::kExpertReplicas;
      info.first_expert = first;
      info.num_experts = E;
      if (train) {
        if (cut.cuts_outputs()) info.hold_part(1, cut.first_output(outputs), outputs);
        if (cut.cuts_inputs()) info.hold_part(2, cut.first_input(inputs), inputs);
        std::vector<at::Tensor> held;
        for (int64_t e = first; e < first + count; ++e) held.push_back(cut.part_of(weight[e]));
        return std::make_unique<GroupedLinear>(parameters.add(info, at::stack(held)));
      }
      auto frozen = std::make_unique<FrozenWeight>(FrozenShape{BaseFormat::kFp32, count, outputs, inputs, cut}, device,
                                                   at::kDouble);
      for (int64_t e = 0; e < count; ++e) frozen->set(e, weight[first + e]);
      auto adapter =
          std::make_unique<Adapter>(AdapterSpec{R, 1.5, 0.3}, info, count, outputs, inputs, 1, parameters, cut);
      Parameter& b = adapter->b();
      b.master().copy_(
          b.info().part.of(random_normal({E, outputs, R}, seed + 100).narrow(0, first, count), b.master().sizes()));
      b.refresh_working();
      GroupedBias bias;
      if (form == Form::kJoint) {
        info.name += ".bias";
        if (cut.cuts_outputs()) info.hold_part(1, cut.first_output(outputs), outputs);
        bias = GroupedBias(parameters.add(info, random_normal({E, outputs}, seed + 200)
                                                    .narrow(0, first, count)
                                                    .narrow(1, cut.first_output(outputs), cut.outputs(outputs))));
      }
      return std::make_unique<GroupedLinear>(std::move(frozen), std::move(adapter), bias);
    };
    const auto mlp = [&]() -> ExpertMlp {
      if (form == Form::kJoint) {
        auto gate_up = map("gate_up_proj", 2 * F, D, MatrixCut::Dim::kOutputs, 1),
             down = map("down_proj", D, F, MatrixCut::Dim::kInputs, 3);
        return {spec_of(form), std::move(gate_up), std::move(down)};
      }
      auto gate = map("gate_proj", F, D, MatrixCut::Dim::kOutputs, 1),
           up = map("up_proj", F, D, MatrixCut::Dim::kOutputs, 2),
           down = map("down_proj", D, F, MatrixCut::Dim::kInputs, 3);
      return {spec_of(form), std::move(gate), std::move(up), std::move(down)};
    };
    experts = std::make_unique<RoutedExperts>(mlp(), ExpertPlacement{first, count, E}, 2, *exchange, axis);
    scratch.reserve(experts->scratch_elements());
  }

  std::unique_ptr<TokenExchange> exchange;
  ParameterSet parameters{test_launch().device(), at::kDouble};
  Scratch scratch{test_launch().device(), at::kDouble};
  DequantCounters counters;
  PassContext pass{scratch, counters, {5, 2, true}};
  std::unique_ptr<RoutedExperts> experts;
};

/// What goes into a layer's experts, and the gradient of what comes out.
struct Rows {
  at::Tensor z_TD, weight_TK, expert_TK, token_T, d_TD;

  /// `count` rows, the last of them padding; of numbers that no other place of the expert axis has.
  static Rows of_place(int64_t place, int64_t count) {
    std::vector<int64_t> experts;
    const int64_t used[] = {0, 1, 2, 4, 5, 6, 7};
    for (int64_t t = 0; t < count; ++t) {
      for (int64_t k = 0; k < K; ++k) {
        experts.push_back(t + 1 == count ? E : used[(t * t + place + k * (t % 3 + 1)) % 7]);
      }
    }
    Rows rows{random_normal({count, D}, 10 + place), random_normal({count, K}, 20 + place).abs(),
              long_tensor(experts).view({count, K}), at::arange(1000 * place, 1000 * place + count, at::kLong),
              random_normal({count, D}, 30 + place)};
    return rows.on(test_launch().device());
  }
  Rows on(at::Device device) const {
    return {z_TD.to(device), weight_TK.to(device), expert_TK.to(device), token_T.to(device), d_TD.to(device)};
  }
  Rows narrow(int64_t first, int64_t count) const {
    return {z_TD.narrow(0, first, count), weight_TK.narrow(0, first, count), expert_TK.narrow(0, first, count),
            token_T.narrow(0, first, count), d_TD.narrow(0, first, count)};
  }
  static Rows joined(const std::vector<Rows>& all) {
    std::vector<at::Tensor> z, weight, expert, token, d;
    for (const Rows& rows : all) {
      z.push_back(rows.z_TD);
      weight.push_back(rows.weight_TK);
      expert.push_back(rows.expert_TK);
      token.push_back(rows.token_T);
      d.push_back(rows.d_TD);
    }
    return {at::cat(z), at::cat(weight), at::cat(expert), at::cat(token), at::cat(d)};
  }
};

struct Passed {
  at::Tensor routed_TD;
  ExpertGradients gradients;
};

Passed pass_through(Experts& held, const Rows& rows, bool keep) {
  const RoutingRecord record = held.experts->route(rows.expert_TK);
  CHECK(at::equal(record.expert_TK.to(at::kLong), rows.expert_TK));
  KeptExperts kept;
  Passed passed;
  KeptExperts* keeps = keep ? &kept : nullptr;
  passed.routed_TD = held.experts->forward(
      record, held.experts->send(record, {rows.z_TD, rows.weight_TK, rows.token_T, {}}, held.pass), held.pass, keeps);
  Dispatch up = held.experts->send(record, {rows.z_TD, rows.weight_TK, rows.token_T, rows.d_TD}, held.pass, keeps);
  passed.gradients = held.experts->backward(record, std::move(up), held.pass, keeps);
  return passed;
}

void check_layout(Mesh& mesh, int64_t buffer_rows, Form form, bool keep) {
  const MeshShape& shape = mesh.shape();
  INFO(to_string(shape) << ", buffer of " << buffer_rows << ", form " << static_cast<int>(form) << ", kept " << keep);
  // The first of several places of the expert axis has one row a rank.
  std::vector<Rows> places;
  std::vector<int64_t> begins{0};
  for (int64_t place = 0; place < shape.ep; ++place) {
    places.push_back(Rows::of_place(place, shape.tp * (shape.ep == 1 ? 7 : 1 + 4 * place)));
    begins.push_back(begins.back() + places.back().token_T.size(0));
  }
  Experts whole(0, E, TensorAxis(), make_local_exchange(), form);
  const Passed expected = pass_through(whole, Rows::joined(places), false);

  const int64_t own = E / shape.ep, first = mesh.here().ep * own, here = mesh.here().ep;
  const TensorAxis axis = expert_axis(mesh);
  Experts part(first, own, axis, shape.ep == 1 ? make_local_exchange() : make_token_exchange(mesh.ep(), buffer_rows),
               form);
  const int64_t count = (begins[here + 1] - begins[here]) / shape.tp, begin = begins[here] + mesh.here().tp * count;
  const int64_t before = mesh.tp().bytes_sent();
  const Passed passed = pass_through(part, places[here].narrow(mesh.here().tp * count, count), keep);
  // docs/parallelism.md: numbers of experts, then down, then up, in fp64; tokens where there is dropout.
  const int64_t down = (2 * D + K) * 8, up = (keep ? 2 * D + K : 3 * D + 2 * K) * 8,
                tokens = form == Form::kTrained ? 0
                         : keep                 ? 8
                                                : 16;
  CHECK(mesh.tp().bytes_sent() - before == (axis.size() - 1) * count * (2 * K + down + up + tokens));
  const auto same = [](const at::Tensor& a, const at::Tensor& b) { return (a - b).abs().max().item<double>() < 1e-11; };
  CHECK(same(passed.routed_TD, expected.routed_TD.narrow(0, begin, count)));
  CHECK(same(passed.gradients.d_z_TD, expected.gradients.d_z_TD.narrow(0, begin, count)));
  CHECK(same(passed.gradients.d_weight_TK, expected.gradients.d_weight_TK.narrow(0, begin, count)));

  auto wanted = whole.parameters.all().begin();
  for (Parameter& parameter : part.parameters.all()) {
    const ParameterInfo& info = parameter.info();
    INFO(info.name);
    const bool cut = info.replicas == Replicas::kExpertTensorIndex;
    CHECK(cut == !info.part.is_whole());
    // What the ranks of a replica group have adds up, whether they have other rows or other features.
    at::Tensor gradient = parameter.gradient().clone();
    if (!cut) mesh.expert_replicas().all_reduce_sum(gradient);
    CHECK(same(gradient, info.part.of((wanted++)->gradient().narrow(0, first, own), gradient.sizes())));
  }
}

}  // namespace

TEST_CASE("experts shared by a tensor axis compute what whole ones do", "[routed_experts]") {
  const int64_t P = test_launch().world_size();
  std::vector<MeshShape> shapes = {{1, 1, P, 1, 1}, {1, 1, 1, P, P}, {1, 1, 1, P, 1}};
  if (P == 4) shapes.insert(shapes.end(), {{1, 1, 2, 2, 2}, {1, 1, 2, 2, 1}});
  for (const MeshShape& shape : shapes) {
    Mesh mesh(test_launch(), shape);  // on GPUs dear to make
    for (const int64_t buffer_rows : {0, 5}) {
      for (const Form form : {Form::kAdapters, Form::kTrained, Form::kJoint, Form::kAtInput}) {
        const bool odd = form == Form::kTrained || form == Form::kAtInput;
        check_layout(mesh, buffer_rows, form, /*keep=*/odd == (buffer_rows > 0));
      }
    }
  }
}
