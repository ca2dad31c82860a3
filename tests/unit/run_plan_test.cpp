// Plans of time and money against figures by hand and from the literature.
#include "trainer/plan/run_plan.h"

#include <cmath>
#include <numeric>

#include <nlohmann/json.hpp>

#include "moe/router.h"
#include "parallel/base/error.h"
#include "tests/support/catch.h"
#include "tests/support/message_of.h"
#include "trainer/plan/layout_search.h"
#include "trainer/plan/model_shelf.h"
#include "trainer/plan/plan_json.h"
#include "trainer/plan/plan_text.h"
#include "trainer/plan/receipts.h"
#include "trainer/recipe/recipe_load.h"

using namespace moetune;

namespace {

/// A GPU on which every rate is a round number.
MachineProfile round_machine() {
  MachineProfile machine;
  machine.name = machine.device_name = "round";
  machine.memory_bytes = int64_t{1} << 40;
  machine.host_memory_bytes = int64_t{1} << 42;
  machine.measured = true;
  const auto put = [&](const std::string& name, double rate) { machine.figures[name] = {rate, rate, rate, "test"}; };
  for (const char* name : {"dense.deepseek_q_a", "dense.deepseek_q_b", "dense.deepseek_o", "dense.qwen3_q"}) {
    put(name, 1e15);
  }
  for (const char* model : {"deepseek_gate_up", "qwen3_gate_up"}) {
    for (const int rows : {64, 128, 512, 1024}) put(str("grouped.", model, ".rows", rows), 1e15);
  }
  for (const char* kind : {"latent", "grouped_query"}) {
    for (const char* way : {"forward", "backward"}) put(str("attention.", kind, ".", way), 1e15);
  }
  put("device_copy", 1e30);  // row kernels take no time
  put("nf4.dequantise", 1e12);
  put("copy_to_device", 5e10);
  put("copy_from_device", 1e30);
  put("all_gather", 1e11);
  put("optimizer.adamw", 1e30);
  put("small_blocks", 1e30);
  return machine;
}

PlanRequest request_of(const std::string& model, const std::vector<std::string>& overrides, int64_t gpus = 1) {
  const Recipe recipe = parse_recipe(
      "run: {dir: r, device: cuda}\nmodel: {path: m}\nadapter: {rank: 16, targets: [attention]}\n"
      "data: {train: t.jsonl, max_tokens: 4096}\ntrain: {epochs: 1, batch: 4, keep: all}\n",
      "r.yaml", overrides);
  return {.recipe = recipe,
          .blueprint = load_planned_model(model),
          .machine = round_machine(),
          .gpus = gpus,
          .network = {"net", 5e10, "test"},
          .disk = {1e9, 1e9, "test"},
          .data = DataAmount::of_equal(100, 4096),
          .expert_skew = 1.0,
          .host_memory_bytes = 0,
          .price = Price{"round", "", 3.0, "test"},
          .corrected = false};
}

double part_s(const StepTime& time, const std::string& name) {
  for (const TimePart& part : time.parts) {
    if (part.name == name) return part.busy_s;
  }
  return 0.0;
}

double exposed(const StepTime& time) {
  return std::accumulate(time.parts.begin(), time.parts.end(), 0.0,
                         [](double sum, const TimePart& part) { return sum + part.exposed_s; });
}

bool near(double value, double expected, double share = 1e-6) {
  return std::abs(value - expected) <= share * std::abs(expected);
}

}  // namespace

