#include "trainer/run/run_receipt.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <map>
#include <numeric>

#include <nlohmann/json.hpp>

#include "parallel/base/clock.h"
#include "parallel/base/error.h"
#include "parallel/base/files.h"
#include "parallel/base/host_name.h"
#include "parallel/base/median.h"
#include "parallel/base/units.h"
#include "parallel/device/device_memory.h"
#include "parallel/device/device_name.h"
#include "trainer/plan/plan_json.h"
#include "trainer/plan/plan_text.h"
#include "trainer/plan/receipts.h"

namespace moetune {
namespace {

using Json = nlohmann::ordered_json;

/// Steps in which memory and kernels settle.
constexpr size_t kFirstSteps = 3;

/// What the planner's parts of time are to a run, which can tell waiting from computing.
enum Share { kComputing, kExchange, kTensorAxis, kWeights, kStages, kOptimizer, kNumShares };
constexpr std::array<const char*, kNumShares> kShareNames{"computing", "exchange",        "tensor axis",
                                                          "weights",   "stages (bubble)", "optimizer"};

Share share_of(const std::string& part) {
  static const std::map<std::string, Share> shares{{"exchange", kExchange},
                                                   {"tensor axis", kTensorAxis},
                                                   {"gathers of weights", kWeights},
                                                   {"host copies of weights", kWeights},
                                                   {"between stages", kStages},
                                                   {"bubble", kStages},
                                                   {"gradient reduction", kOptimizer},
                                                   {"optimizer", kOptimizer}};
  const auto found = shares.find(part);
  return found == shares.end() ? kComputing : found->second;
}

std::array<double, kNumShares> shares_of(const StepTime& time) {
  std::array<double, kNumShares> seconds{};
  for (const TimePart& part : time.parts) seconds[share_of(part.name)] += part.exposed_s;
  return seconds;
}

MachineProfile machine_of(const Recipe& recipe, const Assembly& run) {
  MachineProfile machine;
  if (recipe.run.machine) machine = measured_machine(*recipe.run.machine);
  else if (!run.device.is_cuda()) machine = shipped_cpu(at::get_num_threads());
  else {
    std::optional<MachineProfile> shipped = shipped_machine_of(device_name(run.device));
    if (!shipped) throw UserError(str("no figures of ", device_name(run.device), " come with the program"));
    machine = *std::move(shipped);
  }
  if (machine.on_gpu() != run.device.is_cuda()) {
    throw UserError(str(recipe.origin("run.machine"), ": run.machine: ", *recipe.run.machine,
                        " is of another kind of device than the run's"));
  }
  machine.device_name = device_name(run.device);
  return machine;
}

DataAmount amount_of(const Documents& documents) {
  std::map<int64_t, int64_t> counts;
  for (int64_t i = 0; i < documents.size(); ++i) ++counts[documents.length(i)];
  std::vector<LengthCount> lengths;
  for (const auto& [length, count] : counts) lengths.push_back({length, count});
  return DataAmount(std::move(lengths), "the run's data");
}

std::string line(const char* format, const std::string& name, const std::string& planned, const std::string& measured,
                 double off) {
  std::array<char, 200> text;
  std::snprintf(text.data(), text.size(), format, name.c_str(), planned.c_str(), measured.c_str(), 100.0 * off);
  return text.data();
}

}  // namespace

RunReceipt::RunReceipt(const Recipe& recipe, const Assembly& run, const Documents& documents, std::string version)
    : recipe_(recipe), run_(run), version_(std::move(version)) {
  try {
    PlanRequest request{.recipe = recipe,
                        .blueprint = run.blueprint,
                        .machine = machine_of(recipe, run),
                        .gpus = run.mesh->shape().num_ranks(),
                        .network = {},
                        .disk = shipped_disk("nvme"),
                        .data = amount_of(documents),
                        .expert_skew = 0.0,
                        .host_memory_bytes = host_memory_bytes(),
                        .price = std::nullopt};
    request.network = shipped_network("ndr", request.machine.ranks_per_host);
    plan_ = plan_run(request, run.stage_plans);
  } catch (const UserError& error) {
    // A run does without a prediction; a file that its recipe names is another matter.
    if (recipe.run.machine) throw;
    note_ = error.what();
  }
}

std::string RunReceipt::prediction_text() const {
  if (!plan_) return str("no time is predicted: ", note_);
  const PlannedTime& time = plan_->time;
  return str(seconds_text(time.expected.seconds), " a step (", seconds_text(time.low.seconds), " to ",
             seconds_text(time.high.seconds), "), ", hours_text(plan_->run.hours), " in all",
             time.calibrated ? "" : "; rates not measured here (moetune bench, run.machine)");
}

void RunReceipt::add(const StepReport& report) {
  // The most of any rank of each part would be more together than any rank waited: one waits where another is slow.
  const RankFigures& one = report.least_waiting;
  steps_.push_back(
      {report.step_s, one.exchange_s, one.tensor_axis_s, one.weights_wait_s, one.stage_wait_s, one.optimizer_wait_s});
}

std::vector<int64_t> RunReceipt::peaks() const {
  Communicator& world = run_.mesh->world();
  at::Tensor peaks = at::zeros({world.size()}, at::TensorOptions(at::kLong).device(run_.device));
  peaks.narrow(0, world.rank(), 1).fill_(peak_memory_bytes(run_.device));
  world.all_reduce_max(peaks);
  peaks = peaks.cpu();
  return {peaks.const_data_ptr<int64_t>(), peaks.const_data_ptr<int64_t>() + peaks.numel()};
}

std::vector<RunReceipt::Times> RunReceipt::counted() const {
  const size_t first = steps_.size() > 2 * kFirstSteps ? kFirstSteps : 0;
  return {steps_.begin() + static_cast<std::ptrdiff_t>(first), steps_.end()};
}

std::string RunReceipt::write(const std::filesystem::path& file, const std::vector<int64_t>& peaks) const {
  const std::vector<Times> steps = counted();
  if (!plan_ || steps.empty()) return "";
  const auto of = [&](const auto& value) {
    std::vector<double> values;
    for (const Times& step : steps) values.push_back(value(step));
    return values;
  };
  const std::vector<double> seconds = of([](const Times& t) { return t.step; });
  const std::array<double, kNumShares> predicted = shares_of(plan_->time.expected);
  std::array<double, kNumShares> measured{0.0,
                                          median(of([](const Times& t) { return t.exchange; })),
                                          median(of([](const Times& t) { return t.tensor_axis; })),
                                          median(of([](const Times& t) { return t.weights; })),
                                          median(of([](const Times& t) { return t.stages; })),
                                          median(of([](const Times& t) { return t.optimizer; }))};
  measured[kComputing] = median(seconds) - std::accumulate(measured.begin(), measured.end(), 0.0);
  const bool gpu = run_.device.is_cuda();
  // On a CPU the peak is that of the whole process.
  const int64_t planned_bytes = gpu ? fullest(run_.stage_plans).device_bytes() : plan_->host_bytes;
  const int64_t peak = *std::max_element(peaks.begin(), peaks.end());

  Json json = plan_json(*plan_, {});
  Json ranks = Json::array(), parts = Json::array();
  for (size_t rank = 0; rank < peaks.size(); ++rank) {
    const MemoryPlan& plan = run_.stage_plans[coordinates_of(run_.mesh->shape(), static_cast<int64_t>(rank)).pp];
    ranks.push_back({{"rank", rank},
                     {"predicted_bytes", gpu ? plan.device_bytes() : planned_bytes},
                     {"measured_bytes", peaks[rank]}});
  }
  for (int share = 0; share < kNumShares; ++share) {
    parts.push_back({{"name", kShareNames[share]},
                     {"predicted_s", predicted[share]},
                     {"exposed_s", predicted[share]},
                     {"measured_s", measured[share]}});
  }
  const StepTime &low = plan_->time.low, &expected = plan_->time.expected, &high = plan_->time.high;
  Json memory_parts = Json::array();
  for (const MemoryPart& part : fullest(run_.stage_plans).parts) {
    memory_parts.push_back({{"name", part.name},
                            {"bytes", part.bytes},
                            {"where", part.on_host ? "host" : "device"},
                            {"phase", part.span == MemoryPart::Span::kRun ? "run" : "step"}});
  }
  const Json receipt = {
      {"format", kReceiptFormat},
      {"date", utc_now()},
      {"host", host_name()},
      {"version", version_},
      {"machine",
       {{"device", plan_->request.machine.device_name},
        {"ranks", run_.mesh->shape().num_ranks()},
        {"figures_of", plan_->request.machine.name}}},
      {"model", json.at("model")},
      {"adapter", json.at("adapter")},
      {"mesh", json.at("mesh")},
      {"run", {{"steps", steps_.size()}, {"counted_steps", steps.size()}, {"tokens", plan_->run.tokens}}},
      {"memory",
       {{"where", gpu ? "device" : "host"},
        {"predicted_bytes", planned_bytes},
        {"measured_bytes", peak},
        {"parts", memory_parts},
        {"ranks", ranks}}},
      {"time",
       {{"calibrated", plan_->time.calibrated},
        {"computing", plan_->request.machine.computing.value},
        {"predicted_step_s", {{"low", low.seconds}, {"expected", expected.seconds}, {"high", high.seconds}}},
        {"measured_step_s",
         {{"median", median(seconds)},
          {"min", *std::min_element(seconds.begin(), seconds.end())},
          {"max", *std::max_element(seconds.begin(), seconds.end())}}},
        {"parts", parts}}}};
  write_text_atomically(file.string(), receipt.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");

  std::string text = "predicted beside measured, median of " + std::to_string(steps.size()) + " steps:\n";
  const char* format = "  %-24s %12s %12s %+7.1f %%\n";
  for (int share = 0; share < kNumShares; ++share) {
    if (predicted[share] < 1e-6 && measured[share] < 1e-6) continue;
    const double base = std::max(measured[share], 1e-9);
    // Of what is next to nothing a percentage says nothing.
    if (measured[share] < 0.01 * median(seconds) && predicted[share] < 0.01 * median(seconds)) continue;
    text += line(format, kShareNames[share], seconds_text(predicted[share]), seconds_text(measured[share]),
                 predicted[share] / base - 1.0);
  }
  text += line(format, "step", seconds_text(expected.seconds), seconds_text(median(seconds)),
               expected.seconds / median(seconds) - 1.0);
  text += line(format, str("memory of the fullest rank"), bytes_text(planned_bytes), bytes_text(peak),
               static_cast<double>(planned_bytes) / static_cast<double>(std::max<int64_t>(1, peak)) - 1.0);
  text.pop_back();
  return text;
}

}  // namespace moetune
