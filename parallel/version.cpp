#include <torch/types.h>
namespace moetune { int torch_major() { return TORCH_VERSION_MAJOR; } }
