#include "trainer/run/loop.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <csignal>
#include <filesystem>

#include "lora/adapters/peft_files.h"
#include "moe/families/family.h"
#include "parallel/base/clock.h"
#include "parallel/base/error.h"
#include "parallel/base/files.h"
#include "parallel/base/log.h"
#include "parallel/base/sha256.h"
#include "parallel/device/trace_range.h"
#include "trainer/assemble.h"
#include "trainer/data/dataset.h"
#include "trainer/plan/pipeline_plan.h"
#include "trainer/recipe/recipe_dump.h"
#include "trainer/run/expert_choice.h"
#include "trainer/run/reporter.h"
#include "trainer/run/run_folder.h"
#include "trainer/run/run_receipt.h"
#include "trainer/run/signals.h"
#include "trainer/run/step_trace.h"
#include "trainer/run/stepper.h"
#include "trainer/run/warm_up.h"
#include "trainer/state/checkpoint.h"
#include "trainer/state/frozen_digest.h"
#include "trainer/state/manifest.h"
#include "trainer/state/replica_check.h"

namespace moetune {
namespace {

namespace fs = std::filesystem;

/// What the weights of the data must draw in an epoch: a step goes through epochs until it has its sequences.
constexpr double kFewestDocuments = 0.01;

/// Everything of one run, made in the order in which it is needed.
class Run {
 public:
  Run(const Recipe& recipe, const TrainOptions& options, Launch& launch)
      : recipe_(recipe),
        options_(options),
        launch_(launch),
        folder_(recipe.run.dir),
        own_folder_(launch.rank() == 0 ? std::make_unique<RunFolder>(recipe, options.resume, options.profile > 0)
                                       : nullptr),
        token_(launch.broadcast_string(own_folder_ ? own_folder_->token() : "")),
        resumes_(options.resume && !list_checkpoints(folder_ / "checkpoints").empty()),
        blueprint_(load_blueprint(recipe.model.path)),
        tools_(PreparationTools::from_environment()),
        train_documents_(load_train_documents()),
        batches_(train_documents_, batch_options(recipe)),
        num_steps_(count_steps()),
        peak_(fullest_step()),
        run_(assemble(recipe, launch, {peak_.tokens, peak_.group_tokens})),
        experts_(choose_experts()),
        stepper_(recipe, run_, &launch.progress()),
        saves_beside_(launch.max_over_world(run_.plan.saves_beside ? 0 : 1) == 0),
        checkpoints_(folder_ / "checkpoints", *run_.mesh, token_,
                     saves_beside_ ? std::make_unique<OrderedWorker>(/*num_threads=*/1) : nullptr) {
    if (eval_documents_) {
      eval_batches_.emplace(*eval_documents_,
                            BatchOptions{0, recipe.train.batch, recipe.data.max_tokens, recipe.data.packing, false, 1});
      if (recipe.checkpoint.keep_best > 0) eval_digest_ = digest_of_evaluation();
    }
  }

