// safetensors without torch: a file of the reference library, malformed files, model folders, the writer.
#include "parallel/bytes/safetensors.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <random>
#include <thread>

#include "parallel/base/error.h"
#include "tests/support/catch.h"
#include "tests/support/message_of.h"
#include "tests/support/reference_safetensors.h"
#include "tests/support/temporary_folder.h"

using namespace moetune;
namespace fs = std::filesystem;

namespace {

std::string file_of(const std::string& header, const std::string& data) {
  const std::uint64_t length = header.size();
  return std::string(reinterpret_cast<const char*>(&length), sizeof(length)) + header + data;
}

// A header of the entry "a" alone.
std::string entry(const std::string& dtype, const std::string& shape, const std::string& offsets) {
  return R"({"a": {"dtype": )" + dtype + R"(, "shape": )" + shape + R"(, "data_offsets": )" + offsets + "}}";
}

std::string bytes_of(const SafetensorsFile& file, const std::string& name) {
  const TensorInfo& info = file.at(name);
  std::string bytes(info.bytes, '\0');
  file.read(info, 0, info.bytes, bytes.data());
  return bytes;
}

// A file of U8 tensors, each with its own name as content.
void write_named(const std::string& path, const std::vector<std::string>& names) {
  std::vector<SafetensorsWriter::Spec> specs;
  for (const std::string& name : names) specs.push_back({name, DType::kU8, {static_cast<std::int64_t>(name.size())}});
  SafetensorsWriter writer(path, specs, {});
  for (const std::string& name : names) writer.append(name, name.data(), name.size());
  writer.commit();
}

void write_index(const std::string& folder, const nlohmann::json& weight_map) {
  write_text_atomically(folder + "/model.safetensors.index.json", nlohmann::json{{"weight_map", weight_map}}.dump());
}

}  // namespace

TEST_CASE("a file of the reference library is understood", "[safetensors]") {
  const TemporaryFolder folder;
  write_text_atomically(folder / "model.safetensors", reference_safetensors());
  const SafetensorsFile file(folder / "model.safetensors");
  CHECK(file.names() == std::vector<std::string>{"e8", "f8", "ids", "none", "on", "scale", "w"});
  CHECK(file.metadata() == StringMap{{"format", "pt"}, {"note", "a"}});
  CHECK(file.total_bytes() == 41);

  const TensorInfo& w = file.at("w");
  CHECK(w.name == "w");
  CHECK(w.dtype == DType::kBF16);
  CHECK(w.shape == std::vector<std::int64_t>{2, 3});
  CHECK(w.numel() == 6);
  CHECK(w.file == folder / "model.safetensors");
  CHECK(w.begin == 8 + 456 + 20);
  CHECK(bytes_of(file, "w") == std::string("\x80\x3f\x00\xc0\x00\x3f\x80\x40\x80\x3e\x00\xc1", 12));
  char middle[2];
  file.read(w, 4, 2, middle);
  CHECK(std::string(middle, 2) == std::string("\x00\x3f", 2));

  CHECK(file.at("scale").shape.empty());
  CHECK(file.at("scale").numel() == 1);
  CHECK(bytes_of(file, "scale") == std::string("\x00\x00\xc0\x3f", 4));
  CHECK(file.at("none").numel() == 0);
  CHECK(bytes_of(file, "none").empty());
  CHECK(file.at("e8").dtype == DType::kF8E8M0);
  CHECK(file.at("f8").dtype == DType::kF8E4M3);
  CHECK(file.at("ids").dtype == DType::kI64);
  CHECK(file.at("on").dtype == DType::kBool);

  CHECK(file.find("x") == nullptr);
  const std::string message = message_of<UserError>([&] { file.at("scales"); });
  CHECK(contains(message, folder / "model.safetensors"));
  CHECK(contains(message, "no tensor \"scales\"; nearest: \"scale\""));
  CHECK_THROWS_AS(file.read(w, 11, 2, middle), InternalError);
  CHECK_THROWS_AS(file.read(w, 13, 0, middle), InternalError);
}

