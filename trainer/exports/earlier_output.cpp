#include "trainer/exports/earlier_output.h"

#include <filesystem>

#include "parallel/base/error.h"

namespace moetune {

void require_replaceable(const std::string& to, const std::function<bool()>& is_earlier, const std::string& place,
                         const std::string& what) {
  namespace fs = std::filesystem;
  std::error_code ignored;
  if (!fs::exists(fs::symlink_status(to, ignored))) return;
  bool earlier = fs::is_regular_file(to, ignored);
  try {
    earlier = earlier && is_earlier();
  } catch (const UserError&) {
    earlier = false;
  }
  if (!earlier) throw UserError(str(place, ": is there already, and holds no ", what, "; name a new file"));
}

}  // namespace moetune