// DeepSeek-V3's 8 of 256 experts in the best 4 of 8 groups: a rank of 8 holds one group. Chosen are 4 of 8, and of each
// of their 32 experts one with 1 - C(96, 8) / C(128, 8).
TEST_CASE("a token goes to as many other ranks as chance has it", "[run_plan]") {
  const RouterSpec router = load_planned_model("deepseek-v3").router;
  double none = 1.0;
  for (int i = 0; i < 8; ++i) none *= (96.0 - i) / (128.0 - i);
  CHECK(near(expected_remote_ranks(router, 8), 7.0 * 0.5 * (1.0 - none)));
  CHECK(near(expected_remote_ranks(router, 8), 3.18, 2e-3));  // a simulation of the choice says so too
  // Two ranks of four groups: j of the chosen 4 are the other's with C(4, j) C(4, 4 - j) / 70.
  double other = 0.0;
  for (const auto& [j, ways] : {std::pair{1, 16.0}, {2, 36.0}, {3, 16.0}, {4, 1.0}}) {
    double missed = 1.0;
    for (int i = 0; i < 8; ++i) missed *= std::max(0.0, 128.0 - 32.0 * j - i) / (128.0 - i);
    other += ways / 70.0 * (1.0 - missed);
  }
  CHECK(near(expected_remote_ranks(router, 2), other));
  CHECK(expected_remote_ranks(router, 1) == 0.0);
  RouterSpec greedy = router;
  greedy.num_groups = greedy.top_groups = 1;
  double missed = 1.0;
  for (int i = 0; i < 8; ++i) missed *= (192.0 - i) / (256.0 - i);
  CHECK(near(expected_remote_ranks(greedy, 4), 3.0 * (1.0 - missed)));
}

TEST_CASE("documents are as long as training takes them", "[run_plan]") {
  PlanRequest request = request_of("deepseek-v3", {"data.max_tokens=200000"});
  request.data = DataAmount::of_equal(10, 200000);
  // More than max_position_embeddings, which training does not ask after.
  REQUIRE(request.blueprint.max_positions == 163840);
  CHECK(plan_run(request).time.expected.seconds > 0.0);
  request.blueprint.longest_document = 2048;
  CHECK(contains(message_of<UserError>([&] { plan_run(request); }),
                 "a document of 200000 tokens: deepseek_v3 attends to 2048 at the most"));
  request.data = DataAmount::of_equal(10, 2048);
  CHECK(plan_run(request).time.expected.seconds > 0.0);
}

TEST_CASE("memory is planned for the fullest step, which training tries first", "[run_plan]") {
  PlanRequest request = request_of("deepseek-v3", {"data.max_tokens=131072", "data.packing=false", "train.batch=1"});
  request.data = DataAmount({{1000, 9900}, {131072, 100}}, "t");
  CHECK(plan_run_memory(request).memory.step_rows == 131072);
  // Of documents alike, a twentieth more than they hold.
  request.data = DataAmount::of_equal(100, 1000);
  request.recipe.train.batch = 4;
  CHECK(plan_run_memory(request).memory.step_rows == 4 * 1050);
}

TEST_CASE("a step takes what its products take at the machine's rates", "[run_plan]") {
  const RunPlan plan = plan_run(request_of("deepseek-v3", {}));
  const StepTime& step = plan.time.expected;
  const double tokens = 4 * 4096, keys = 4097.0 / 2.0;
  // Forward and input gradient of 58 layers' 8 experts of 3 x 7168 x 2048.
  CHECK(near(part_s(step, "grouped products"), tokens * 2 * 2 * 58 * 8 * 3 * 7168.0 * 2048 / 1e15));
  CHECK(near(part_s(step, "attention"), tokens * 3.5 * 2 * keys * 128 * (192 + 128) * 61 / 1e15));
  // Packed numbers are made dense twice: all linear maps but embedding, head, norms and router.
  const double maps = 61 * 187105280.0 + 3 * 3 * 7168.0 * 18432 + 58 * 257 * 44040192.0;
  CHECK(near(part_s(step, "dequantise"), 2 * maps / 1e12));
  CHECK(near(exposed(step), step.seconds, 1e-9));
  CHECK(near(exposed(plan.time.high), plan.time.high.seconds, 1e-9));
  CHECK(plan.time.low.seconds < step.seconds);
  CHECK(step.seconds < plan.time.high.seconds);
  CHECK(near(plan.time.tokens_per_s, tokens / step.seconds));
  CHECK(plan.run.tokens == 100 * 4096);
  CHECK(plan.run.steps == 25);
  CHECK(near(plan.dollars(), plan.run.hours * 3.0));
  const double besides = plan.run.load_s + plan.run.evaluation_s + plan.run.save_s;
  CHECK(near(plan.run.hours, (besides + 25 * step.seconds) / 3600));
}