TEST_CASE("all dtypes have a name and a size", "[safetensors]") {
  // From the table of the format's reference implementation.
  const std::vector<std::pair<std::string, int>> expected = {
      {"BOOL", 8},    {"F4", 4},      {"F6_E2M3", 6}, {"F6_E3M2", 6},     {"U8", 8},          {"I8", 8},
      {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}, {"I16", 16},
      {"U16", 16},    {"F16", 16},    {"BF16", 16},   {"I32", 32},        {"U32", 32},        {"F32", 32},
      {"C64", 64},    {"F64", 64},    {"I64", 64},    {"U64", 64}};
  for (const auto& [name, bits] : expected) {
    INFO(name);
    const std::optional<DType> dtype = dtype_of_name(name);
    REQUIRE(dtype.has_value());
    CHECK(dtype_name(*dtype) == name);
    CHECK(size_in_bits(*dtype) == bits);
  }
  CHECK(!dtype_of_name("F99"));
  CHECK(!dtype_of_name("bf16"));

  CHECK(size_in_bytes(DType::kF6E2M3, {4}) == 3);
  CHECK(!size_in_bytes(DType::kF6E2M3, {3}));
  CHECK(!size_in_bytes(DType::kF4, {1}));
  CHECK(size_in_bytes(DType::kF64, {}) == 8);
  CHECK(size_in_bytes(DType::kF64, {5, 0}) == 0);
  CHECK(!size_in_bytes(DType::kU8, {-1}));
  CHECK(!size_in_bytes(DType::kU8, {std::int64_t{1} << 32, std::int64_t{1} << 32}));
  CHECK(!size_in_bytes(DType::kU8, {std::int64_t{1} << 32, 0, std::int64_t{1} << 32}));
  CHECK(!size_in_bytes(DType::kU8, {std::int64_t{1} << 61}));
}

