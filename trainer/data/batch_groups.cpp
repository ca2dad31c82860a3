#include "trainer/data/batch_groups.h"

#include "parallel/base/error.h"

namespace moetune {
namespace {

template <typename Value>
std::vector<Value> part(const std::vector<Value>& all, std::int64_t begin, std::int64_t end) {
  return all.empty() ? all : std::vector<Value>(all.begin() + begin, all.begin() + end);
}

}  // namespace

std::vector<RankBatch> batch_groups(const RankBatch& local, std::int64_t count) {
  MT_CHECK(count >= 1, count, " groups");
  if (count == 1) return {local};
  const auto num_documents = static_cast<std::int64_t>(local.documents.size());
  const std::vector<std::int64_t>& begins = local.document_begins;
  std::vector<RankBatch> groups;
  std::int64_t first = 0;
  for (const std::int64_t end : group_ends(begins, count)) {
    const std::int64_t from = begins[first], to = begins[end];
    RankBatch one;
    one.global = local.global;
    one.tokens = part(local.tokens, from, to);
    one.targets = part(local.targets, from, to);
    one.target_weights = part(local.target_weights, from, to);
    one.positions = part(local.positions, from, to);
    one.global_tokens = part(local.global_tokens, from, to);
    one.documents = part(local.documents, first, end);
    for (std::int64_t document = first; document <= end; ++document) {
      one.document_begins.push_back(begins[document] - from);
    }
    one.sequence_begins = {0, to - from};
    groups.push_back(std::move(one));
    first = end;
  }
  MT_CHECK(first == num_documents, first, " of ", num_documents, " documents are in groups");
  return groups;
}

}  // namespace moetune
