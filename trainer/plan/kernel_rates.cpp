#include "trainer/plan/kernel_rates.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "parallel/base/error.h"

namespace moetune {
namespace {

// What a rate may be off beside the spread of its repeats: on the machine that was measured; on one like one that was;
// on a GPU of which only its peaks are known.
constexpr double kDoubtOfMeasured = 0.05, kDoubtOfShipped = 0.15;

/// Of a network's speed, what collectives reach: DeepEP's 43 of 50 GB/s (its README, internode, 16 ranks).
constexpr double kNetworkShare = 0.86;

struct Sample {
  double at = 0.0, rate = 0.0;
};

/// Between samples on logarithmic scales, the nearest beyond them.
double between(std::vector<Sample> samples, double at) {
  std::sort(samples.begin(), samples.end(), [](const Sample& a, const Sample& b) { return a.at < b.at; });
  if (at <= samples.front().at) return samples.front().rate;
  for (size_t i = 1; i < samples.size(); ++i) {
    if (at > samples[i].at) continue;
    const Sample &low = samples[i - 1], &high = samples[i];
    const double way = std::log(at / low.at) / std::log(high.at / low.at);
    return low.rate * std::pow(high.rate / low.rate, way);
  }
  return samples.back().rate;
}

RankAxis axis_of(int64_t ranks, int64_t stride, int64_t per_host) {
  return {ranks, std::clamp<int64_t>(per_host / std::max<int64_t>(1, stride), 1, ranks)};
}

}  // namespace

KernelRates::KernelRates(const MachineProfile& machine, const NetworkProfile& network, const MeshShape& mesh,
                         Outlook outlook)
    : machine_(machine),
      network_(network),
      outlook_(outlook),
      doubt_(machine.measured ? kDoubtOfMeasured : kDoubtOfShipped),
      tensor_(axis_of(mesh.tp, 1, machine.ranks_per_host)),
      expert_(axis_of(mesh.ep, mesh.tp, machine.ranks_per_host)),
      data_(axis_of(mesh.dp * mesh.ep, mesh.tp, machine.ranks_per_host)) {}

double KernelRates::rate(const std::string& figure) const {
  const PlannedRate& rate = machine_.figure(figure);
  switch (outlook_) {
    case Outlook::kLow: return rate.max * (1.0 + doubt_);
    case Outlook::kHigh: return rate.min / (1.0 + doubt_);
    case Outlook::kExpected: break;
  }
  return rate.value;
}

double KernelRates::dense(int64_t outputs, int64_t inputs) const {
  // By the smaller of the two widths: it bounds how often what is read is used.
  const bool gpu = machine_.on_gpu();
  const double shrunk = gpu ? 1.0 : 0.25;  // what CPUs were measured at is a quarter as wide
  std::vector<Sample> samples{{1536 * shrunk, std::sqrt(rate("dense.deepseek_q_a") * rate("dense.deepseek_q_b"))},
                              {2048 * shrunk, rate("dense.qwen3_q")},
                              {7168 * shrunk, rate("dense.deepseek_o")}};
  if (machine_.has("dense.tiny")) samples.push_back({128.0, rate("dense.tiny")});
  return between(std::move(samples), static_cast<double>(std::min(outputs, inputs)));
}

double KernelRates::grouped(double rows, int64_t outputs, int64_t inputs) const {
  const double shrunk = machine_.on_gpu() ? 1.0 : 0.25;
  const auto of = [&](const char* model) {
    std::vector<Sample> samples;
    for (const int64_t measured : {64, 128, 512, 1024}) {
      const double rate_of = rate(str("grouped.", model, ".rows", measured));
      samples.push_back({static_cast<double>(measured), rate_of});
    }
    // Fewer rows than were measured: the weights are read either way, and time stays.
    if (rows < 64.0) return samples.front().rate * std::max(1.0, rows) / 64.0;
    return between(std::move(samples), rows);
  };
  std::vector<Sample> samples{{2048.0 * 1536.0 * shrunk * shrunk, of("qwen3_gate_up")},
                              {7168.0 * 4096.0 * shrunk * shrunk, of("deepseek_gate_up")}};
  if (machine_.has("grouped.tiny.rows64")) samples.push_back({128.0 * 256.0, of("tiny")});
  return between(std::move(samples), static_cast<double>(outputs * inputs));
}

double KernelRates::attention(const AttentionSpec& spec, const char* way, double length) const {
  const std::string name =
      str("attention.", spec.kind == AttentionSpec::Kind::kLatent ? "latent." : "grouped_query.", way);
  const double shrunk = machine_.on_gpu() ? 1.0 : 0.125;
  std::vector<Sample> samples{{4096 * shrunk, rate(name)}};
  for (const int64_t measured : {256, 1024, 16384}) {
    const std::string figure = str(name, ".s", measured);
    if (machine_.has(figure)) samples.push_back({static_cast<double>(measured) * shrunk, rate(figure)});
  }
  return between(std::move(samples), length);
}

double KernelRates::attention_forward(const AttentionSpec& spec, double length) const {
  return attention(spec, "forward", length);
}

double KernelRates::attention_backward(const AttentionSpec& spec, double length) const {
  return attention(spec, "backward", length);
}

double KernelRates::to_device() const { return machine_.on_gpu() ? rate("copy_to_device") : rate("host_copy"); }

double KernelRates::across_hosts() const {
  const double expected = kNetworkShare * network_.bytes_per_s;
  return outlook_ == Outlook::kLow    ? std::min(network_.bytes_per_s, expected * (1.0 + kDoubtOfShipped))
         : outlook_ == Outlook::kHigh ? expected / (1.0 + 2.0 * kDoubtOfShipped)
                                      : expected;
}

RankAxis KernelRates::replicas(int64_t ranks, int64_t stride) const {
  return axis_of(ranks, stride, machine_.ranks_per_host);
}

double KernelRates::seconds_to_send(double bytes, const RankAxis& axis) const {
  return axis.ranks > 1 ? seconds_to_send(bytes, axis, rate("all_gather")) : 0.0;
}

double KernelRates::seconds_to_exchange(double bytes) const {
  if (expert_.ranks <= 1) return 0.0;
  const bool known = machine_.has("exchange.out");
  return seconds_to_send(bytes, expert_, known ? rate("exchange.out") : rate("all_gather"));
}

double KernelRates::seconds_to_send(double bytes, const RankAxis& axis, double inside_rate) const {
  if (axis.ranks <= 1 || bytes <= 0.0) return 0.0;
  const double far = static_cast<double>(axis.ranks - axis.on_host) / static_cast<double>(axis.ranks - 1);
  const double inside = (1.0 - far) * bytes / inside_rate;
  return far > 0.0 ? std::max(inside, far * bytes / across_hosts()) : inside;
}

}  // namespace moetune