TEST_CASE("each rule of the format is checked, and the message names it", "[safetensors]") {
  struct Case {
    std::string file;
    std::string message;  // part of what must be said; empty: the file is good
  };
  const std::string f32 = "\"F32\"", four(4, 'x'), eight(8, 'x');
  const std::string ab = R"({"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}, )"
                         R"("b": {"dtype": "U8", "shape": [4], "data_offsets": )";
  std::string long_header = file_of("{}", "");
  const std::uint64_t too_long = 100'000'001;
  std::memcpy(long_header.data(), &too_long, 8);
  std::string negative_header = file_of("{}", "");
  std::memset(negative_header.data(), 0xff, 8);
  std::string cut_header = file_of("{}", "");
  cut_header[0] = 3;
  const std::vector<Case> cases = {
      {file_of(entry(f32, "[1]", "[0, 4]"), four), ""},
      {file_of(entry(f32, "[1]", "[0, 4]") + "   ", four), ""},
      {file_of("{}", ""), ""},
      {file_of(ab + "[4, 8]}}", eight), ""},
      {file_of(entry(f32, "[]", "[0, 4]"), four), ""},
      {file_of(entry(f32, "[3, 0]", "[0, 0]"), ""), ""},
      {file_of(entry("\"F4\"", "[2, 4]", "[0, 4]"), four), ""},
      {file_of(R"({"b": {"dtype": "U8", "shape": [4], "data_offsets": [4, 8]}, )"
               R"("a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}})",
               eight),
       ""},
      {file_of(ab + "[4, 4]}}", four), "tensor \"b\": data_offsets span 0 bytes, but a U8 tensor of shape [4] has 4"},
      // length and header
      {"", "0 bytes are too short"},
      {"1234567", "7 bytes are too short"},
      {long_header, "header of 100000001 bytes; at most 100000000"},
      {negative_header, "header of 18446744073709551615 bytes; at most"},
      {cut_header, "header of 3 bytes runs past the end"},
      {file_of("", ""), "does not begin with '{'"},
      {file_of(" {}", ""), "does not begin with '{'"},
      {file_of("\xef\xbb\xbf{}", ""), "does not begin with '{'"},
      {file_of("[]", ""), "does not begin with '{'"},
      {file_of("{", ""), "not valid JSON"},
      {file_of("{}}", ""), "not valid JSON"},
      {file_of(std::string("{}\0", 3), ""), "NUL"},
      {file_of("{\"\xff\": 1}", ""), "not valid JSON"},
      {file_of(R"({"a": {"dtype": "U8", "shape": [[[1]]], "data_offsets": [0, 1]}})", "x"), "nested deeper"},
      {file_of(R"({"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}, )"
               R"("a": {"dtype": "U8", "shape": [4], "data_offsets": [4, 8]}})",
               eight),
       "key \"a\" is given twice"},
      {file_of(R"({"a": {"dtype": "U8", "dtype": "I8", "shape": [4], "data_offsets": [0, 4]}})", four),
       "key \"dtype\" is given twice"},
      // metadata
      {file_of(R"({"__metadata__": {"a": "b"}})", ""), ""},
      {file_of(R"({"__metadata__": {"a": 1}})", ""), "__metadata__ \"a\" must be a string"},
      {file_of(R"({"__metadata__": "a"})", ""), "__metadata__ must be an object"},
      // entries
      {file_of(R"({"a": 1})", ""), "tensor \"a\": its header entry must be an object"},
      {file_of(R"({"a": {"dtype": "U8", "shape": [4]}})", four), "exactly dtype, shape and data_offsets"},
      {file_of(R"({"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4], "strides": [1]}})", four),
       "exactly dtype, shape and data_offsets"},
      {file_of(entry("\"F99\"", "[1]", "[0, 4]"), four), "unknown dtype \"F99\""},
      {file_of(entry("4", "[1]", "[0, 4]"), four), "unknown dtype (not a string)"},
      {file_of(entry(f32, "1", "[0, 4]"), four), "shape must be an array"},
      {file_of(entry(f32, "[1.0]", "[0, 4]"), four), "shape must hold integers"},
      {file_of(entry(f32, "[-1]", "[0, 4]"), four), "shape must hold integers"},
      {file_of(entry(f32, "[\"1\"]", "[0, 4]"), four), "shape must hold integers"},
      {file_of(entry(f32, "[9223372036854775808]", "[0, 4]"), four), "shape must hold integers"},
      {file_of(entry(f32, "[18446744073709551617]", "[0, 4]"), four), "shape must hold integers"},
      {file_of(entry(f32, "[4294967296, 4294967297]", "[0, 4]"), four), "overflows"},
      {file_of(entry(f32, "[2305843009213693953]", "[0, 4]"), four), "overflows"},
      {file_of(entry("\"F4\"", "[7]", "[0, 4]"), four), "does not fill whole bytes"},
      {file_of(entry(f32, "[1]", "[0]"), four), "data_offsets must be [begin, end]"},
      {file_of(entry(f32, "[1]", "4"), four), "data_offsets must be [begin, end]"},
      {file_of(entry(f32, "[1]", "[0, -4]"), four), "data_offsets must hold integers"},
      {file_of(entry(f32, "[1]", "[4, 0]"), four), "do not lie in the file"},
      {file_of(entry(f32, "[1]", "[0, 4]"), "xxx"), "do not lie in the file, which holds 3 bytes"},
      {file_of(entry(f32, "[1]", "[9223372036854775804, 9223372036854775807]"), four), "do not lie in the file"},
      {file_of(entry(f32, "[2]", "[0, 4]"), four), "span 4 bytes, but a F32 tensor of shape [2] has 8"},
      // cover
      {file_of(entry(f32, "[1]", "[4, 8]"), eight), "hole before it"},
      {file_of(ab + "[5, 9]}}", eight + "x"), "tensor \"b\" begins at byte"},
      {file_of(ab + "[3, 7]}}", eight), "overlaps another tensor"},
      {file_of(ab + "[0, 4]}}", four), "overlaps another tensor"},
      {file_of(R"({"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}, )"
               R"("z": {"dtype": "U8", "shape": [0], "data_offsets": [2, 2]}})",
               four),
       "overlaps another tensor"},
      {file_of(R"({"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}, )"
               R"("z": {"dtype": "U8", "shape": [0], "data_offsets": [4, 4]}})",
               four),
       ""},
      {file_of(entry(f32, "[1]", "[0, 4]"), four + "x"), "1 bytes follow the last tensor"},
      {file_of("{}", "x"), "1 bytes follow the last tensor"},
  };
  const TemporaryFolder folder;
  for (const Case& one : cases) {
    INFO(one.file);
    write_text_atomically(folder / "a.safetensors", one.file);
    const std::string message = message_of<UserError>([&] { SafetensorsFile{folder / "a.safetensors"}; });
    INFO(message);
    if (one.message.empty()) {
      CHECK(message == "(nothing was thrown)");
    } else {
      CHECK(contains(message, one.message));
      CHECK(contains(message, folder / "a.safetensors"));
    }
  }
}

