#include "trainer/run/reporter.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <iostream>
#include <map>

#include "moe/inventory.h"
#include "parallel/base/clock.h"
#include "parallel/base/error.h"
#include "parallel/base/log.h"
#include "parallel/base/units.h"
#include "parallel/device/device_memory.h"

namespace moetune {

using nlohmann::ordered_json;

namespace {

/// Whether a person watches standard output; `size` receives the terminal's where it is known. mpirun gives ranks a
/// terminal of its own, of no size, whatever its own output is: then the output of the process that started this one
/// decides.
bool on_terminal(winsize& size) {
  if (::isatty(STDOUT_FILENO) == 0) return false;
  ::ioctl(STDOUT_FILENO, TIOCGWINSZ, &size);
  if (size.ws_col > 0) return true;
  const std::filesystem::path parent_output = str("/proc/", ::getppid(), "/fd/1");
  std::error_code failure;
  return std::filesystem::read_symlink(parent_output, failure).string().rfind("/dev/", 0) == 0 &&
         std::filesystem::is_character_file(parent_output, failure) &&
         std::filesystem::read_symlink(parent_output, failure) != "/dev/null";
}

}  // namespace

Reporter::Reporter(const Recipe& recipe, const Assembly& run, const std::filesystem::path& folder,
                   std::string frozen_digest, int64_t num_steps, std::optional<int64_t> resumed, bool speaks)
    : recipe_(recipe),
      run_(run),
      folder_(folder),
      frozen_digest_(std::move(frozen_digest)),
      num_steps_(num_steps),
      resumed_(resumed),
      speaks_(speaks) {}

double Reporter::elapsed_s() const { return seconds_since(start_); }

void Reporter::plan_is(const MemoryPlan& plan) {
  planned_bytes_ = run_.device.is_cuda() ? plan.device_bytes() : plan.host_bytes();
  copied_bytes_ = plan.weights.copied_bytes_per_step + plan.trained.copied_bytes_per_step;
  gathered_bytes_ = plan.weights.gathered_bytes_per_step + plan.trained.gathered_bytes_per_step;
}

void Reporter::show_plan(const MemoryPlan& plan, const DataSummary& data) {
  if (!speaks_) return;
  plan_is(plan);
  host_peak_bytes_ = peak_memory_bytes(at::kCPU);
  for (const auto& [group, count] : plan.trained_by_group) trained_ += count;
  log_info(banner(recipe_, run_, plan, data));
}

void Reporter::start(const DataSummary& data, const std::vector<RecipeChange>& changes) {
  if (!speaks_) return;
  // A run that is asked to resume before its first checkpoint starts its log anew.
  log_ = std::make_unique<LogFile>((folder_ / "log.jsonl").string(), resumed_ ? resumed_
                                                                     : std::filesystem::exists(folder_ / "log.jsonl")
                                                                         ? std::optional<int64_t>(-1)
                                                                         : std::nullopt);
  board_ = std::make_unique<TensorBoard>((folder_ / "tensorboard").string(), resumed_);
  winsize size{};
  const bool terminal = on_terminal(size);
  ProgressOptions options;
  options.terminal = terminal;
  options.columns = size.ws_col;
  progress_ = std::make_unique<Progress>(std::cout, options);
  ordered_json line{{"kind", "start"},
                    {"step", resumed_.value_or(0)},
                    {"steps", num_steps_},
                    {"model", run_.blueprint.model_type},
                    {"parameters", count_parameters(run_.blueprint)},
                    {"trained_parameters", trained_},
                    {"mesh", to_string(run_.mesh->shape())},
                    {"ranks", run_.mesh->shape().num_ranks()},
                    {"device", run_.device.str()},
                    {"frozen_digest", frozen_digest_},
                    {"planned_bytes", planned_bytes_},
                    {"planned_weights_copied_bytes", copied_bytes_},
                    {"planned_weights_gathered_bytes", gathered_bytes_},
                    {"host_peak_bytes", host_peak_bytes_},
                    {"load_s", run_.load.seconds},
                    {"checkpoint_read_bytes", run_.load.read_bytes},
                    {"cache_read_bytes", run_.load.cached_bytes},
                    {"cache_written_bytes", run_.load.written_bytes},
                    {"documents", data.documents},
                    {"tokens", data.tokens}};
  for (const RecipeChange& change : changes) {
    log_info(str("resumed with another value of ", change.key, ": ", change.then, " before, ", change.now, " now"));
    line["changed"][change.key] = {change.then, change.now};
  }
  log_->append(line);
}

std::vector<double> Reporter::max_over_mean(const at::Tensor& load_LE) {
  if (!load_LE.defined()) return {};
  at::Tensor load = load_LE.to(at::kCPU, at::kDouble);
  at::Tensor ratio = (std::get<0>(load.max(1)) / load.mean(1).clamp_min(1e-9)).contiguous();
  return {ratio.data_ptr<double>(), ratio.data_ptr<double>() + ratio.numel()};
}

void Reporter::step(const StepReport& report) {
  if (!speaks_) return;
  last_loss_ = report.loss;
  peak_bytes_ = std::max(peak_bytes_, report.ranks.memory_bytes);
  const std::vector<double> imbalance = max_over_mean(report.load_LE);
  StepFigures figures{report.step,   num_steps_,
                      report.loss,   report.grad_norm,
                      report.lr,     static_cast<double>(report.tokens) / report.step_s,
                      std::nullopt,  report.ranks.memory_bytes,
                      report.step_s, elapsed_s()};
  ordered_json line{{"kind", "step"},
                    {"step", report.step},
                    {"loss", report.loss},
                    {"tokens", report.tokens},
                    {"target_tokens", report.target_tokens},
                    {"grad_norm", report.grad_norm},
                    {"lr", report.lr},
                    {"step_s", report.step_s},
                    {"tokens_per_s", figures.tokens_per_s},
                    {"memory_bytes", report.ranks.memory_bytes},
                    {"weights_copied_bytes", report.ranks.weights_copied_bytes},
                    {"weights_gathered_bytes", report.ranks.weights_gathered_bytes},
                    {"weights_wait_s", report.ranks.weights_wait_s},
                    {"exchange_sent_bytes", report.ranks.exchange_sent_bytes},
                    {"exchange_s", report.ranks.exchange_s},
                    {"tensor_axis_sent_bytes", report.ranks.tensor_axis_sent_bytes},
                    {"tensor_axis_s", report.ranks.tensor_axis_s},
                    {"stage_sent_bytes", report.ranks.stage_sent_bytes},
                    {"stage_wait_s", report.ranks.stage_wait_s},
                    {"optimizer_wait_s", report.ranks.optimizer_wait_s}};
  std::vector<std::pair<std::string, float>> scalars{{"train/loss", report.loss},
                                                     {"train/grad_norm", report.grad_norm},
                                                     {"train/lr", report.lr},
                                                     {"speed/tokens_per_s", figures.tokens_per_s},
                                                     {"memory/peak_bytes", report.ranks.memory_bytes}};
  if (!imbalance.empty()) {
    figures.expert_max_over_mean = *std::max_element(imbalance.begin(), imbalance.end());
    line["expert_max_over_mean"] = *figures.expert_max_over_mean;
    line["expert_max_over_mean_of_layers"] = imbalance;
    for (size_t layer = 0; layer < imbalance.size(); ++layer) {
      scalars.emplace_back(str("experts/max_over_mean_", layer), imbalance[layer]);
    }
  }
  if (report.replica_check_s) line["replica_check_s"] = *report.replica_check_s;
  if (report.mtp_loss) {
    line["mtp_loss"] = *report.mtp_loss;
    scalars.emplace_back("train/mtp_loss", *report.mtp_loss);
  }
  if (report.balance_loss) {
    line["balance_loss"] = *report.balance_loss;
    scalars.emplace_back("train/balance_loss", *report.balance_loss);
  }
  log_->append(line);
  board_->write(report.step, scalars);
  progress_->step(figures);
}

void Reporter::evaluation(int64_t step, double loss, int64_t target_tokens, bool best) {
  if (!speaks_) return;
  progress_->make_room();
  std::cout << std::flush;
  log_info(str("step ", step, ": held-out loss ", loss, " over ", target_tokens, " target tokens",
               best ? ", the best so far" : ""));
  ordered_json line{{"kind", "eval"}, {"step", step}, {"loss", loss}, {"target_tokens", target_tokens}};
  if (recipe_.checkpoint.keep_best > 0) line["best"] = best;
  log_->append(line);
  board_->write(step, {{"eval/loss", static_cast<float>(loss)}});
}

void Reporter::saved(const SaveReport& report) {
  if (!speaks_) return;
  const auto at = [this](std::chrono::steady_clock::time_point time) {
    return std::chrono::duration<double>(time - start_).count();
  };
  log_->append({{"kind", "save"},
                {"step", report.step},
                {"save_s", report.exposed_s},
                {"replica_check_s", report.check_s},
                {"begun_at_s", at(report.begun)},
                {"whole_at_s", at(report.whole)},
                {"whole_step", report.whole_step},
                {"frozen_digest", frozen_digest_}});
  if (report.whole_step == report.step) return;
  progress_->make_room();
  std::cout << std::flush;
  const auto seconds = [](double value) { return str(std::round(100.0 * value) / 100.0, " s"); };
  log_info(str("checkpoint of step ", report.step, ": whole after ", seconds(at(report.whole) - at(report.begun)),
               ", of which training stood still for ", seconds(report.exposed_s)));
}

void Reporter::end(int64_t step, int stop_signal) {
  if (!speaks_) return;
  progress_->finish();
  std::cout << std::flush;
  log_->append({{"kind", "end"},
                {"step", step},
                {"loss", last_loss_},
                {"elapsed_s", elapsed_s()},
                {"stopped_by_signal", stop_signal},
                {"frozen_digest", frozen_digest_},
                {"planned_bytes", planned_bytes_},
                {"peak_bytes", peak_bytes_}});
  log_info(str("memory of the fullest rank: planned ", bytes_text(planned_bytes_), ", peak ", bytes_text(peak_bytes_),
               run_.device.is_cuda() ? "" : " (whole process)"));
  log_info(stop_signal == 0
               ? str("done: ", step, " steps in ", duration_text(elapsed_s()))
               : str("stopped by signal ", stop_signal, " after step ", step, ", saved; --resume goes on"));
}

}  // namespace moetune
