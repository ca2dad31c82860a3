// Routed experts on a GPU against the CPU in fp64 on the same weights: every form of expert, with adapters, without and
// trained; and that the host never waits for them, nor gives the GPU more work for more experts.
#include "moe/routed_experts.h"

#include <ATen/record_function.h>
#include <c10/cuda/CUDAFunctions.h>

#include <atomic>

#include "tests/support/catch.h"
#include "tests/support/gradients.h"
#include "tests/support/numbers.h"

using namespace moetune;

namespace {

constexpr int64_t kScale = 3;  // of adapters, as 1 / 2^1 times it: no power of two

struct Form {
  ExpertSpec::Activation activation = ExpertSpec::Activation::kSwiglu;
  ExpertSpec::WeightActs acts = ExpertSpec::WeightActs::kOutput;
  bool biases = false, joint = false;
};
// DeepSeek, Llama-4, gpt-oss.
const std::vector<Form> kForms{
    {},
    {ExpertSpec::Activation::kSwiglu, ExpertSpec::WeightActs::kInput, false, false},
    {ExpertSpec::Activation::kClampedSwiglu, ExpertSpec::WeightActs::kOutput, true, true},
};

struct Sizes {
  int64_t D = 128, F = 64, E = 6, K = 3, rank = 8;
  double limit = 1.1;
};

/// What of the maps trains: adapters of the maps named or the weights, of all experts or of some.
struct Trains {
  std::vector<std::string> adapted;
  std::vector<int64_t> experts = {};
  double dropout = 0.0;
  bool weights = false;
};

struct Layer {
  Layer(const Form& form, const Sizes& n, const Trains& trains, at::Device device, at::ScalarType compute,
        int64_t chunk_experts)
      : parameters(device, compute), scratch(device, compute), pass{scratch, counters, {5, 2, true}} {
    ExpertSpec spec;
    spec.width = n.F;
    spec.activation = form.activation;
    spec.activation_limit = n.limit;
    spec.activation_alpha = 1.702;
    spec.weight_acts = form.acts;
    spec.biases = form.biases;
    spec.layout = form.joint ? ExpertSpec::Layout::kInterleaved : ExpertSpec::Layout::kApart;
    // All numbers are those of bf16, so that every dtype computes with the same.
    const auto numbers = [](at::IntArrayRef shape, uint64_t seed) {
      return random_normal(shape, seed, at::kFloat).to(at::kBFloat16).to(at::kFloat);
    };
    const auto map = [&](const std::string& name, int64_t outputs, int64_t inputs, uint64_t seed) {
      ParameterInfo info;
      info.name = "layers.0.experts.*." + name;
      info.num_experts = n.E;
      const at::Tensor weight = (numbers({n.E, outputs, inputs}, seed) / std::sqrt(static_cast<double>(inputs)))
                                    .to(at::kBFloat16)
                                    .to(at::kFloat);
      GroupedBias bias;
      if (form.biases) bias = GroupedBias(numbers({n.E, outputs}, seed + 200).to(device, compute));
      if (trains.weights && trains.experts.empty()) {
        return std::make_unique<GroupedLinear>(parameters.add(info, weight), bias);
      }
      auto frozen =
          std::make_unique<FrozenWeight>(FrozenShape{BaseFormat::kNf4Double, n.E, outputs, inputs}, device, compute);
      for (int64_t e = 0; e < n.E; ++e) frozen->set(e, weight[e]);
      std::unique_ptr<Adapter> adapter;
      if (std::find(trains.adapted.begin(), trains.adapted.end(), name) != trains.adapted.end()) {
        AdapterSpec of{n.rank, kScale / 2.0, trains.dropout};
        of.experts.listed = trains.experts;
        adapter = std::make_unique<Adapter>(of, info, n.E, outputs, inputs, 1, parameters);
        adapter->a().master().copy_(adapter->a().master().to(at::kBFloat16));
        adapter->b().master().copy_(numbers(adapter->b().master().sizes(), seed + 100) * 0.25);
        adapter->a().refresh_working();
        adapter->b().refresh_working();
      }
      auto stack = std::make_unique<GroupedLinear>(std::move(frozen), std::move(adapter), bias);
      if (trains.weights) {
        info.hold_experts(trains.experts);
        const at::Tensor rows = weight.index_select(0, at::tensor(trains.experts, at::kLong));
        stack->train({&parameters.add(info, rows), trains.experts});
      }
      return stack;
    };
    const auto mlp = [&] {
      if (form.joint) {
        auto gate_up = map("gate_up", 2 * n.F, n.D, 1), down = map("down", n.D, n.F, 3);
        return ExpertMlp(spec, std::move(gate_up), std::move(down));
      }
      auto gate = map("gate", n.F, n.D, 1), up = map("up", n.F, n.D, 2), down = map("down", n.D, n.F, 3);
      return ExpertMlp(spec, std::move(gate), std::move(up), std::move(down));
    };
    experts = std::make_unique<RoutedExperts>(mlp(), ExpertPlacement{0, n.E, n.E}, chunk_experts, *exchange);
    scratch.reserve(experts->scratch_elements());
    scratch.poison_released(true);
  }

