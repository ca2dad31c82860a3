// The file tier: what one rank of one mesh left on disk, any rank of any other finds; what is not as it was left is
// packed anew.
#include "tests/support/catch.h"

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <optional>

#include "lora/frozen_slab.h"
#include "lora/slab_cache.h"
#include "parallel/base/error.h"
#include "parallel/base/sha256.h"
#include "parallel/bytes/tensor_io.h"
#include "parallel/bytes/weight_store.h"
#include "tests/support/message_of.h"
#include "tests/support/numbers.h"
#include "tests/support/stand_in_group.h"
#include "tests/support/temporary_folder.h"

using namespace moetune;
namespace fs = std::filesystem;

namespace {

constexpr int64_t E = 6, O = 128, I = 384;
constexpr const char* kFile = "/layer-003-experts.safetensors";

/// What a rank holds of a layer of experts with two maps each, of which the second is cut.
struct Part {
  BaseFormat format = BaseFormat::kNf4;
  MatrixCut cut = {};
  int64_t first = 0, count = E;
  int rank = 0, ranks = 1;
};

at::Tensor weight_of(const std::string& name) {
  return random_normal({O, I}, std::hash<std::string>{}(name), at::kBFloat16);
}

/// Fills a slab through `cache` (null: from the matrices alone); returns the bytes that the rank keeps, and adds to
/// `asked` the names that were asked of the checkpoint.
at::Tensor filled(const Part& part, SlabCache* cache, std::vector<std::string>& asked) {
  StandInGroup place(part.rank, part.ranks);
  WeightStore store(at::kCPU);
  SlabPlacement placement;
  placement.expert_replicas = part.ranks > 1 ? &place : nullptr;
  FrozenSlabs slabs(store, placement, cache);
  FrozenSlab& slab = slabs.add(SlabKind::kExperts, LayerId::block(3), part.count, {part.first, E});
  FrozenWeight up({part.format, part.count, O, I, {}}, at::kCPU, at::kFloat),
      down({part.format, part.count, O, I, part.cut}, at::kCPU, at::kFloat);
  slab.hold(up, "m.experts.*.up.weight");
  slab.hold(down, "m.experts.*.down.weight");
  slab.close();
  slab.fill([&](const std::string& name, at::IntArrayRef shape) {
    CHECK(shape == at::IntArrayRef({O, I}));
    asked.push_back(name);
    return weight_of(name);
  });
  return slab.kept().second.clone();
}

at::Tensor filled(const Part& part, SlabCache* cache) {
  std::vector<std::string> asked;
  return filled(part, cache, asked);
}

/// Changes one byte of a file.
void flip(const std::string& path, uint64_t offset) {
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  char byte = 0;
  file.seekg(static_cast<std::streamoff>(offset)).read(&byte, 1);
  byte = static_cast<char>(byte ^ 1);
  file.seekp(static_cast<std::streamoff>(offset)).write(&byte, 1);
  REQUIRE(file.good());
}

}  // namespace

TEST_CASE("what one slab left, a slab of any cut, run of experts and shard takes, and asks for no matrix",
          "[slab_cache]") {
  for (const BaseFormat format : {BaseFormat::kNf4, BaseFormat::kNf4Double, BaseFormat::kBf16, BaseFormat::kFp32}) {
    TemporaryFolder folder;
    // The ones that fill it: the last four experts, cut, on two shards, then the first two on one rank.
    for (const Part& part : {Part{format, {MatrixCut::Dim::kInputs, 1, 2}, 2, 4, 0, 2},
                             Part{format, {MatrixCut::Dim::kInputs, 1, 2}, 2, 4, 1, 2}, Part{format, {}, 0, 2}}) {
      SlabCache cache(folder.path());
      CHECK(at::equal(filled(part, &cache), filled(part, nullptr)));
      CHECK(cache.written_bytes() > 0);
    }
    for (const auto dim : {MatrixCut::Dim::kNone, MatrixCut::Dim::kOutputs, MatrixCut::Dim::kInputs}) {
      for (const int ranks : {1, 4, 7}) {
        for (int rank = 0; rank < ranks; ++rank) {
          for (const int64_t first : {0, 3}) {
            INFO(to_string(format) << ", cut " << static_cast<int>(dim) << ", shard " << rank << " of " << ranks
                                   << ", experts from " << first);
            const Part part{format, {dim, 1, 2}, first, 3, rank, ranks};
            SlabCache cache(folder.path());
            std::vector<std::string> asked;
            CHECK(at::equal(filled(part, &cache, asked), filled(part, nullptr)));
            CHECK(asked.empty());
            CHECK(cache.written_bytes() == 0);
            CHECK(cache.complaints().empty());
          }
        }
      }
    }
  }
}

