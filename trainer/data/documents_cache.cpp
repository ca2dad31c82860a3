// Documents::from_cache: the token file that `moetune prepare` writes.
#include <string>

#include "trainer/data/documents.h"

namespace moetune {

Documents Documents::from_cache(const std::string& path, std::int64_t vocab_size, const std::string& name) {
  return Documents(TokenSource::of_cache(path, name.empty() ? path : name), vocab_size);
}

}  // namespace moetune