  /// Output, d z, d weight, and every parameter's gradient, on the CPU in fp64. Twice over the way up where it keeps.
  std::vector<at::Tensor> run(const at::Tensor& z, const at::Tensor& weight, const at::Tensor& expert,
                              const at::Tensor& d, bool keep) {
    const at::Device device = parameters.device();
    const auto there = [&](const at::Tensor& x) { return x.to(device, parameters.compute()); };
    const RoutingRecord record = experts->route(expert.to(device));
    RoutedInputs inputs{
        there(z), there(weight), at::arange(100, 100 + z.size(0), at::device(device).dtype(at::kLong)), {}};
    KeptExperts kept;
    KeptExperts* keeps = keep ? &kept : nullptr;
    std::vector<at::Tensor> found{experts->forward(record, experts->send(record, inputs, pass), pass, keeps).clone()};
    inputs.d_routed_TD = there(d);
    const ExpertGradients gradients =
        experts->backward(record, experts->send(record, inputs, pass, keeps), pass, keeps);
    found.push_back(gradients.d_z_TD);
    found.push_back(gradients.d_weight_TK);
    for (const at::Tensor& gradient : taken_gradients(parameters)) found.push_back(gradient);
    for (at::Tensor& x : found) x = x.to(at::kCPU, at::kDouble);
    return found;
  }

  ParameterSet parameters;
  std::unique_ptr<TokenExchange> exchange = make_local_exchange();
  Scratch scratch;
  DequantCounters counters;
  PassContext pass;
  std::unique_ptr<RoutedExperts> experts;
};

/// Different experts of each token, E for a token that goes nowhere; expert 1 has no row, expert 2 one at most.
at::Tensor choice(int64_t T, const Sizes& n) {
  at::Tensor scores_TE = at::rand({T, n.E});
  scores_TE.select(1, 1).fill_(-1.0);
  scores_TE.select(1, 2).fill_(-0.5);
  if (T > 3) scores_TE[3][2] = 2.0;
  at::Tensor expert_TK = std::get<1>(scores_TE.topk(n.K, 1));
  if (T > 1) expert_TK[1].fill_(n.E);
  return expert_TK;
}

void compare(const Form& form, Sizes n, const Trains& trains, int64_t T, int64_t chunk, at::ScalarType dtype,
             double bound) {
  // What is rounded across the limit gets a gradient or none: in bf16 only few numbers may come near it.
  if (dtype == at::kBFloat16) n.limit = 7.0;
  INFO(c10::toString(dtype) << ", " << T << " tokens, " << chunk << " experts a chunk, weight acts "
                            << static_cast<int>(form.acts) << ", joint " << form.joint << ", D " << n.D << ", F " << n.F
                            << ", adapters " << trains.adapted.size() << ", trained " << trains.weights);
  const auto rounded = [&](at::IntArrayRef shape, uint64_t seed) {
    return random_normal(shape, seed).to(at::kBFloat16).to(at::kDouble);
  };
  const at::Tensor z = rounded({T, n.D}, 10), weight = rounded({T, n.K}, 11).abs(), d = rounded({T, n.D}, 12),
                   expert = choice(T, n);
  Layer on_cpu(form, n, trains, at::kCPU, at::kDouble, chunk), on_gpu(form, n, trains, at::kCUDA, dtype, chunk);
  const auto expected = on_cpu.run(z, weight, expert, d, false);
  for (const bool keep : {false, true}) {
    const auto got = on_gpu.run(z, weight, expert, d, keep);
    REQUIRE(got.size() == expected.size());
    for (size_t i = 0; i < got.size(); ++i) {
      INFO("result " << i);
      if (T == 0) CHECK(got[i].count_nonzero().item<int64_t>() == 0);
      else CHECK(distance(got[i], expected[i]) < bound);
    }
  }
}

}  // namespace

