#include "trainer/plan/machine_profile.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>

#include <nlohmann/json.hpp>

#include "parallel/base/error.h"
#include "parallel/base/program_files.h"
#include "parallel/base/strict_json.h"
#include "parallel/base/text.h"
#include "trainer/plan/measured_machine.h"

namespace moetune {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

/// The GPU whose measured shares of its peaks stand for those of others.
constexpr const char* kMeasuredGpu = "h200";

/// The peak that bounds a figure: its name's first letters.
struct Bound {
  std::string_view prefix, peak;
};
constexpr std::array kBounds{
    Bound{"device_copy", "memory_bytes_per_s"},
    Bound{"nf4.", "memory_bytes_per_s"},
    Bound{"copy_to_device", "host_link_bytes_per_s"},
    Bound{"copy_from_device", "host_link_bytes_per_s"},
    Bound{"dense.", "bf16_flops"},
    Bound{"grouped.", "bf16_flops"},
    Bound{"attention.", "bf16_flops"},
    Bound{"exchange.", "gpu_link_bytes_per_s"},
    Bound{"all_gather", "gpu_link_bytes_per_s"},
    Bound{"optimizer.adamw", "host_memory_bytes_per_s"},
};

fs::path machines_folder() { return program_files().recipes / "machines"; }

double number(const json& object, const std::string& key, const std::string& place) {
  const auto found = object.find(key);
  if (found == object.end() || !found->is_number()) throw UserError(str(place, ": \"", key, "\" is no number"));
  const double value = found->get<double>();
  if (!(value > 0.0)) throw UserError(str(place, ": \"", key, "\" is ", value, "; it must be above 0"));
  return value;
}

/// Ranks that measured the file's figures at the same time on one host.
int64_t ranks_at_once(const json& file) { return std::max<int64_t>(1, file.value("ranks_per_host", int64_t{1})); }

std::map<std::string, PlannedRate> figures_of(const json& file, const std::string& place) {
  std::map<std::string, PlannedRate> figures;
  const json none = json::object();
  for (const auto& [name, figure] : (file.contains("figures") ? file.at("figures") : none).items()) {
    const std::string where = str(place, ": figures: ", name);
    const double value = number(figure, "value", where);
    figures[name] = {value, figure.contains("min") ? number(figure, "min", where) : value,
                     figure.contains("max") ? number(figure, "max", where) : value,
                     figure.value("source", figure.value("shape", "")), ranks_at_once(file)};
  }
  return figures;
}

/// Published peaks, one direction where that matters.
std::map<std::string, double> peaks_of(const json& file, const std::string& place) {
  std::map<std::string, double> peaks;
  for (const auto& [name, peak] : file.at("peaks").items()) peaks[name] = number(peak, "value", place + ": " + name);
  peaks["host_memory_bytes_per_s"] = number(file.at("host").at("memory_bytes_per_s"), "value", place + ": host");
  return peaks;
}

CollectiveLatency latency_in(const json& said, const std::string& place) {
  return {number(said, "start_s", place), number(said, "hop_s", place)};
}

/// As the file says it, and where its collectives were measured, so much more or less as they take.
void set_latency(MachineProfile& machine, const json& file, const std::string& place) {
  if (file.contains("collectives")) {
    const json& said = file.at("collectives");
    machine.latency = {latency_in(said.at("small"), place), latency_in(said.at("large"), place)};
    machine.latency_source = said.at("source").get<std::string>();
  }
  const std::string figure = "all_gather.small";
  const bool within_host = file.value("ranks", ranks_at_once(file)) == ranks_at_once(file);
  if (!file.contains("figures") || !file.at("figures").contains(figure) || !within_host) return;
  const double measured_s = 1.0 / number(file.at("figures").at(figure), "value", place + ": " + figure);
  const auto hops = static_cast<double>(std::max<int64_t>(1, ranks_at_once(file) - 1));
  auto& [small, large] = machine.latency;
  const double said_s = small.start_s + hops * small.hop_s;
  if (said_s > 0.0) {
    for (double* part : {&small.start_s, &small.hop_s, &large.start_s, &large.hop_s}) *part *= measured_s / said_s;
  } else {
    small = large = {0.0, measured_s / hops};
  }
  machine.latency_source = str(figure, " of ", ranks_at_once(file), " ranks, ", place);
}

MachineProfile profile_of(const json& file, const std::string& place) {
  MachineProfile machine;
  machine.name = file.at("name").get<std::string>();
  machine.device_name = file.at("device").at("name").get<std::string>();
  machine.memory_bytes = file.at("device").at("memory_bytes").get<int64_t>();
  machine.ranks_per_host = file.at("gpus_per_host").get<int64_t>();
  machine.host_memory_bytes = static_cast<int64_t>(number(file.at("host").at("memory_bytes"), "value", place));
  machine.host_memory_bytes_per_s = number(file.at("host").at("memory_bytes_per_s"), "value", place);
  machine.figures = figures_of(file, place);
  set_latency(machine, file, place);
  return machine;
}

/// What receipts of runs said of the machine, or of the one whose shares stand for it.
PlannedRate computing_of(const json& file, const std::string& place) {
  if (!file.contains("computing")) return {1.0, 1.0, 1.0, ""};
  const json& said = file.at("computing");
  const double value = number(said, "value", place + ": computing");
  return {value, value, value, said.value("source", "")};
}

/// Fills in what was not measured on this GPU: its peak times the share that the measured one reaches of its own.
void derive(MachineProfile& machine, const std::map<std::string, double>& peaks) {
  const std::string place = (machines_folder() / (std::string(kMeasuredGpu) + ".json")).string();
  const json reference = read_json_object(place);
  const std::map<std::string, double> reference_peaks = peaks_of(reference, place);
  machine.computing = computing_of(reference, place);
  for (const auto& [name, measured] : figures_of(reference, place)) {
    if (machine.figures.contains(name)) continue;
    const auto bound = std::find_if(kBounds.begin(), kBounds.end(),
                                    [&, &name = name](const Bound& b) { return name.starts_with(b.prefix); });
    if (bound == kBounds.end()) {
      machine.figures[name] = measured;
      continue;
    }
    const std::string peak(bound->peak);
    const double ratio = peaks.at(peak) / reference_peaks.at(peak);
    const double share = measured.value / reference_peaks.at(peak);
    machine.figures[name] = {measured.value * ratio, measured.min * ratio, measured.max * ratio,
                             str("its published ", peak, " x ", std::round(100.0 * share) / 100.0, ", the share of ",
                                 kMeasuredGpu, "'s that was measured there"),
                             measured.at_once};
  }
}

MachineProfile load_shipped(const fs::path& path) {
  const json file = read_json_object(path.string());
  MachineProfile machine = profile_of(file, path.string());
  derive(machine, peaks_of(file, path.string()));
  return machine;
}

template <typename Visit>
void for_each_machine(const Visit& visit) {
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(machines_folder())) {
    if (entry.path().extension() == ".json") files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end());
  for (const fs::path& path : files) {
    const json file = read_json_object(path.string());
    if (file.contains("peaks")) visit(path, file);
  }
}

}  // namespace