  int go() {
    const std::vector<HeldDigest> frozen = frozen_digests(*run_.model, *run_.mesh);
    TrainingState state{*run_.model,
                        stepper_.optimizer(),
                        dump_resolved(recipe_),
                        frozen_digest(frozen, *run_.mesh),
                        data_digest(train_documents_),
                        recipe_.run.seed,
                        recipe_.train.batch,
                        read_text_file((fs::path(recipe_.model.path) / "config.json").string()),
                        {}};
    if (run_.cache && launch_.rank() == 0) compare_with_first_digest(*run_.cache, recipe_, state.frozen_digest);
    const std::optional<int64_t> resumed = resumes_ ? checkpoints_.load_latest(state) : std::nullopt;
    if (resumed && own_folder_) {
      own_folder_->require_fits(folder_ / "checkpoints" / checkpoint_name(*resumed));
      require_whole_last_step(*resumed);
    }
    state.best = best_of(state.best);
    require_equal_replicas(frozen, "at the start", "nothing was trained");
    if (options_.resume && !resumed) log_info(str(folder_.string(), ": no checkpoint yet, starting from step 0"));
    reporter_ = std::make_unique<Reporter>(recipe_, run_, folder_, state.frozen_digest, num_steps_, resumed,
                                           launch_.rank() == 0);
    const DataSummary data = summary();
    reporter_->show_plan(fullest(run_.stage_plans), data);
    std::optional<RunReceipt> receipt;
    const auto predict = [&] {
      receipt.emplace(recipe_, run_, train_documents_, options_.version);
      if (own_folder_) log_info(str("predicted: ", receipt->prediction_text()));
    };
    predict();
    warm_up();
    probe(peak_.step);
    if (stepper_.keeps_less()) {
      reporter_->plan_is(fullest(run_.stage_plans));
      predict();
    }
    if (saves_beside_) checkpoints_.reserve(state);
    // Only now is it known that a resumed run fits what was saved, and memory: a mistake writes over nothing.
    if (own_folder_) {
      own_folder_->require_held();
      own_folder_->write_recipe(state.recipe_text);
      if (options_.profile > 0) own_folder_->make_room_for_traces();
      // The log first: experts of no run would be in the way of the next start.
      reporter_->start(data, own_folder_->changes());
      if (!experts_.empty()) write_text_atomically((folder_ / "experts.json").string(), experts_);
    }
    if (!resumed && recipe_.eval.at_start) evaluate(0, state.best);

    SignalWatch signals;
    Decision last;
    int64_t step = resumed.value_or(0);
    StepTrace trace(folder_ / "profile", traced_steps(options_.profile, step, num_steps_), launch_);
    int64_t saved_step = resumed.value_or(-1);
    for (; step < num_steps_ && last.stop_signal == 0; ++step) {
      trace.before(step);
      StepReport report = train_step(step);
      const int64_t done = step + 1;
      last = decide(done, signals, report.ranks.optimizer_wait_s);
      if (trace.is_last(step, last.stop_signal != 0)) write(trace, step);
      report.ranks = last.ranks;
      report.least_waiting = last.least_waiting;
      if (own_folder_) own_folder_->require_held();
      reporter_->step(report);
      receipt->add(report);
      if (saving_ && last.parts_done) go_on_saving(done);
      const bool ends = done == num_steps_ || last.stop_signal != 0;
      bool best = false;
      if (eval_batches_ &&
          ((recipe_.eval.every_steps > 0 && done % recipe_.eval.every_steps == 0) || done == num_steps_)) {
        best = evaluate(done, state.best);
      }
      if (ends || best || last.save ||
          (recipe_.checkpoint.every_steps > 0 && done % recipe_.checkpoint.every_steps == 0)) {
        save(done, state, ends);
        saved_step = done;
      }
    }
    if (saved_step < 0) save(step, state, /*ends=*/true);
    require_sound(state, "at the end", "what was saved was sound when it was saved");
    const std::vector<int64_t> peaks = receipt->peaks();
    const std::string comparison = own_folder_ ? receipt->write(folder_ / "receipt.json", peaks) : "";
    reporter_->end(step, last.stop_signal);
    if (!comparison.empty()) log_info(comparison);
    return last.stop_signal == 0 ? 0 : 128 + last.stop_signal;
  }

 private:
  /// What all ranks do after a step, whoever was asked to.
  struct Decision {
    bool save = false;
    int stop_signal = 0;
    bool parts_done = true;            ///< no rank is writing its part of a checkpoint
    RankFigures ranks, least_waiting;  ///< as in StepReport
  };

  /// A save that was begun.
  struct Saving {
    int64_t step;
    std::chrono::steady_clock::time_point begun;
    double exposed_s, check_s;  ///< as in SaveReport
  };

  /// UserError where more epochs than before are asked of a run that stands behind a last step of what was left: that
  /// step would have held more, and goes on past it.
  void require_whole_last_step(int64_t resumed) {
    for (const RecipeChange& change : own_folder_->changes()) {
      const bool was_number = change.then.find_first_not_of("0123456789") == std::string::npos && !change.then.empty();
      if (change.key != "train.epochs" || !was_number) continue;
      const int64_t then = std::stoll(change.then);
      if (recipe_.train.epochs && *recipe_.train.epochs < then) continue;
      const int64_t missing = recipe_.train.batch * batches_.steps_of_epochs(then) - batches_.sequences_of_epochs(then);
      if (missing == 0 || resumed < batches_.steps_of_epochs(then)) continue;
      throw UserError(str("--resume: ", recipe_.origin("train.epochs"), ": train.epochs: ", change.then, " then, ",
                          change.now, " now: the run has ended with a step of ", recipe_.train.batch - missing, " of ",
                          recipe_.train.batch,
                          " sequences, which would be whole now: what is new in it would never be ",
                          "trained. Take the value back; or start a new run in another folder, which may go on from ",
                          "this one's exported adapter (adapter.from)"));
    }
  }

