#include "trainer/plan/draw_call.h"

#include "parallel/base/program_files.h"
#include "parallel/base/python_call.h"
#include "parallel/base/temporary_file.h"

namespace moetune {

std::string drawn(const std::string& what, const std::string& json) {
  const ProgramFiles files = program_files();
  const TemporaryFile file(json);
  return python_output({chosen_python(files), files.draw.string(), what, file.path()}, "drawing the " + what,
                       ErrorText::kThrown);
}

}  // namespace moetune