TEST_CASE("20,000 mutated headers are read or refused", "[safetensors]") {
  // in memory: a disk would take a minute for 20,000 rewrites
  const int descriptor = ::memfd_create("mutated", MFD_CLOEXEC);
  REQUIRE(descriptor >= 0);
  const std::string path = str("/proc/self/fd/", descriptor);
  const std::string valid = reference_safetensors();
  const std::size_t header_end = 8 + 456;
  std::mt19937 random(20260101);
  const auto below = [&](std::size_t end) { return static_cast<std::size_t>(random() % end); };
  int opened = 0, refused = 0;
  for (int i = 0; i < 20'000; ++i) {
    std::string mutated = valid;
    const std::size_t flips = 1 + below(4);
    for (std::size_t flip = 0; flip < flips; ++flip) {
      char& byte = mutated[below(header_end)];
      // every other time a byte that JSON cares about, to come further than the syntax
      byte = below(2) == 0 ? static_cast<char>(byte ^ (1 << below(8))) : "0123456789[]{},:\"-"[below(18)];
    }
    if (below(8) == 0) mutated.resize(below(mutated.size() + 1));
    const bool written = ::ftruncate(descriptor, 0) == 0 && ::pwrite(descriptor, mutated.data(), mutated.size(), 0) ==
                                                                static_cast<ssize_t>(mutated.size());
    if (!written) FAIL("cannot write mutation " << i);
    try {
      const SafetensorsFile file(path);
      std::uint64_t total = 0;
      for (const std::string& name : file.names()) total += bytes_of(file, name).size();
      if (total != 41) FAIL("mutation " << i << " opened with " << total << " bytes of tensors");
      ++opened;
    } catch (const UserError&) {
      ++refused;
    }
  }
  ::close(descriptor);
  CHECK(opened > 100);
  CHECK(refused > 10'000);
}

TEST_CASE("a file that changes after its header was read is refused", "[safetensors]") {
  const TemporaryFolder folder;
  write_named(folder / "a.safetensors", {"a"});
  const SafetensorsFile file(folder / "a.safetensors");
  write_named(folder / "a.safetensors", {"a"});
  CHECK(contains(message_of<UserError>([&] { bytes_of(file, "a"); }), "has changed"));
}

TEST_CASE("a folder of shards is one model", "[safetensors]") {
  const TemporaryFolder folder;
  write_named(folder / "model-00001-of-00002.safetensors", {"embed", "layers.0.w", "orphan"});
  write_named(folder / "model-00002-of-00002.safetensors", {"layers.1.w", "head"});
  write_index(folder.path(), {{"embed", "model-00001-of-00002.safetensors"},
                              {"layers.0.w", "model-00001-of-00002.safetensors"},
                              {"layers.1.w", "model-00002-of-00002.safetensors"},
                              {"head", "model-00002-of-00002.safetensors"}});
  const SafetensorsFolder model(folder.path());
  CHECK(model.names() == std::vector<std::string>{"embed", "head", "layers.0.w", "layers.1.w"});
  CHECK(model.total_bytes() == 5 + 4 + 10 + 10);
  CHECK(model.metadata() == StringMap{{"format", "pt"}});
  CHECK(model.find("orphan") == nullptr);
  CHECK(model.at("head").file == folder / "model-00002-of-00002.safetensors");
  CHECK(contains(message_of<UserError>([&] { model.at("layers.2.w"); }), "nearest: \"layers.0.w\", \"layers.1.w\""));

  // many threads at once, each opening and reading both shards
  std::vector<std::string> seen(8);
  std::vector<std::thread> threads;
  for (std::string& text : seen) {
    threads.emplace_back([&] {
      for (const std::string& name : model.names()) {
        const TensorInfo& info = model.at(name);
        std::string bytes(info.bytes, '\0');
        model.read(info, 0, info.bytes, bytes.data());
        text += bytes + " ";
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const std::string& text : seen) CHECK(text == "embed head layers.0.w layers.1.w ");
}

TEST_CASE("a folder with one file needs no index", "[safetensors]") {
  const TemporaryFolder folder;
  CHECK(contains(message_of<UserError>([&] { SafetensorsFolder{folder.path()}; }), "holds neither"));
  CHECK(contains(message_of<UserError>([&] { SafetensorsFolder{folder / "no"}; }), "not a folder"));
  write_text_atomically(folder / "model.safetensors", reference_safetensors());
  const SafetensorsFolder model(folder.path());
  CHECK(model.names().size() == 7);
  CHECK(model.metadata().at("note") == "a");
  write_index(folder.path(), {{"w", "model.safetensors"}});
  CHECK(contains(message_of<UserError>([&] { SafetensorsFolder{folder.path()}; }), "holds both"));
}

TEST_CASE("a broken index is refused", "[safetensors]") {
  const TemporaryFolder folder;
  const auto refusal = [&](const std::string& index) {
    write_text_atomically(folder / "model.safetensors.index.json", index);
    return message_of<UserError>([&] { SafetensorsFolder{folder.path()}; });
  };
  write_named(folder / "a.safetensors", {"a"});
  CHECK(refusal(R"({"metadata": {"total_size": 1}, "weight_map": {"a": "a.safetensors"}})") == "(nothing was thrown)");
  CHECK(contains(refusal("[]"), "is not a JSON object"));
  CHECK(contains(refusal("{}"), "needs an object \"weight_map\""));
  CHECK(contains(refusal(R"({"weight_map": {}})"), "needs an object \"weight_map\""));
  CHECK(contains(refusal(R"({"weight_map": {"a": "a.safetensors", "a": "a.safetensors"}})"), "given twice"));
  CHECK(contains(refusal(R"({"weight_map": {"a": 1}})"), "tensor \"a\" to something else than a string"));
  CHECK(contains(refusal(R"({"weight_map": {"b": "a.safetensors"}})"), "does not hold it"));
  CHECK(contains(refusal(R"({"weight_map": {"a": "b.safetensors"}})"), "No such file"));
  write_text_atomically(folder / "b.safetensors", file_of("{}", "x"));
  CHECK(contains(refusal(R"({"weight_map": {"a": "b.safetensors"}})"), "b.safetensors: 1 bytes follow"));
}

TEST_CASE("no path of an index leaves the folder", "[safetensors]") {
  const TemporaryFolder root;
  const std::string model = root / "model";
  fs::create_directories(model + "/sub");
  for (const std::string& path :
       {root / "out.safetensors", model + "/in.safetensors", model + "/sub/in.safetensors", model + "/in.bin"}) {
    write_named(path, {"a"});
  }
  const auto refusal = [&](const std::string& shard) {
    write_index(model, {{"a", shard}});
    return message_of<UserError>([&] { SafetensorsFolder{model}; });
  };
  CHECK(refusal("in.safetensors") == "(nothing was thrown)");
  for (const std::string& shard :
       {root / "out.safetensors", std::string("../out.safetensors"), std::string("sub/in.safetensors"),
        std::string("./in.safetensors"), std::string("in.bin"), std::string(".safetensors"), std::string(""),
        std::string(".."), std::string("in.safetensors/"), std::string("in.safetensors\0.safetensors", 27)}) {
    INFO(shard);
    CHECK(contains(refusal(shard), "allowed is the plain name of a file in the same folder"));
  }
  fs::create_symlink("loop.safetensors", model + "/loop.safetensors");
  CHECK(contains(refusal("loop.safetensors"), "cannot resolve the path"));
  fs::create_symlink("sub", model + "/folder.safetensors");
  CHECK(contains(refusal("folder.safetensors"), "not a regular file"));
  fs::create_symlink("/dev/zero", model + "/device.safetensors");
  CHECK(contains(refusal("device.safetensors"), "not a regular file"));
}

TEST_CASE("links to regular files are followed in a folder of one's own", "[safetensors]") {
  const TemporaryFolder root;
  const std::string model = root / "model";
  fs::create_directories(model + "/sub");
  write_named(root / "out.safetensors", {"a"});
  write_named(model + "/sub/in.safetensors", {"a"});
  write_text_atomically(root / "index.json", R"({"weight_map": {"a": "link.safetensors"}})");
  fs::create_symlink("sub", model + "/hop");
  for (const char* target : {"../out.safetensors", "hop/../../out.safetensors", "sub/in.safetensors"}) {
    INFO(target);
    fs::create_symlink(target, model + "/model.safetensors");
    CHECK(SafetensorsFolder(model).names() == std::vector<std::string>{"a"});
    fs::rename(model + "/model.safetensors", model + "/link.safetensors");
    fs::create_symlink("../index.json", model + "/model.safetensors.index.json");
    CHECK(SafetensorsFolder(model).names() == std::vector<std::string>{"a"});
    fs::remove(model + "/link.safetensors");
    fs::remove(model + "/model.safetensors.index.json");
  }
  if (::geteuid() != 0) return;
  // Of another user, no link leads out.
  fs::create_symlink("../out.safetensors", model + "/model.safetensors");
  REQUIRE(::chown(model.c_str(), 12345, 12345) == 0);
  CHECK(contains(message_of<UserError>([&] { SafetensorsFolder{model}; }), "outside the model folder"));
  fs::remove(model + "/model.safetensors");
  fs::create_symlink("sub/in.safetensors", model + "/model.safetensors");
  CHECK(SafetensorsFolder(model).names() == std::vector<std::string>{"a"});
}

TEST_CASE("links of a Hugging Face cache lead into its blobs, whoever owns it", "[safetensors]") {
  const TemporaryFolder root;
  const std::string snapshot = root / "models--a--b/snapshots/0123abcd";
  fs::create_directories(snapshot);
  fs::create_directories(root / "models--a--b/blobs");
  fs::create_directories(root / "models--evil/blobs");
  write_named(root / "models--a--b/blobs/77aa", {"a"});
  write_named(root / "models--evil/blobs/77aa", {"a"});
  if (::geteuid() == 0) REQUIRE(::chown(snapshot.c_str(), 12345, 12345) == 0);
  fs::create_symlink("../../blobs/77aa", snapshot + "/model.safetensors");
  CHECK(SafetensorsFolder(snapshot).names() == std::vector<std::string>{"a"});
  fs::create_directory_symlink(snapshot, root / "current");
  CHECK(SafetensorsFolder(root / "current").names() == std::vector<std::string>{"a"});
  if (::geteuid() != 0) return;
  fs::remove(snapshot + "/model.safetensors");
  fs::create_symlink("../../../models--evil/blobs/77aa", snapshot + "/model.safetensors");
  CHECK(contains(message_of<UserError>([&] { SafetensorsFolder{snapshot}; }), "outside the model folder"));
}

TEST_CASE("shards without an index are read where they are all there", "[safetensors]") {
  const TemporaryFolder folder;
  const auto said = [&] { return message_of<UserError>([&] { SafetensorsFolder{folder.path()}; }); };
  const auto name = [&](int number, int count) {
    char text[64];
    std::snprintf(text, sizeof text, "model-%05d-of-%05d.safetensors", number, count);
    return folder / text;
  };
  write_named(name(1, 3), {"a", "b"});
  write_named(name(3, 3), {"d"});
  CHECK(contains(said(), "holds 2 of the 3 files model-N-of-3.safetensors"));
  CHECK(contains(said(), "missing are N = 2. Finish the download"));
  write_named(name(2, 3), {"c"});
  CHECK(SafetensorsFolder(folder.path()).names() == std::vector<std::string>{"a", "b", "c", "d"});
  write_named(name(2, 3), {"a"});
  CHECK(contains(said(), "holds tensor \"a\", which"));
  write_named(name(2, 3), {"c"});
  write_named(name(1, 2), {"z"});
  CHECK(contains(said(), "are not of one set of shards"));
  fs::remove(name(1, 2));
  write_named(folder / "model.safetensors", {"z"});
  CHECK(contains(said(), "holds both model.safetensors and \"model-00001-of-00003.safetensors\""));
  fs::remove(folder / "model.safetensors");
  // An index decides, as ever.
  write_index(folder.path(), {{"b", "model-00001-of-00003.safetensors"}});
  CHECK(SafetensorsFolder(folder.path()).names() == std::vector<std::string>{"b"});
  fs::remove(folder / "model.safetensors.index.json");
  write_named(name(999999999, 999999999), {"y"});
  CHECK(contains(said(), "are not of one set of shards"));
}

TEST_CASE("what stands in the place of weights is named with its fix", "[safetensors]") {
  const TemporaryFolder folder;
  const auto said = [&](const std::string& path) { return message_of<UserError>([&] { SafetensorsFolder{path}; }); };
  CHECK(contains(said(folder.path()), "Finish the download, or use model.weights: random"));
  for (const char* name : {"pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "consolidated.00.pth"}) {
    write_text_atomically(folder / name, "x");
    CHECK(contains(said(folder.path()), std::string("but \"") + name + "\""));
    CHECK(contains(said(folder.path()), "can run code"));
    fs::remove(folder / name);
  }
  write_named(folder / "weights.safetensors", {"a"});
  CHECK(contains(said(folder.path()), "but \"weights.safetensors\"; rename a single file to model.safetensors"));
  CHECK(contains(said(folder / "weights.safetensors"), "not a folder; give the folder of a model, not a file in it"));
  fs::create_directory(folder / "model.safetensors");
  CHECK(contains(said(folder.path()), "not a regular file"));
  fs::remove(folder / "model.safetensors");
  fs::create_directory(folder / "model.safetensors.index.json");
  CHECK(contains(said(folder.path()), "not a regular file"));
}

TEST_CASE("the writer's file reads back", "[safetensors]") {
  const TemporaryFolder folder;
  const std::string path = folder / "a.safetensors";
  {
    SafetensorsWriter writer(
        path, {{"b", DType::kF32, {2}}, {"none", DType::kF32, {0, 2}}, {"a", DType::kU8, {}}, {"end", DType::kU8, {0}}},
        {{"note", "x\"y"}});
    writer.append("b", "01234", 5);
    writer.append("b", "567", 3);
    writer.append("none", nullptr, 0);
    writer.append("a", "z", 1);
    CHECK(!fs::exists(path));
    writer.commit();
  }
  const SafetensorsFile file(path);
  CHECK(file.names() == std::vector<std::string>{"a", "b", "end", "none"});
  CHECK(file.metadata() == StringMap{{"format", "pt"}, {"note", "x\"y"}});
  CHECK(bytes_of(file, "b") == "01234567");
  CHECK(bytes_of(file, "a") == "z");
  CHECK(file.at("none").shape == std::vector<std::int64_t>{0, 2});
  CHECK(file.at("a").shape.empty());
  CHECK(file.at("b").begin % 8 == 0);
  CHECK(file.at("b").begin < file.at("a").begin);
}

TEST_CASE("the writer refuses what would make a wrong file", "[safetensors]") {
  const TemporaryFolder folder;
  const std::string path = folder / "a.safetensors";
  using Specs = std::vector<SafetensorsWriter::Spec>;
  const auto declared = [&](const Specs& specs) {
    return message_of<InternalError>([&] { SafetensorsWriter{path, specs, {}}; });
  };
  CHECK(contains(declared({{"a", DType::kU8, {1}}, {"a", DType::kU8, {1}}}), "declared twice"));
  CHECK(contains(declared({{"__metadata__", DType::kU8, {1}}}), "reserved name"));
  CHECK(contains(declared({{"a", DType::kU8, {-1}}}), "overflows"));
  {
    SafetensorsWriter writer(path, {{"a", DType::kU8, {2}}, {"b", DType::kU8, {2}}}, {});
    CHECK(contains(message_of<InternalError>([&] { writer.append("b", "xx", 2); }), "where \"a\" is due"));
    CHECK(contains(message_of<InternalError>([&] { writer.append("a", "xxx", 3); }), "misses only 2"));
    writer.append("a", "xx", 2);
    writer.append("b", "x", 1);
    CHECK(contains(message_of<InternalError>([&] { writer.commit(); }), "tensor \"b\" misses 1 bytes"));
    writer.append("b", "x", 1);
    CHECK(contains(message_of<InternalError>([&] { writer.append("b", "x", 1); }), "all tensors are complete"));
  }
  CHECK(fs::is_empty(folder.path()));
}
