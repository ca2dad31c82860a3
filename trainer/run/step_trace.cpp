#include "trainer/run/step_trace.h"

#include <c10/cuda/CUDAFunctions.h>
#include <fcntl.h>
#include <torch/csrc/autograd/profiler_kineto.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <set>

#include "parallel/base/error.h"
#include "parallel/base/files.h"
#include "parallel/base/log.h"

// As torch/csrc/profiler/kineto_shim.h declares it, which includes a header of Kineto's that LibTorch's include path
// does not lead to.
namespace torch::autograd::profiler {
TORCH_API void addMetadataJson(const std::string& key, const std::string& value);
}

namespace moetune {
namespace {

namespace fs = std::filesystem;
namespace profiler = torch::autograd::profiler;
using torch::profiler::impl::ActivityType;

constexpr const char* kPrefix = "rank-";
constexpr const char* kEnding = ".json";
/// Steps that are left out: allocator and libraries settle in the first, the optimizer's update first shows in the
/// second.
constexpr int64_t kSettling = 2;

void wait_for(at::Device device) {
  if (device.is_cuda()) c10::cuda::device_synchronize();
}

/// The profiler says nothing where the disk takes no more: a whole trace ends with the bracket that its first byte
/// opens.
void require_whole(const fs::path& path) {
  const InputFile file(path.string());
  constexpr uint64_t kTail = 16;
  std::string tail(std::min(kTail, file.size()), '\0');
  file.read(file.size() - tail.size(), tail.data(), tail.size());
  while (!tail.empty() && std::isspace(static_cast<unsigned char>(tail.back()))) tail.pop_back();
  if (tail.empty() || tail.back() != '}') {
    throw UserError(str(path.string(), ": the trace was cut off; is the disk full?"));
  }
}

}  // namespace

TracedSteps traced_steps(int64_t count, int64_t begin, int64_t end) {
  const int64_t first = end - begin >= kSettling + count ? begin + kSettling : begin;
  return {first, std::min(end, first + count)};
}

std::string trace_name(int64_t rank) { return str(kPrefix, rank, kEnding); }

bool is_trace_name(const std::string& name) {
  if (!name.starts_with(kPrefix) || !name.ends_with(kEnding)) return false;
  const std::string number =
      name.substr(std::string(kPrefix).size(), name.size() - std::string(kPrefix).size() - std::string(kEnding).size());
  return !number.empty() && std::all_of(number.begin(), number.end(), [](unsigned char c) { return std::isdigit(c); });
}

StepTrace::~StepTrace() {
  if (!records_) return;
  try {
    profiler::disableProfiler();
  } catch (const std::exception& error) {
    log_warn(str("the profiler did not end: ", error.what()));
  }
}

void StepTrace::before(int64_t step) {
  if (step != steps_.first || steps_.first >= steps_.end) return;
  std::set<ActivityType> activities = {ActivityType::CPU};
  if (launch_.device().is_cuda()) activities.insert(ActivityType::CUDA);
  // It asks for GPUs all the same, and calls it an error that there are none.
  else ::setenv("KINETO_LOG_LEVEL", "99", /*overwrite=*/0);
  const torch::profiler::impl::ProfilerConfig config(torch::profiler::impl::ProfilerState::KINETO);
  // What was given to the device before is not the steps'.
  wait_for(launch_.device());
  profiler::prepareProfiler(config, activities);
  profiler::enableProfiler(config, activities);
  profiler::addMetadataJson("distributedInfo",
                            str("{\"rank\": ", launch_.rank(), ", \"world_size\": ", launch_.world_size(), "}"));
  records_ = true;
}

void StepTrace::write(int64_t last_step) {
  wait_for(launch_.device());
  records_ = false;
  const std::unique_ptr<profiler::ProfilerResult> result = profiler::disableProfiler();
  // The profiler takes a URL: a path without "//" is none.
  const fs::path path = fs::absolute(folder_ / trace_name(launch_.rank())).lexically_normal();
  const fs::path temporary = str(path.string(), ".tmp-", ::getpid());
  try {
    result->save(temporary.string());
    require_whole(temporary);
    fs::rename(temporary, path);
    fsync_folder_of(path.string());
  } catch (const std::exception& error) {
    std::error_code ignored;
    fs::remove(temporary, ignored);
    log_warn(str("no trace of steps ", steps_.first + 1, " to ", last_step + 1, ": ", error.what()));
    return;
  }
  log_info(str(path.string(), ": a trace of steps ", steps_.first + 1, " to ", last_step + 1,
               ", one of each rank; ui.perfetto.dev opens it"));
}

}  // namespace moetune
