#include "parallel/comm/gathered_text.h"

#include <ATen/ATen.h>

#include <algorithm>

namespace moetune {

std::vector<std::string> gathered_text(Communicator& group, const std::string& text) {
  const at::Device device = group.device();
  const int64_t size = static_cast<int64_t>(text.size());
  at::Tensor sizes = at::empty({group.size()}, at::TensorOptions(at::kLong).device(device));
  group.all_gather(sizes, at::full({1}, size, sizes.options()));
  sizes = sizes.cpu();
  const int64_t longest = sizes.max().item<int64_t>();
  at::Tensor own = at::zeros({longest}, at::kByte);
  std::copy(text.begin(), text.end(), own.data_ptr<uint8_t>());
  at::Tensor all = at::empty({group.size(), longest}, at::TensorOptions(at::kByte).device(device));
  group.all_gather(all, own.to(device));
  all = all.cpu();
  std::vector<std::string> texts;
  for (int rank = 0; rank < group.size(); ++rank) {
    texts.emplace_back(static_cast<const char*>(all.const_data_ptr()) + rank * longest, sizes[rank].item<int64_t>());
  }
  return texts;
}

}  // namespace moetune