  /// What is held out goes to eval_documents_: that of data.eval, or what data.eval_split takes off.
  Documents load_train_documents() {
    if (recipe_.adapter && recipe_.adapter->from && !resumes_) require_peft_adapter(*recipe_.adapter->from);
    Documents documents = load_documents(recipe_, "data.train", recipe_.data.train, blueprint_, launch_, tools_);
    if (recipe_.data.eval) {
      eval_documents_.emplace(load_documents(recipe_, "data.eval", *recipe_.data.eval, blueprint_, launch_, tools_));
    }
    if (recipe_.data.eval_split > 0.0) {
      eval_documents_.emplace(documents.split_off(recipe_.data.eval_split, static_cast<uint64_t>(recipe_.run.seed)));
    }
    return documents;
  }

  int64_t count_steps() {
    const int64_t sequences = batches_.sequences_of_epoch(0), batch = recipe_.train.batch;
    const bool repeats = recipe_.train.steps || *recipe_.train.epochs > 1;
    if (repeats && sequences < batch && launch_.rank() == 0) {
      log_warn(str(recipe_.origin("train.batch"), ": train.batch: ", batch,
                   " sequences a step, but the data packs into ", sequences,
                   sequences == 1 ? " sequence" : " sequences", ": a step takes documents several times; ",
                   "lower it to ", std::max<int64_t>(1, sequences), " or less, or add data"));
    }
    if (recipe_.train.steps) {
      double documents = 0.0;
      for (const Share& share : train_documents_.shares()) {
        documents += share.weight * static_cast<double>(share.end - share.begin);
      }
      if (documents < kFewestDocuments) {
        throw UserError(str(recipe_.origin("data.train"), ": data.train: the weights draw ", documents,
                            " documents an epoch; raise them until that is at least ", kFewestDocuments));
      }
      return *recipe_.train.steps;
    }
    const int64_t steps = batches_.steps_of_epochs(*recipe_.train.epochs);
    if (steps == 0) {
      throw UserError(str(recipe_.origin("data.train"), ": data.train: the weights draw no document in ",
                          *recipe_.train.epochs, " epochs; raise them or train.epochs"));
    }
    return steps;
  }

  Batches::Peak fullest_step() {
    const MeshShape shape = mesh_shape(recipe_, blueprint_, launch_.world_size());
    return batches_.fullest_step(num_steps_, shape.dp * shape.ep, plan_pipeline(blueprint_, recipe_, shape).groups);
  }

  /// Completes the model with the masters that training starts from, which leave for the optimizer next; a resumed
  /// run's come from there. Where loads choose experts they are those that the checkpoint names, or are chosen now,
  /// which the text says; otherwise it is empty.
  std::string choose_experts() {
    std::string text;
    if (const std::optional<ChoiceByLoad> choice = choice_by_load(recipe_)) {
      ChosenExperts chosen;
      if (resumes_) {
        const std::string saved =
            launch_.rank() == 0 ? to_json(ChosenExperts{saved_experts(folder_ / "checkpoints")}) : "";
        chosen = parse_chosen_experts(launch_.broadcast_string(saved));
      } else {
        const RankProgress::Place place = watched("count of the experts' loads");
        // Weights may draw nothing in an epoch: a step goes on to one in which they do.
        const int64_t steps = std::clamp<int64_t>(batches_.steps_of_epochs(1), 1, num_steps_);
        chosen = experts_by_load(run_, batches_, steps, choice->top, &launch_.progress());
        for (const std::string& line : chosen.lines(choice->key)) log_info(line);
        text = to_json(chosen);
      }
      moetune::choose_experts(run_, chosen.experts);
    }
    if (!resumes_) load_adapter_from(recipe_, run_);
    return text;
  }

  DataSummary summary() {
    DataSummary data;
    data.documents = train_documents_.size();
    data.tokens = train_documents_.num_tokens();
    for (int64_t i = 0; i < data.documents; ++i) data.targets += train_documents_.num_targets(i);
    data.sequences = batches_.sequences_of_epoch(0);
    data.eval_documents = eval_documents_ ? eval_documents_->size() : 0;
    data.steps = num_steps_;
    return data;
  }

  void warm_up() {
    const RankProgress::Place place = watched("preparation of attention");
    warm_up_attention(run_, {&train_documents_, eval_documents_ ? &*eval_documents_ : nullptr});
  }

  /// Runs the step with the most tokens and forgets it: a lack of memory shows in the first minute.
  void probe(int64_t fullest_step) {
    const RankProgress::Place place = watched("trial of the fullest step");
    stepper_.rehearse(batches_, fullest_step);
    meter_.take();
  }