TEST_CASE("the file is safetensors: each matrix whole under its name, with its SHA-256", "[slab_cache]") {
  TemporaryFolder folder;
  SlabCache cache(folder.path());
  filled({BaseFormat::kNf4Double, {MatrixCut::Dim::kOutputs, 1, 2}, 2, 2}, &cache);
  const SafetensorsFile file(folder.path() + kFile);
  CHECK(file.names().size() == 1 + E * 2 * 4);
  const at::Tensor digests = read_tensor(file, "sha256");
  const Nf4Tensor expected = nf4_quantise(weight_of("m.experts.3.down.weight"), true);
  std::string bytes;
  for (const auto& [part, tensor] :
       std::vector<std::pair<std::string, at::Tensor>>{{"codes", expected.codes},
                                                       {"absmax_codes", expected.double_absmax->codes},
                                                       {"nested_absmax", expected.double_absmax->nested_absmax},
                                                       {"offset", expected.double_absmax->offset}}) {
    CHECK(at::equal(read_tensor(file, "m.experts.3.down.weight/" + part), tensor));
    bytes.append(static_cast<const char*>(tensor.data_ptr()), tensor.nbytes());
  }
  const Sha256Bytes digest = sha256_of(bytes.data(), bytes.size());
  CHECK(std::memcmp(digests[3 * 2 + 1].contiguous().data_ptr(), digest.data(), digest.size()) == 0);
  // Experts of other ranks are not there, and say so.
  CHECK(digests.any(1).sum().item<int64_t>() == 4);
  CHECK(digests[0].eq(0).all().item<bool>());
  const std::optional<SlabFileState> state = slab_file_state(folder.path() + kFile);
  REQUIRE(state.has_value());
  CHECK(state->layer == 3);
  CHECK(state->matrices == 4);
  CHECK(state->all_matrices == 12);
}

TEST_CASE("a matrix that is damaged, cut off or half written is asked for again, it alone, and mended",
          "[slab_cache]") {
  TemporaryFolder folder;
  const Part part;
  const at::Tensor expected = filled(part, nullptr);
  const std::string path = folder.path() + kFile;
  {
    SlabCache cache(folder.path());
    filled(part, &cache);
  }
  const TensorInfo victim = SafetensorsFile(path).at("m.experts.4.up.weight/codes"),
                   last = SafetensorsFile(path).at("m.experts.5.down.weight/absmax");
  const uint64_t digests = SafetensorsFile(path).at("sha256").begin;
  std::vector<std::string> lost = {"m.experts.4.up.weight"};
  bool said = true;
  SECTION("a bit of its codes") { flip(path, victim.begin + 77); }
  SECTION("a bit of its digest") { flip(path, digests + 32 * 8 + 5); }
  SECTION("its digest not yet written: as a rank leaves it that is killed before") {
    std::fstream(path, std::ios::in | std::ios::out | std::ios::binary)
        .seekp(static_cast<std::streamoff>(digests + 32 * 8))
        .write(std::string(32, '\0').data(), 32);
    said = false;
  }
  SECTION("the end of the file") {
    fs::resize_file(path, last.begin + 3);
    lost = {"m.experts.5.down.weight"};
  }
  SECTION("the whole file but its header") {
    fs::resize_file(path, digests);
    lost.clear();
    for (int e = 0; e < E; ++e) {
      for (const char* map : {"up", "down"}) lost.push_back(moetune::str("m.experts.", e, ".", map, ".weight"));
    }
    said = false;
  }
  SlabCache cache(folder.path());
  std::vector<std::string> asked;
  CHECK(at::equal(filled(part, &cache, asked), expected));
  CHECK(asked == lost);
  CHECK(contains(cache.complaints(), lost.front() + " differs from its SHA-256; it is packed anew") == said);
  CHECK(cache.complaints().empty() == !said);
  SlabCache again(folder.path());
  asked.clear();
  CHECK(at::equal(filled(part, &again, asked), expected));
  CHECK(asked.empty());
  CHECK(again.complaints().empty());
}