const PlannedRate& MachineProfile::figure(const std::string& figure) const {
  const auto found = figures.find(figure);
  if (found != figures.end()) return found->second;
  throw UserError(str("machine ", name, ": there is no figure \"", figure, "\"; measure it with moetune bench"));
}

std::vector<std::string> shipped_machines() {
  std::vector<std::string> names;
  for_each_machine([&](const fs::path&, const json& file) { names.push_back(file.at("name").get<std::string>()); });
  return names;
}

MachineProfile shipped_machine(const std::string& name) {
  std::optional<fs::path> found;
  std::string names;
  for_each_machine([&](const fs::path& path, const json& file) {
    const std::string own = file.at("name").get<std::string>();
    names += (names.empty() ? "" : ", ") + own;
    bool is_it = own == lower_case(name);
    for (const json& alias : file.value("aliases", json::array())) is_it = is_it || alias == lower_case(name);
    if (is_it) found = path;
  });
  if (!found) throw UserError(str("no machine is called \"", name, "\"; there are ", names));
  return load_shipped(*found);
}

std::optional<MachineProfile> shipped_machine_of(const std::string& device_name) {
  std::optional<fs::path> found;
  for_each_machine([&](const fs::path& path, const json& file) {
    if (file.at("device").at("name") == device_name) found = path;
  });
  return found ? std::optional(load_shipped(*found)) : std::nullopt;
}