  StepReport train_step(int64_t step) {
    const RankProgress::Place place = watched(str("step ", step + 1));
    const TraceRange range([&] { return str("step ", step + 1); });
    try {
      return stepper_.train(batches_, step, num_steps_);
    } catch (const NonFiniteError&) {  // of all ranks alike, and what was begun was sound
      if (saving_) finish_saving(step);
      throw;
    }
  }

  void write(StepTrace& trace, int64_t last_step) {
    const RankProgress::Place place(&launch_.progress(), "writing a trace", RankProgress::Pace::kPatient);
    trace.write(last_step);
  }

  Decision decide(int64_t done, SignalWatch& signals, double optimizer_wait_s) {
    const RankProgress::Place place = watched(str("end of step ", done));
    const bool due =
        recipe_.checkpoint.every_minutes > 0.0 && seconds_since(saved_at_) / 60.0 >= recipe_.checkpoint.every_minutes;
    RankFigures own = meter_.take();
    own.optimizer_wait_s = optimizer_wait_s;
    at::Tensor wishes = at::tensor({int64_t{signals.take_save_request() || due}, int64_t{signals.stop_signal()},
                                    int64_t{!checkpoints_.has_done_its_part()}},
                                   at::kLong);
    Communicator& world = run_.mesh->world();
    at::Tensor most = at::cat({wishes, own.row_among(world.rank(), world.size()).flatten()}).to(run_.device);
    world.all_reduce_max(most);
    most = most.cpu();
    const at::Tensor ranks = most.narrow(0, wishes.numel(), most.numel() - wishes.numel()).view({world.size(), -1});
    return {most[0].item<int64_t>() != 0, static_cast<int>(most[1].item<int64_t>()), most[2].item<int64_t>() == 0,
            RankFigures::most(ranks), RankFigures::of_least_waiting(ranks)};
  }

  /// Whether the checkpoint of this step is to be kept among the best so far, which `best` then says.
  bool evaluate(int64_t done, std::vector<BestStep>& best) {
    const RankProgress::Place place = watched(str("evaluation after step ", done));
    const TraceRange range("evaluation");
    const Evaluation held_out = stepper_.evaluate(*eval_batches_, recipe_.eval.max_sequences);
    meter_.take();  // the figures of a step are its own
    const double loss = held_out.loss();
    const auto most = static_cast<size_t>(recipe_.checkpoint.keep_best);
    // One rank decides: a sum may differ in its last bits between ranks.
    const bool better = done > 0 && most > 0 && std::isfinite(loss) && (best.size() < most || loss < best.back().loss);
    const bool kept = launch_.max_over_world(launch_.rank() == 0 && better ? 1 : 0) != 0;
    if (kept) {
      // Of equal losses the earlier step is the better one.
      const auto behind =
          std::find_if(best.begin(), best.end(), [&](const BestStep& other) { return loss < other.loss; });
      best.insert(behind, BestStep{done, loss, eval_digest_});
      if (best.size() > most) best.pop_back();
    }
    reporter_->evaluation(done, loss, held_out.targets, kept && best.front().step == done);
    return kept;
  }

  /// What losses must have in common to be compared.
  std::string digest_of_evaluation() const {
    return sha256_of(str(data_digest(*eval_documents_), " ", recipe_.data.max_tokens, " ", recipe_.data.packing, " ",
                         recipe_.train.batch, " ", recipe_.eval.max_sequences));
  }

  /// The best steps that a resumed run goes on from: without those whose checkpoint is gone, or was evaluated
  /// otherwise.
  std::vector<BestStep> best_of(const std::vector<BestStep>& saved) {
    std::vector<BestStep> best;
    for (const BestStep& step : saved) {
      if (static_cast<int64_t>(best.size()) == recipe_.checkpoint.keep_best) break;
      const fs::path path = folder_ / "checkpoints" / checkpoint_name(step.step);
      std::string why;
      if (launch_.rank() == 0) {
        if (step.data != eval_digest_) why = "it was evaluated on other data";
        else why = damage_of(path);
        if (!why.empty())
          log_warn(str("one of the best checkpoints so far, ", path.string(), ", no longer counts: ", why));
      }
      if (launch_.max_over_world(why.empty() ? 0 : 1) == 0) best.push_back(step);
    }
    return best;
  }

  /// Computes together with the other ranks: the watchdog may expect progress. What is not in such a place waits for
  /// disks.
  RankProgress::Place watched(const std::string& place) {
    return {&launch_.progress(), place, RankProgress::Pace::kWatched};
  }

