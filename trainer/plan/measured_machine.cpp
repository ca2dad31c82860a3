#include "trainer/plan/measured_machine.h"

#include <nlohmann/json.hpp>

#include "parallel/base/error.h"
#include "parallel/base/strict_json.h"

namespace moetune {
namespace {

constexpr const char* kFormat = "moetune-machine-1";

}  // namespace

std::string to_json(const MeasuredMachine& machine) {
  using Json = nlohmann::ordered_json;
  Json figures = Json::object();
  for (const Figure& figure : machine.figures) {
    MT_CHECK(!figures.contains(figure.name), "two figures are called ", figure.name);
    figures[figure.name] = {{"value", figure.value}, {"unit", figure.unit},       {"min", figure.min},
                            {"max", figure.max},     {"repeats", figure.repeats}, {"shape", figure.shape}};
  }
  const Json json = {{"format", kFormat},
                     {"date", machine.date},
                     {"host", machine.host},
                     {"ranks", machine.ranks},
                     {"ranks_per_host", machine.ranks_per_host},
                     {"device",
                      {{"kind", machine.device.kind},
                       {"name", machine.device.name},
                       {"count", machine.device.count},
                       {"memory_bytes", machine.device.memory_bytes}}},
                     {"threads", machine.threads},
                     {"versions",
                      {{"moetune", machine.versions.moetune},
                       {"torch", machine.versions.torch},
                       {"cuda", machine.versions.cuda},
                       {"driver", machine.versions.driver},
                       {"nccl", machine.versions.nccl},
                       {"mpi", machine.versions.mpi}}},
                     {"figures", figures}};
  // Names come from the system: what is no UTF-8 in them is replaced.
  return json.dump(2, ' ', /*ensure_ascii=*/false, Json::error_handler_t::replace) + "\n";
}

bool is_machine_file(const std::string& path) {
  try {
    return read_json_object(path).value("format", "") == kFormat;
  } catch (const nlohmann::json::exception&) {
    return false;  // "format" is no text
  } catch (const UserError&) {
    return false;
  }
}

}  // namespace moetune
