#include "trainer/plan/plan_text.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>

#include "moe/inventory.h"
#include "parallel/base/error.h"
#include "parallel/base/units.h"
#include "trainer/plan/model_banner.h"

namespace moetune {
namespace {

template <typename... Values>
std::string formatted(const char* format, Values... values) {
  std::array<char, 400> text;
  std::snprintf(text.data(), text.size(), format, values...);
  return text.data();
}

std::string dollars_text(double dollars) { return formatted(dollars < 10.0 ? "$%.2f" : "$%.0f", dollars); }

std::string machine_text(const RunPlan& plan) {
  const PlanRequest& request = plan.request;
  return str(request.gpus, " x ", request.machine.name);
}

std::string memory_text(const RunPlan& plan) {
  std::string text;
  for (const bool on_host : {false, true}) {
    for (const char* phase : {"run", "load", "step", "save"}) {
      for (const PlannedBytes& part : plan.parts) {
        if (part.on_host != on_host || part.phase != phase) continue;
        const std::string mark = part.phase == "run" ? "" : str("(", part.phase, ") ");
        text += formatted("  %-28s %10s   %s%s\n", part.name.c_str(), bytes_text(part.bytes).c_str(),
                          on_host && plan.request.machine.on_gpu() ? "host: " : "", (mark + part.formula).c_str());
      }
    }
  }
  const auto sum = [&](const char* name, int64_t bytes, int64_t limit) {
    text += formatted("  %-28s %10s   of %s%s\n", name, bytes_text(bytes).c_str(), bytes_text(limit).c_str(),
                      bytes > limit ? ": does not fit" : "");
  };
  if (plan.request.machine.on_gpu()) sum("device, at the most", plan.device_bytes, plan.device_limit_bytes);
  sum("host, at the most", plan.host_bytes, plan.host_limit_bytes);
  return text;
}

std::string time_text(const RunPlan& plan) {
  const StepTime& step = plan.time.expected;
  std::string text = formatted("  %-28s %10s %10s %7s\n", "part of a step", "busy", "exposed", "share");
  for (const TimePart& part : step.parts) {
    text += formatted("  %-28s %10s %10s %6.1f%%\n", part.name.c_str(), seconds_text(part.busy_s).c_str(),
                      seconds_text(part.exposed_s).c_str(), 100.0 * part.exposed_s / step.seconds);
  }
  return text;
}

}  // namespace

std::string seconds_text(double seconds) {
  return seconds < 1.0 ? formatted("%.1f ms", 1e3 * seconds) : formatted("%.2f s", seconds);
}

std::string hours_text(double hours) {
  if (hours < 1.0) return formatted(hours < 1.0 / 6.0 ? "%.1f min" : "%.0f min", 60.0 * hours);
  return hours < 48.0 ? formatted("%.1f h", hours) : formatted("%.1f days", hours / 24.0);
}

std::string plan_text(const RunPlan& plan, const std::vector<std::string>& changes) {
  const PlanRequest& request = plan.request;
  const StepTime& step = plan.time.expected;
  std::string text = banner_of_model(request.recipe, request.blueprint, plan.mesh, plan.memory);
  text += banner_line(
      "machine", str(machine_text(plan), " (", request.machine.device_name, "), ",
                     std::min(request.gpus, request.machine.ranks_per_host), " a host",
                     request.gpus > request.machine.ranks_per_host ? str(", network ", request.network.name) : ""));
  text += banner_line("data", str(request.data.source(), ": ", count_text(plan.run.tokens), " tokens in ",
                                  plan.run.steps, plan.run.steps == 1 ? " step" : " steps"));
  text += banner_line("memory", str("of each rank, for ", request.recipe.train.batch, " sequences of ",
                                    request.recipe.data.max_tokens, " tokens a step")) +
          memory_text(plan);
  text += banner_line("step", str(seconds_text(step.seconds), " (", seconds_text(plan.time.low.seconds), " to ",
                                  seconds_text(plan.time.high.seconds), "), ",
                                  formatted("%.0f tokens/s, %.0f a rank", plan.time.tokens_per_s,
                                            plan.time.tokens_per_s / static_cast<double>(request.gpus)))) +
          time_text(plan);
  const PlannedRate& computing = request.machine.computing;
  std::string rates = request.machine.measured ? "measured on this machine by moetune bench"
                                               : "not measured on the machine that is planned for (moetune bench)";
  if (!computing.source.empty()) {
    rates += str("; computing takes ", formatted("%.3f", computing.value), " times its parts: ", computing.source);
  }
  text += banner_line("rates", rates);
  text += banner_line(
      "run", str(hours_text(plan.run.hours), " (", hours_text(plan.run.hours_low), " to ",
                 hours_text(plan.run.hours_high), "): loading ", hours_text(plan.run.load_s / 3600.0), ", evaluations ",
                 hours_text(plan.run.evaluation_s / 3600.0), ", saving ", hours_text(plan.run.save_s / 3600.0)));
  if (request.price) {
    const auto range_text = [&](const auto& dollars_of) {
      return str(dollars_text(dollars_of(plan.run.hours)), " (", dollars_text(dollars_of(plan.run.hours_low)), " to ",
                 dollars_text(dollars_of(plan.run.hours_high)), ")");
    };
    text += banner_line(
        "cost", str(range_text([&](double hours) { return plan.dollars(hours); }), ", ",
                    range_text([&](double hours) { return plan.dollars_per_million_tokens(hours); }),
                    " a million tokens, at ", formatted("$%.2f", request.price->dollars_per_gpu_hour), " a GPU-hour"));
    text += banner_line("price", request.price->source);
  }
  if (!plan.fits()) {
    text += banner_line(
        "fits not", changes.empty() ? "and no small change was found with which it would" : "but would with any of");
    for (const std::string& change : changes) text += str("  ", change, "\n");
  }
  return text;
}

std::string plans_table(const std::vector<RunPlan>& plans) {
  std::vector<const RunPlan*> order;
  for (const RunPlan& plan : plans) order.push_back(&plan);
  std::stable_sort(order.begin(), order.end(), [](const RunPlan* a, const RunPlan* b) {
    if (a->fits() != b->fits()) return a->fits();
    return (a->request.price ? a->dollars() : a->run.hours) < (b->request.price ? b->dollars() : b->run.hours);
  });
  std::string text = formatted("%-16s %-36s %-22s %9s %11s %9s %8s %9s  %s\n", "machine", "mesh", "memory a GPU",
                               "step", "tokens/s", "run", "dollars", "$/Mtoken", "");
  for (const RunPlan* plan : order) {
    const MeshShape& mesh = plan->mesh;
    const Recipe& recipe = plan->request.recipe;
    const std::string shape =
        str(mesh.pp > 1 ? str("pp ", mesh.pp, " ") : "", "dp ", mesh.dp, " ep ", mesh.ep, " tp ", mesh.tp,
            recipe.mesh.shard == ShardScope::kNone ? "" : ", sharded",
            plan->request.machine.on_gpu() && recipe.offload.optimizer == OffloadTier::kNone ? ", GPU AdamW" : "");
    const std::string memory = str(bytes_text(plan->device_bytes), " of ", bytes_text(plan->device_limit_bytes));
    text += formatted("%-16s %-36s %-22s %9s %11.0f %9s %8s %9s  %s\n", machine_text(*plan).c_str(), shape.c_str(),
                      memory.c_str(), seconds_text(plan->time.expected.seconds).c_str(), plan->time.tokens_per_s,
                      hours_text(plan->run.hours).c_str(),
                      plan->request.price ? dollars_text(plan->dollars()).c_str() : "-",
                      plan->request.price ? formatted("%.2f", plan->dollars_per_million_tokens()).c_str() : "-",
                      plan->fits() ? "" : "does not fit");
  }
  return text;
}

}  // namespace moetune