// A disk of 1e9 bytes a second, copies at 5e9: the last save is waited for, the others where writing outlasts the
// steps.
TEST_CASE("saving beside training costs the copy, and what writing takes longer than the steps between", "[run_plan]") {
  const std::vector<std::string> full = {"adapter=none", "model.base=bf16"};
  const auto plan_of = [&](std::vector<std::string> overrides) {
    overrides.insert(overrides.end(), full.begin(), full.end());
    PlanRequest request = request_of("qwen3-30b-a3b", overrides);
    request.host_memory_bytes = int64_t{1} << 50;
    return plan_run(request);
  };
  const RunPlan at_once = plan_of({"checkpoint.every_steps=12", "checkpoint.async=false"}),
                beside = plan_of({"checkpoint.every_steps=12"});
  const auto saved = static_cast<double>(beside.memory.copied_save_bytes);
  const double write_s = saved / 1e9, between_s = 12 * beside.time.expected.seconds;
  constexpr double kNorms = 1e-3;  // a few numbers of every layer, which the time of writing leaves out
  CHECK(near(at_once.run.save_s, 3 * write_s, kNorms));
  CHECK(near(beside.run.save_s, write_s + 2 * (saved / 5e9 + std::max(0.0, write_s - between_s)), kNorms));
  CHECK(beside.host_bytes > at_once.host_bytes);
}

TEST_CASE("saves by the clock are counted where steps do not come before it", "[run_plan]") {
  const auto plan_of = [](const std::string& every_steps, double every_minutes) {
    PlanRequest request = request_of("qwen3-30b-a3b", {"adapter=none", "model.base=bf16", "checkpoint.async=false",
                                                       "checkpoint.every_steps=" + every_steps});
    request.recipe.checkpoint.every_minutes = every_minutes;
    request.host_memory_bytes = int64_t{1} << 50;
    return plan_run(request);
  };
  const RunPlan plain = plan_of("0", 0.0);
  REQUIRE(plain.run.steps == 25);
  const double one_s = plain.run.save_s, step_min = plain.time.expected.seconds / 60;
  // After 10.5 and 21 steps, and at the end.
  CHECK(near(plan_of("0", 10.5 * step_min).run.save_s, 3 * one_s));
  CHECK(near(plan_of("0", 30 * step_min).run.save_s, one_s));
  CHECK(near(plan_of("5", 10.5 * step_min).run.save_s, 5 * one_s));
  CHECK(near(plan_of("20", 10.5 * step_min).run.save_s, (1 + 1 + 2) * one_s));
}

TEST_CASE("recomputing adds a forward pass without the experts' down map and the head", "[run_plan]") {
  const StepTime kept = plan_run(request_of("qwen3-30b-a3b", {})).time.expected,
                 again = plan_run(request_of("qwen3-30b-a3b", {"train.keep=none"})).time.expected;
  CHECK(near(part_s(again, "grouped products") / part_s(kept, "grouped products"), (6.0 + 2.0) / 6.0));
  CHECK(near(part_s(again, "attention") / part_s(kept, "attention"), 4.5 / 3.5));
  CHECK(near(part_s(again, "dequantise"), part_s(kept, "dequantise")));
}

// All packed weights leave host memory twice a step but for what the turn finds in the buffers.
TEST_CASE("weights from host memory are exposed where copying takes longer than computing", "[run_plan]") {
  const RunPlan plan = plan_run(request_of("qwen3-30b-a3b", {"offload.frozen=all"}));
  const StepTime& step = plan.time.expected;
  const double copied = static_cast<double>(plan.memory.weights.copied_bytes_per_step) / 5e10;
  CHECK(near(part_s(step, "host copies of weights"), copied));
  CHECK(step.seconds >= copied);
  const double resident = plan_run(request_of("qwen3-30b-a3b", {})).time.expected.seconds;
  CHECK(step.seconds < resident + copied);
  CHECK(near(exposed(step), step.seconds, 1e-9));
}

