#include "trainer/plan/receipts.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <filesystem>
#include <set>

#include <nlohmann/json.hpp>

#include "parallel/base/error.h"
#include "parallel/base/median.h"
#include "parallel/base/strict_json.h"
#include "parallel/base/units.h"

namespace moetune {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

Receipt read_receipt(const fs::path& path) {
  const json file = read_json_object(path.string());
  try {
    Receipt receipt;
    receipt.path = path.parent_path().string();
    receipt.device = file.at("machine").at("device").get<std::string>();
    const json &time = file.at("time"), &memory = file.at("memory");
    receipt.predicted_step_s = time.at("predicted_step_s").at("expected").get<double>();
    receipt.measured_step_s = time.at("measured_step_s").at("median").get<double>();
    receipt.computing = time.value("computing", 1.0);
    for (const json& part : time.at("parts")) {
      if (part.at("name") != "computing") continue;
      receipt.predicted_computing_s = part.at("predicted_s").get<double>();
      receipt.measured_computing_s = part.at("measured_s").get<double>();
    }
    receipt.predicted_bytes = memory.at("predicted_bytes").get<double>();
    receipt.measured_bytes = memory.at("measured_bytes").get<double>();
    const bool sound = receipt.predicted_step_s > 0.0 && receipt.measured_step_s > 0.0 && receipt.computing > 0.0 &&
                       receipt.predicted_computing_s > 0.0 && receipt.measured_computing_s > 0.0 &&
                       receipt.measured_bytes > 0.0;
    if (!sound) throw UserError(str(path.string(), ": a time or size in it is not above 0"));
    return receipt;
  } catch (const json::exception& error) {
    throw UserError(str(path.string(), ": is no receipt: ", error.what()));
  }
}

std::set<std::string> devices(const std::vector<Receipt>& receipts) {
  std::set<std::string> names;
  for (const Receipt& receipt : receipts) names.insert(receipt.device);
  return names;
}

double off(double predicted, double measured) { return predicted / measured - 1.0; }

}  // namespace

Receipts load_receipts(const std::string& folder) {
  std::vector<Receipt> receipts;
  std::error_code failure;
  std::vector<fs::path> paths;
  for (fs::recursive_directory_iterator entry(folder, fs::directory_options::skip_permission_denied, failure), end;
       !failure && entry != end; entry.increment(failure)) {
    const std::string name = entry->path().filename().string();
    if (name == "receipt.json" || (name.ends_with(".json") && name.starts_with("receipt-"))) {
      paths.push_back(entry->path());
    }
  }
  if (failure) throw UserError(str("--receipts ", folder, ": ", failure.message()));
  std::sort(paths.begin(), paths.end());
  for (const fs::path& path : paths) receipts.push_back(read_receipt(path));
  if (receipts.empty()) {
    throw UserError(str("--receipts ", folder, ": no receipt.json in it; each run leaves one in its folder"));
  }
  return Receipts(std::move(receipts));
}

double Receipts::computing(const std::string& device, int64_t* count) const {
  std::vector<double> factors;
  for (const Receipt& receipt : receipts_) {
    if (receipt.device != device) continue;
    factors.push_back(receipt.computing * receipt.measured_computing_s / receipt.predicted_computing_s);
  }
  *count = static_cast<int64_t>(factors.size());
  return factors.empty() ? 0.0 : median(factors);
}

void Receipts::correct(PlanRequest& request) const {
  int64_t count = 0;
  const double factor = computing(request.machine.device_name, &count);
  if (count == 0) return;
  request.machine.computing = {factor, factor, factor, str("the median of ", count, " receipts")};
  request.corrected = true;
}

std::string Receipts::table() const {
  std::array<char, 400> line;
  std::snprintf(line.data(), line.size(), "%-40s %-22s %10s %10s %7s %12s %12s %7s\n", "run", "device", "step, s",
                "planned", "off", "memory", "planned", "off");
  std::string text = line.data();
  for (const Receipt& of : receipts_) {
    std::snprintf(line.data(), line.size(), "%-40s %-22s %10.4g %10.4g %+6.1f%% %12s %12s %+6.1f%%\n", of.path.c_str(),
                  of.device.c_str(), of.measured_step_s, of.predicted_step_s,
                  100.0 * off(of.predicted_step_s, of.measured_step_s),
                  bytes_text(static_cast<int64_t>(of.measured_bytes)).c_str(),
                  bytes_text(static_cast<int64_t>(of.predicted_bytes)).c_str(),
                  100.0 * off(of.predicted_bytes, of.measured_bytes));
    text += line.data();
  }
  for (const std::string& device : devices(receipts_)) {
    int64_t count = 0;
    const double factor = computing(device, &count);
    std::snprintf(line.data(), line.size(), "%s: computing takes %.3f times the sum of its parts (median of %ld)\n",
                  device.c_str(), factor, static_cast<long>(count));
    text += line.data();
  }
  return text + "plan RECIPE --receipts FOLDER plans with these\n";
}

std::string Receipts::json() const {
  using Json = nlohmann::ordered_json;
  Json runs = Json::array(), factors = Json::object();
  for (const Receipt& of : receipts_) {
    runs.push_back({{"run", of.path},
                    {"device", of.device},
                    {"step_s", {{"predicted", of.predicted_step_s}, {"measured", of.measured_step_s}}},
                    {"computing_s", {{"predicted", of.predicted_computing_s}, {"measured", of.measured_computing_s}}},
                    {"bytes", {{"predicted", of.predicted_bytes}, {"measured", of.measured_bytes}}}});
  }
  for (const std::string& device : devices(receipts_)) {
    int64_t count = 0;
    const double factor = computing(device, &count);
    factors[device] = {{"computing", factor}, {"receipts", count}};
  }
  return Json{{"runs", runs}, {"corrections", factors}}.dump(2) + "\n";
}

}  // namespace moetune
