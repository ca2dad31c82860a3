#include "parallel/watch/rank_report.h"

#include <nlohmann/json.hpp>

namespace moetune {

NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(Collective, group, operation, number, bytes, seconds)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(GroupCount, group, name, size, entered)

std::string to_line(const RankReport& report) {
  nlohmann::json json{{"host", report.host},
                      {"process", report.process},
                      {"place", report.place},
                      {"patient", report.patient},
                      {"idle_s", report.idle_s},
                      {"busy_s", report.busy_s},
                      {"transport_error", report.transport_error},
                      {"groups", report.groups}};
  if (report.waiting) json["waiting"] = *report.waiting;
  // Escapes keep line ends out; a host name need not be UTF-8.
  return json.dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
}

std::optional<RankReport> report_from(const std::string& line) {
  try {
    const nlohmann::json json = nlohmann::json::parse(line);
    RankReport report;
    json.at("host").get_to(report.host);
    json.at("process").get_to(report.process);
    json.at("place").get_to(report.place);
    json.at("patient").get_to(report.patient);
    json.at("idle_s").get_to(report.idle_s);
    json.at("busy_s").get_to(report.busy_s);
    json.at("transport_error").get_to(report.transport_error);
    json.at("groups").get_to(report.groups);
    if (json.contains("waiting")) report.waiting = json["waiting"].get<Collective>();
    return report;
  } catch (const nlohmann::json::exception&) {
    return std::nullopt;
  }
}

}  // namespace moetune
