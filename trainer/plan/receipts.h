// What runs said of their plans: the receipts that training leaves in run folders, and what the planner learns of them.
//
//   const Receipts receipts = load_receipts("runs");     // every receipt.json below that folder
//   std::cout << receipts.table();
//   receipts.correct(request);                           // its machine computes as long as receipts say
#pragma once

#include <string>
#include <vector>

#include "trainer/plan/run_plan.h"

namespace moetune {

/// Of one run: predicted at its start, measured at its end.
struct Receipt {
  std::string path, device;  ///< of the GPU or CPU, as the driver names it
  double predicted_step_s = 0.0, measured_step_s = 0.0;
  double predicted_computing_s = 0.0, measured_computing_s = 0.0;  ///< without the waits for others
  double predicted_bytes = 0.0, measured_bytes = 0.0;
  double computing = 1.0;  ///< the correction that the prediction had in it
};

class Receipts {
 public:
  explicit Receipts(std::vector<Receipt> receipts) : receipts_(std::move(receipts)) {}

  /// A line a run, and what follows for each device.
  std::string table() const;
  std::string json() const;
  /// Where some receipts are of the device of the request's machine, it computes as their median says.
  void correct(PlanRequest& request) const;

 private:
  /// Of a device: what computing took over the sum of its parts, the median of its receipts; none: 0.
  double computing(const std::string& device, int64_t* count) const;

  std::vector<Receipt> receipts_;
};

constexpr const char* kReceiptFormat = "moetune-receipt-1";
/// Throws UserError where there is none, or one is damaged.
Receipts load_receipts(const std::string& folder);

}  // namespace moetune