MachineProfile shipped_cpu(int64_t threads) {
  const fs::path path = machines_folder() / "cpu.json";
  const json file = read_json_object(path.string());
  MachineProfile machine;
  machine.name = "cpu";
  machine.device_name = file.at("device").at("name").get<std::string>();
  machine.device = c10::DeviceType::CPU;
  machine.figures = figures_of(file, path.string());
  machine.computing = computing_of(file, path.string());
  set_latency(machine, file, path.string());
  const double more = static_cast<double>(threads) / number(file, "threads", path.string());
  for (auto& [name, rate] : machine.figures) {
    rate.at_once = 0;  // by thread: how many ranks share a host, and what memory it has, is another host's matter
    // One thread starts operators and messages, and memory serves all of them.
    constexpr std::array kOfThreads{"dense.", "grouped.", "attention.", "nf4.", "optimizer."};
    const auto is_of = [&, &name = name](const char* prefix) { return name.starts_with(prefix); };
    if (std::none_of(kOfThreads.begin(), kOfThreads.end(), is_of)) continue;
    rate = {rate.value * more, rate.min * more, rate.max * more, rate.source, 0};
  }
  return machine;
}

MachineProfile measured_machine(const std::string& path) {
  if (!is_machine_file(path)) throw UserError(str(path, ": is no file of moetune bench"));
  const json file = read_json_object(path);
  if (file.contains("peaks")) return load_shipped(path);
  const json& device = file.at("device");
  const bool gpu = device.value("kind", "") == "cuda";
  const std::string name = device.value("name", "");
  MachineProfile machine;
  if (gpu) {
    const std::optional<MachineProfile> shipped = shipped_machine_of(name);
    machine = shipped.value_or(shipped_machine(kMeasuredGpu));
    if (!shipped) machine.host_memory_bytes_per_s = 0.0;  // that of another host
  } else {
    machine = shipped_cpu(file.value("threads", int64_t{1}));
  }
  machine.name = name.empty() ? "this machine" : name;
  machine.device_name = name;
  if (gpu) machine.memory_bytes = device.value("memory_bytes", int64_t{0});
  machine.ranks_per_host = ranks_at_once(file);
  machine.measured = true;
  set_latency(machine, file, path);
  for (auto& [figure, rate] : figures_of(file, path)) {
    rate.source = str("measured, ", path);
    machine.figures[figure] = rate;
  }
  return machine;
}

NetworkProfile shipped_network(const std::string& name, int64_t gpus_per_host) {
  const fs::path path = machines_folder() / "networks.json";
  const json file = read_json_object(path.string());
  std::string names;
  for (const auto& [known, network] : file.items()) {
    if (known == "disk") continue;
    names += (names.empty() ? "" : ", ") + known;
    if (known != lower_case(name)) continue;
    const double all = number(network, "bytes_per_s", path.string());
    return {known, network.at("per") == "host" ? all / static_cast<double>(gpus_per_host) : all,
            network.at("source").get<std::string>(), number(network, "small_hop_s", path.string()),
            number(network, "large_hop_s", path.string())};
  }
  throw UserError(str("no network is called \"", name, "\"; there are ", names));
}

DiskProfile shipped_disk(const std::string& name) {
  const fs::path path = machines_folder() / "networks.json";
  const json disks = read_json_object(path.string()).at("disk");
  const auto found = disks.find(lower_case(name));
  if (found == disks.end()) throw UserError(str("no disk is called \"", name, "\"; there are nvme and network"));
  return {number(*found, "read_bytes_per_s", path.string()), number(*found, "write_bytes_per_s", path.string()),
          found->at("source").get<std::string>()};
}

MachineChoice parse_machine_choice(const std::string& text) {
  const std::string word = lower_case(text);
  const size_t digits = word.find_first_not_of("0123456789");
  constexpr size_t kMostDigits = 6;
  if (digits == 0 || digits == std::string::npos || digits > kMostDigits || word[digits] != 'x' ||
      digits + 1 == word.size()) {
    throw UserError(str("--on ", text, ": is no number of GPUs and their name; 16xH100 is one"));
  }
  const int64_t gpus = std::stoll(word.substr(0, digits));
  if (gpus < 1) throw UserError(str("--on ", text, ": at least one GPU"));
  return {gpus, word.substr(digits + 1)};
}

}  // namespace moetune
