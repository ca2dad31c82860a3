// What a device is called, for reports.
//
//   device_name(at::kCUDA) == "NVIDIA H200"
#pragma once

#include <c10/core/Device.h>

#include <string>

namespace moetune {

/// As the driver names a GPU and the kernel a CPU; empty where neither says it.
std::string device_name(c10::Device device);

}  // namespace moetune