  /// Of these frozen weights and of what trains. Collective.
  void require_equal_replicas(std::vector<HeldDigest> frozen, const std::string& when, const std::string& outcome) {
    for (HeldDigest& trained : trained_digests(*run_.model)) frozen.push_back(std::move(trained));
    moetune::require_equal_replicas(frozen, *run_.mesh, when, outcome);
  }

  /// The same on all ranks that hold copies, and the frozen weights as they were at the start. Nothing may be pending.
  void require_sound(const TrainingState& state, const std::string& when, const std::string& outcome) {
    const std::vector<HeldDigest> frozen = frozen_digests(*run_.model, *run_.mesh);
    require_equal_replicas(frozen, when, outcome);
    const std::string now = frozen_digest(frozen, *run_.mesh);
    MT_CHECK(now == state.frozen_digest, when, ": the frozen weights changed: digest ", state.frozen_digest,
             " at the start, ", now, " now; ", outcome);
  }

  /// `ends`: nothing follows that it could be written beside.
  void save(int64_t done, TrainingState& state, bool ends) {
    if (saving_) finish_saving(done);
    const auto start = std::chrono::steady_clock::now();
    const RankProgress::Place place(&launch_.progress(), str("saving step ", done), RankProgress::Pace::kPatient);
    const TraceRange range("saving");
    if (own_folder_) own_folder_->require_held();
    stepper_.finish_update();
    const auto flushed = std::chrono::steady_clock::now();
    require_sound(state, str("before saving step ", done), "nothing was saved");
    saving_ = Saving{done, start, 0.0, seconds_since(flushed)};
    saved_at_ = start;
    if (saves_beside_ && !ends) {
      checkpoints_.begin(done, state, recipe_.checkpoint.keep_last);
      saving_->exposed_s = seconds_since(start);
    } else {
      checkpoints_.save(done, state, recipe_.checkpoint.keep_last);
      saving_->exposed_s = seconds_since(start);
      report_saved(done, std::chrono::steady_clock::now());
    }
  }

  /// After step `done`, when all ranks have done their parts of the checkpoint on its way.
  void go_on_saving(int64_t done) {
    const RankProgress::Place place(&launch_.progress(), str("saving step ", saving_->step),
                                    RankProgress::Pace::kPatient);
    const auto start = std::chrono::steady_clock::now();
    const std::optional<Checkpoints::Time> whole_at = checkpoints_.advance();
    saving_->exposed_s += seconds_since(start);
    if (whole_at) report_saved(done, *whole_at);
  }

  /// Waits for the checkpoint on its way, after step `done`.
  void finish_saving(int64_t done) {
    const RankProgress::Place place(&launch_.progress(), str("saving step ", saving_->step),
                                    RankProgress::Pace::kPatient);
    const TraceRange range("saving");
    const auto start = std::chrono::steady_clock::now();
    const Checkpoints::Time whole_at = checkpoints_.finish();
    saving_->exposed_s += seconds_since(start);
    report_saved(done, whole_at);
  }

  void report_saved(int64_t done, Checkpoints::Time whole_at) {
    reporter_->saved({saving_->step, done, saving_->begun, whole_at, saving_->exposed_s, saving_->check_s});
    saving_.reset();
  }

  const Recipe& recipe_;
  TrainOptions options_;
  Launch& launch_;
  fs::path folder_;
  std::unique_ptr<RunFolder> own_folder_;  ///< on the rank that writes there
  std::string token_;                      ///< of this run, on all ranks
  bool resumes_;                           ///< goes on from a checkpoint
  Blueprint blueprint_;
  PreparationTools tools_;
  std::optional<Documents> eval_documents_;
  Documents train_documents_;
  Batches batches_;
  int64_t num_steps_;
  Batches::Peak peak_;
  Assembly run_;
  std::string experts_;  ///< for experts.json; empty: none were chosen here
  Stepper stepper_;
  RankMeter meter_{run_};
  bool saves_beside_;  ///< checkpoints are written while training goes on
  Checkpoints checkpoints_;
  std::optional<Saving> saving_;  ///< what is not whole yet
  std::optional<Batches> eval_batches_;
  std::string eval_digest_;  ///< with checkpoint.keep_best
  std::unique_ptr<Reporter> reporter_;
  std::chrono::steady_clock::time_point saved_at_ = std::chrono::steady_clock::now();
};

}  // namespace

int train(const Recipe& recipe, const TrainOptions& options, Launch& launch) {
  ignore_save_requests();
  launch.watch(recipe.run.stall_timeout_s);
  return Run(recipe, options, launch).go();
}

}  // namespace moetune