TEST_CASE("what ranks send takes the link that it goes through", "[run_plan]") {
  PlanRequest request = request_of("deepseek-v3", {"mesh.ep=8"}, 8);
  request.recipe.train.batch = 8;
  const double inside = part_s(plan_run(request).time.expected, "exchange");
  const double rows = 4096, copies = expected_remote_ranks(request.blueprint.router, 8);
  CHECK(near(inside, 58 * rows * copies * 4 * 7168 * 2 / 1e11));  // two ways, each out and home, bf16
  request.machine.ranks_per_host = 1;
  CHECK(near(part_s(plan_run(request).time.expected, "exchange"), inside * 1e11 / (0.86 * 5e10)));
  request.recipe.train.batch = 4;
  CHECK_THROWS_AS(plan_run([&] {
                    PlanRequest other = request;
                    other.recipe.mesh.ep = 3;
                    return other;
                  }()),
                  UserError);
}

// By the code's calls: on the way down counts, rows, weights and choices leave and sums come home; with its graph kept
// the way up sends gradients and gets two home.
TEST_CASE("each call of the exchange and of the tensor axis takes its latency", "[run_plan]") {
  const auto more = [&](const std::vector<std::string>& overrides, int64_t gpus, const std::string& part) {
    PlanRequest request = request_of("deepseek-v3", overrides, gpus);
    const double before = part_s(plan_run(request).time.expected, part);
    request.machine.latency = {{1.0, 0.0}, {1e-3, 0.0}};
    return part_s(plan_run(request).time.expected, part) - before;
  };
  CHECK(near(more({"mesh.ep=4"}, 4, "exchange"), 58 * (4 + 1 + 1 + 2) * 1e-3));
  CHECK(near(more({"mesh.ep=4", "train.keep=none"}, 4, "exchange"), 58 * (4 + 1 + 4 + 2) * 1e-3));
  // Attention and MLP or shared expert gather and sum once each; the head as well, and three sums there and back of
  // each 1,024 of 16,384 rows.
  const double head = 2 + 16 * 3 * 2;
  CHECK(near(more({"mesh.tp=2", "train.slice_tokens=16384"}, 2, "tensor axis"), (61 * 4 * 2 + head) * 1e-3));
  CHECK(near(more({"mesh.tp=2", "train.slice_tokens=4096"}, 2, "tensor axis"), (4 * 61 * 4 * 2 + head) * 1e-3));
  // Each slab of dense maps and of experts is gathered on both ways, but for what the two buffers of each kind hold
  // where the ways turn.
  CHECK(near(more({"mesh.dp=2", "mesh.shard=all"}, 2, "gathers of weights"), (2 * (61 + 58) - 2 * 2 * 2) * 1e-3));
}

// gpt-oss-20b: 64 heads of 64 features in 24 layers, of which every other one shows the last 128 tokens: 126.015625 on
// average, (128 x 129 / 2 + 3,968 x 128) / 4,096.
TEST_CASE("attention takes what each layer's mask shows", "[run_plan]") {
  const StepTime step = plan_run(request_of("gpt-oss-20b", {})).time.expected;
  const double pairs = 12 * (126.015625 + 4097.0 / 2);
  CHECK(near(part_s(step, "attention"), 4 * 4096 * 3.5 * 2 * pairs * 64 * (64 + 64) / 1e15));
}

// (P - 1) / G of the time of its groups, without what is done once a step.
TEST_CASE("a bubble is of the turns of groups, not of the update behind them", "[run_plan]") {
  const auto time_of = [&](double adamw) {
    PlanRequest request =
        request_of("qwen3-30b-a3b", {"adapter=none", "model.base=bf16", "mesh.pp=2", "mesh.pp_groups=4"}, 2);
    request.machine.memory_bytes = request.host_memory_bytes = int64_t{1} << 50;
    request.machine.figures["optimizer.adamw"] = {adamw, adamw, adamw, "test"};
    return plan_run(request).time.expected;
  };
  const auto exposed_of = [](const StepTime& time, const std::string& name) {
    for (const TimePart& part : time.parts) {
      if (part.name == name) return part.exposed_s;
    }
    return 0.0;
  };
  for (const double adamw : {1e30, 1e9}) {
    const StepTime time = time_of(adamw);
    const double update = exposed_of(time, "optimizer");
    CHECK((update > 1.0) == (adamw < 1e30));
    // Of turns and bubble together, a fifth with two stages and four groups.
    CHECK(near(exposed_of(time, "bubble"), (time.seconds - update - exposed_of(time, "gradients to the host")) / 5));
    CHECK(near(exposed(time), time.seconds, 1e-9));
  }
}