TEST_CASE("a header that is damaged is written anew and loses nothing", "[slab_cache]") {
  TemporaryFolder folder;
  SlabCache first(folder.path()), second(folder.path());
  filled({}, &first);
  flip(folder.path() + kFile, 20);
  std::vector<std::string> asked;
  CHECK(at::equal(filled({}, &second, asked), filled({}, nullptr)));
  CHECK(asked.empty());
  CHECK(SafetensorsFile(folder.path() + kFile).names().size() == 1 + E * 2 * 2);
}

TEST_CASE("where nothing can be written the slab is filled all the same, and the reason said once", "[slab_cache]") {
  TemporaryFolder folder;
  std::ofstream(folder / "file") << "no folder";
  SlabCache cache(folder / "file/cache");
  for (int layer = 0; layer < 2; ++layer) CHECK(at::equal(filled({}, &cache), filled({}, nullptr)));
  CHECK(cache.complaints() ==
        folder / "file/cache: cannot make the folder: Not a directory; what is not in the cache stays out of it\n");
  CHECK(cache.written_bytes() == 0);
}

TEST_CASE("two ranks that fill a file at once leave it whole", "[slab_cache]") {
  TemporaryFolder folder;
  SlabCache a(folder.path()), b(folder.path());
  // One inside the other: between a matrix and the next of the one, the other fills the whole file.
  const Part part;
  WeightStore store(at::kCPU);
  FrozenSlabs slabs(store, {}, &a);
  FrozenSlab& slab = slabs.add(SlabKind::kExperts, LayerId::block(3), E, {0, E});
  FrozenWeight up({part.format, E, O, I, {}}, at::kCPU, at::kFloat),
      down({part.format, E, O, I, {}}, at::kCPU, at::kFloat);
  slab.hold(up, "m.experts.*.up.weight");
  slab.hold(down, "m.experts.*.down.weight");
  slab.close();
  int asked_for = 0;
  slab.fill([&](const std::string& name, at::IntArrayRef) {
    if (++asked_for == 5) filled(part, &b);
    return weight_of(name);
  });
  SlabCache again(folder.path());
  std::vector<std::string> asked;
  CHECK(at::equal(filled(part, &again, asked), filled(part, nullptr)));
  CHECK(asked.empty());
  CHECK(b.found_bytes() > 0);  // what the other had left by then
}

TEST_CASE("what was packed with values that are no numbers is asked of the checkpoint again", "[slab_cache]") {
  for (const BaseFormat format : {BaseFormat::kBf16, BaseFormat::kFp32, BaseFormat::kNf4}) {
    TemporaryFolder folder;
    const FrozenShape shape{format, 1, O, I, {}};
    std::vector<at::Tensor> parts;
    for (const PackedPart& part : shape.parts()) parts.push_back(at::ones({part.elements}, part.dtype));
    SlabCache cache(folder.path());
    const auto file = cache.open("layer-003-experts", {{"a", shape}, {"b", shape}});
    file->put(0, parts);
    parts.back()[1].fill_(std::nan(""));
    file->put(1, parts);
    INFO(to_string(format));
    CHECK(file->find(0));
    CHECK(!file->find(1));
    CHECK(contains(cache.complaints(), "b holds values that are NaN or infinite"));
  }
}
