#include "trainer/plan/kernel_rates.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <string_view>
#include <vector>

#include "parallel/base/ceil_div.h"
#include "parallel/base/error.h"

namespace moetune {
namespace {

// What a rate may be off beside the spread of its repeats: on the machine that was measured; on one like one that was;
// on a GPU of which only its peaks are known.
constexpr double kDoubtOfMeasured = 0.05, kDoubtOfShipped = 0.15;

/// Of a network's speed, what collectives reach: DeepEP's 43 of 50 GB/s (its README, internode, 16 ranks).
constexpr double kNetworkShare = 0.86;

/// What goes through a host's memory: its bytes for each of what is counted, and whether a GPU's own link bounds it
/// too.
struct HostWork {
  std::string_view figure;
  double memory_bytes;
  bool has_own_link;
};
constexpr std::array kHostWork{
    // AdamW reads master, gradient and two moments, and writes three of them and the bf16 copy; the copies over PCIe
    // write the gradient and read what is new.
    HostWork{"optimizer.adamw", 4 * 4 + 3 * 4 + 2 + 4 + 2, false},
    HostWork{"host_copy", 1, false},
    HostWork{"copy_to_device", 1, true},
    HostWork{"copy_from_device", 1, true},
};
/// What the cores and the memory of a host do where it computes itself.
constexpr std::array<std::string_view, 7> kOfComputingHost{"dense.",      "grouped.",  "attention.",     "nf4.",
                                                           "device_copy", "host_copy", "optimizer.adamw"};

/// Of a link's rate, what NCCL's way for small messages reaches (MessageLatency).
constexpr double kSmallShare = 0.5;

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
      on_host_(std::min(mesh.num_ranks(), machine.ranks_per_host)),
      tensor_(axis_of(mesh.tp, 1, machine.ranks_per_host)),
      expert_(axis_of(mesh.ep, mesh.tp, machine.ranks_per_host)),
      data_(axis_of(mesh.dp * mesh.ep, mesh.tp, machine.ranks_per_host)) {}

double KernelRates::rate(const std::string& figure) const {
  const PlannedRate& rate = machine_.figure(figure);
  const double own = shared(figure,
                            outlook_ == Outlook::kLow    ? rate.max
                            : outlook_ == Outlook::kHigh ? rate.min
                                                         : rate.value,
                            rate.at_once);
  switch (outlook_) {
    case Outlook::kLow: return own * (1.0 + doubt_);
    case Outlook::kHigh: return own / (1.0 + doubt_);
    case Outlook::kExpected: break;
  }
  return own;
}

double KernelRates::shared(const std::string& figure, double rate, int64_t at_once) const {
  if (at_once == 0 || at_once == on_host_) return rate;
  const double share = static_cast<double>(at_once) / static_cast<double>(on_host_);
  if (!machine_.on_gpu()) {
    const bool is_of_host = std::any_of(kOfComputingHost.begin(), kOfComputingHost.end(),
                                        [&](std::string_view prefix) { return figure.starts_with(prefix); });
    return is_of_host ? rate * share : rate;
  }
  const auto work =
      std::find_if(kHostWork.begin(), kHostWork.end(), [&](const HostWork& of) { return of.figure == figure; });
  if (work == kHostWork.end()) return rate;
  // More ranks than measured it bring their own cores; the host's memory is what they share.
  if (on_host_ > at_once && machine_.host_memory_bytes_per_s > 0.0) {
    return std::min(rate, machine_.host_memory_bytes_per_s / work->memory_bytes);
  }
  return work->has_own_link ? rate : rate * share;
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

double KernelRates::seconds_to_send(double bytes, const RankAxis& axis, double calls) const {
  if (axis.ranks <= 1 || bytes <= 0.0) return 0.0;
  return seconds_of_calls(calls, seconds_on_links(bytes, axis, rate("all_gather")), axis, /*ring=*/true);
}

double KernelRates::seconds_to_exchange(double bytes, double calls) const {
  if (expert_.ranks <= 1 || bytes <= 0.0) return 0.0;
  const bool known = machine_.has("exchange.out");
  const double bytes_s = seconds_on_links(bytes, expert_, known ? rate("exchange.out") : rate("all_gather"));
  return seconds_of_calls(calls, bytes_s, expert_, /*ring=*/false);
}

double KernelRates::seconds_on_links(double bytes, const RankAxis& axis, double inside_rate) const {
  const double far = static_cast<double>(axis.ranks - axis.on_host) / static_cast<double>(axis.ranks - 1);
  const double inside = (1.0 - far) * bytes / inside_rate;
  return far > 0.0 ? std::max(inside, far * bytes / across_hosts()) : inside;
}

double KernelRates::seconds_of_calls(double calls, double bytes_s, const RankAxis& axis, bool ring) const {
  const int64_t hosts = ceil_div(axis.ranks, axis.on_host);
  const auto across = static_cast<double>(ring ? hosts - 1 : hosts > 1),
             inside = ring ? static_cast<double>(axis.ranks - 1) - across : 1.0;
  const double doubt = outlook_ == Outlook::kLow    ? 1.0 / (1.0 + doubt_)
                       : outlook_ == Outlook::kHigh ? 1.0 + doubt_
                                                    : 1.0;
  const auto latency = [&](const CollectiveLatency& of, double network_hop_s) {
    return doubt * calls * (of.start_s + inside * of.hop_s + across * network_hop_s);
  };
  return std::min(latency(machine_.latency.small, network_.small_hop_s) + bytes_s / kSmallShare,
                  latency(machine_.latency.large, network_.large_hop_s) + bytes_s);
}

}  // namespace moetune