TEST_CASE("dollars follow the hours at their best and worst", "[run_plan]") {
  PlanRequest request = request_of("qwen3-30b-a3b", {"mesh.ep=2"}, 2);
  request.expert_skew = 0.0;
  const RunPlan plan = plan_run(request);
  const nlohmann::json cost = nlohmann::json::parse(plan_json(plan, {}).dump()).at("cost");
  REQUIRE(plan.run.hours_low < plan.run.hours);
  REQUIRE(plan.run.hours < plan.run.hours_high);
  constexpr double kGpus = 2.0, kPrice = 3.0, kMillions = 100 * 4096 / 1e6;
  CHECK(near(cost.at("dollars").get<double>(), plan.run.hours * kGpus * kPrice));
  CHECK(near(cost.at("dollars_low").get<double>(), plan.run.hours_low * kGpus * kPrice));
  CHECK(near(cost.at("dollars_high").get<double>(), plan.run.hours_high * kGpus * kPrice));
  CHECK(near(cost.at("dollars_per_million_tokens_low").get<double>(), plan.run.hours_low * kGpus * kPrice / kMillions));
  CHECK(
      near(cost.at("dollars_per_million_tokens_high").get<double>(), plan.run.hours_high * kGpus * kPrice / kMillions));
  const std::string text = plan_text(plan, {});
  CHECK(contains(text, " a million tokens, at $3.00 a GPU-hour"));
  CHECK(contains(text, " to $"));
  request.price = std::nullopt;
  const nlohmann::json none = nlohmann::json::parse(plan_json(plan_run(request), {}).dump()).at("cost");
  CHECK(none.at("dollars_low").is_null());
  CHECK(none.at("dollars_high").is_null());
}

TEST_CASE("parts of memory add up to the peak of their place", "[run_plan]") {
  for (const char* model : {"deepseek-v2-lite", "gpt-oss-20b", "mixtral-8x7b"}) {
    const RunPlan plan = plan_run(request_of(model, {}));
    for (const bool on_host : {false, true}) {
      int64_t sum = 0, always = 0, phase = 0;
      for (const PlannedBytes& part : plan.parts) {
        if (part.on_host != on_host) continue;
        sum += part.bytes;
        (part.phase == "run" ? always : phase) =
            part.phase == "run" ? always + part.bytes : std::max(phase, part.bytes);
      }
      const int64_t peak = on_host ? plan.host_bytes : plan.device_bytes;
      CHECK(sum >= peak);
      CHECK(peak == always + phase);
    }
    CHECK(plan.fits());
  }
}

TEST_CASE("a run that does not fit says what would", "[run_plan]") {
  PlanRequest request = request_of("qwen3-30b-a3b", {});
  request.machine.memory_bytes = int64_t{24} << 30;
  request.machine.host_memory_bytes = int64_t{64} << 30;
  const RunPlan plan = plan_run(request);
  CHECK_FALSE(plan.fits());
  const std::vector<std::string> changes = changes_to_fit(plan, {});
  REQUIRE_FALSE(changes.empty());
  CHECK(changes.front() == "train.keep=none");
  request.recipe.train.keep = {KeepLayers::Kind::kNone};
  CHECK(plan_run(request).fits());
}

// 10^9 bytes, as --host-memory counts them.
TEST_CASE("the host memory that a plan asks for is what the option takes", "[run_plan]") {
  PlanRequest request = request_of("qwen3-30b-a3b", {"offload.frozen=all"});
  request.machine.host_memory_bytes = int64_t{1} << 30;
  const RunPlan plan = plan_run(request);
  REQUIRE(plan.host_bytes > plan.host_limit_bytes);
  const std::string words = "--host-memory ", last = changes_to_fit(plan, {}).back();
  REQUIRE(last.starts_with(words));
  const double gb = std::stod(last.substr(words.size()));
  CHECK(last == words + std::to_string(static_cast<int64_t>(gb)));
  CHECK(gb * 1e9 >= static_cast<double>(plan.host_bytes));
  CHECK((gb - 1) * 1e9 < static_cast<double>(plan.host_bytes));
}