TEST_CASE("routed experts on a GPU are those of the CPU", "[routed_experts]") {
  at::manual_seed(13);
  const std::vector<std::string> all{"gate", "up", "gate_up", "down"};
  const std::vector<Trains> kinds{{{}},
                                  {all},
                                  {{"gate", "gate_up"}},
                                  {{"down", "up"}},
                                  {all, {0, 1, 4}},
                                  {.adapted = all, .dropout = 0.25},
                                  {.adapted = {}, .weights = true},
                                  {.adapted = {}, .experts = {0, 1, 4}, .weights = true}};
  for (const Form& form : kForms) {
    for (const Trains& trains : kinds) {
      for (const int64_t chunk : {1, 4, 6}) {
        compare(form, {}, trains, 41, chunk, at::kBFloat16, 2e-2);
        compare(form, {}, trains, 41, chunk, at::kFloat, 1e-5);
        compare(form, {}, trains, 41, chunk, at::kDouble, 1e-12);
      }
      compare(form, {}, trains, 0, 4, at::kBFloat16, 0.0);
      compare(form, {}, trains, 1, 4, at::kBFloat16, 2e-2);
    }
    // A rank, a width and features that the grouped kernel takes filled up alone. NF4 wants multiples of 64 in a unit.
    for (const Trains& trains : {Trains{all}, Trains{.adapted = all, .dropout = 0.25}, Trains{all, {0, 1, 4}}}) {
      compare(form, {.rank = 3}, trains, 41, 4, at::kBFloat16, 2e-2);
      compare(form, {.rank = 12}, trains, 41, 6, at::kBFloat16, 2e-2);
    }
    compare(form, {.D = 64, .F = 60, .E = 4, .K = 2, .rank = 3}, {all}, 17, 3, at::kBFloat16, 2e-2);
    compare(form, {.D = 320, .F = 6, .E = 4, .K = 2, .rank = 8}, {all}, 17, 3, at::kBFloat16, 2e-2);
    compare(form, {.D = 320, .F = 6, .E = 4, .K = 2, .rank = 8}, {all}, 17, 3, at::kFloat, 1e-5);
  }
}

namespace {

std::atomic<int64_t> num_operators{0};

/// Operators of LibTorch while it lives, and an error where the host would wait for the GPU.
class Watch {
 public:
  Watch() {
    num_operators = 0;
    handle_ = at::addGlobalCallback(at::RecordFunctionCallback([](const at::RecordFunction&) {
                                      ++num_operators;
                                      return std::unique_ptr<at::ObserverContext>();
                                    }).scopes({at::RecordScope::FUNCTION}));
    c10::cuda::warning_state().set_sync_debug_mode(c10::cuda::SyncDebugMode::L_ERROR);
  }
  ~Watch() {
    c10::cuda::warning_state().set_sync_debug_mode(c10::cuda::SyncDebugMode::L_DISABLED);
    at::removeCallback(handle_);
  }

 private:
  at::CallbackHandle handle_;
};

}  // namespace

TEST_CASE("experts on a GPU make no host wait, and no more work where there are more of them", "[routed_experts]") {
  {
    const at::Tensor number = at::ones({1}, at::kCUDA);
    const Watch watch;
    CHECK_THROWS(number.item<float>());  // or the rest of this test would prove nothing
  }
  const std::vector<std::string> all{"gate", "up", "gate_up", "down"};
  for (const Form& form : kForms) {
    for (const Trains& trains :
         {Trains{{}}, Trains{all}, Trains{all, {0, 1, 4}}, Trains{.adapted = all, .dropout = 0.25}}) {
      std::vector<int64_t> counts;
      for (const int64_t experts : {6, 48}) {
        const Sizes n{.E = experts};
        Layer layer(form, n, trains, at::kCUDA, at::kBFloat16, experts);
        const auto bf16 = at::device(at::kCUDA).dtype(at::kBFloat16);
        const RoutedInputs down{
            at::randn({41, n.D}, bf16), at::rand({41, n.K}, bf16), at::arange(41, bf16.dtype(at::kLong)), {}};
        RoutedInputs up = down;
        up.d_routed_TD = at::randn({41, n.D}, bf16);
        const RoutingRecord record = layer.experts->route(choice(41, n).cuda());
        const auto pass = [&] {
          layer.experts->forward(record, layer.experts->send(record, down, layer.pass), layer.pass);
          layer.experts->backward(record, layer.experts->send(record, up, layer.pass), layer.pass);
        };
        pass();  // what is made once: handles, workspaces, gradients
        const Watch watch;
        pass();
        counts.push_back(num_operators);
      }
      CHECK(counts[0] > 20);
      CHECK(counts[1] <= counts[0]);  // less where adapted experts happen to have no row
    }
  }
}