TEST_CASE("a search takes the fastest layout that fits", "[run_plan]") {
  PlanRequest request = request_of("deepseek-v3", {"train.keep=auto"}, 8);
  request.machine.memory_bytes = int64_t{80} << 30;
  const RunPlan best = best_layout(request, {.own_batch = true});
  CHECK(best.fits());
  for (Recipe recipe : layouts(request.recipe, request.blueprint, 8)) {
    recipe.train.batch =
        best.request.recipe.train.batch / (best.mesh.dp * best.mesh.ep) * *recipe.mesh.dp * recipe.mesh.ep;
    PlanRequest other = request;
    other.recipe = recipe;
    const RunPlan plan = plan_run(other);
    if (plan.fits()) CHECK(plan.time.tokens_per_s <= best.time.tokens_per_s * (1 + 1e-9));
  }
}

TEST_CASE("documents pack as training packs them", "[run_plan]") {
  const PackedData equal = DataAmount::of_equal(10, 1000).packed(4096, true);
  CHECK(equal.sequences == 3);
  CHECK(near(equal.keys.of({}), 1001.0 / 2));
  CHECK(DataAmount::of_equal(10, 1000).packed(4096, false).sequences == 10);
  const PackedData cut = DataAmount::of_equal(7, 9000).packed(4096, true);
  CHECK(cut.sequences == 7);
  CHECK(cut.tokens_a_sequence == 4096.0);
  // 6 + 2 and 5 + 3: best fit leaves nothing free.
  const PackedData mixed = DataAmount({{2, 1}, {3, 1}, {5, 1}, {6, 1}}, "t").packed(8, true);
  CHECK(mixed.sequences * 8 >= 16);
  CHECK(near(mixed.keys.of({}), (2 * 3 + 3 * 4 + 5 * 6 + 6 * 7) / 2.0 / 16));
}

TEST_CASE("machines are named by number and kind", "[run_plan]") {
  CHECK(parse_machine_choice("16xH100").gpus == 16);
  CHECK(parse_machine_choice("16xH100").name == "h100");
  for (const char* wrong : {"H100", "xH100", "16x", "0xH100", "-1xH100", "99999999xH100", ""}) {
    CHECK_THROWS_AS(parse_machine_choice(wrong), UserError);
  }
  // What was not measured is its peak times the share that the measured one reaches.
  const MachineProfile h200 = shipped_machine("h200"), a100 = shipped_machine("A100-80GB");
  CHECK(near(a100.figure("dense.deepseek_o").value / h200.figure("dense.deepseek_o").value, 312.0 / 989.4, 1e-3));
  CHECK(near(a100.figure("device_copy").value / h200.figure("device_copy").value, 2.039 / 4.8, 1e-3));
  CHECK_THROWS_AS(shipped_machine("h9000"), UserError);
}

TEST_CASE("receipts correct what computing takes", "[run_plan]") {
  PlanRequest request = request_of("qwen3-30b-a3b", {});
  const double before = plan_run(request).time.expected.seconds;
  const Receipt slow{.path = "a",
                     .device = "round",
                     .predicted_step_s = 1,
                     .measured_step_s = 1.2,
                     .predicted_computing_s = 1,
                     .measured_computing_s = 1.2,
                     .predicted_bytes = 1,
                     .measured_bytes = 1};
  Receipt other = slow;
  other.device = "another";
  other.measured_computing_s = 9;
  Receipts({slow, slow, other}).correct(request);
  CHECK(request.corrected);
  CHECK(near(request.machine.computing.value, 1.2));
  const RunPlan plan = plan_run(request);
  CHECK(plan.time.calibrated);
  CHECK(near(plan.time.expected.seconds, 1.2 * before, 1e-3));
}
