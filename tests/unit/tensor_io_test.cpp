// Torch tensors in safetensors files.
#include "parallel/bytes/tensor_io.h"

#include "parallel/base/error.h"
#include "tests/support/catch.h"
#include "tests/support/message_of.h"
#include "tests/support/reference_safetensors.h"
#include "tests/support/temporary_folder.h"

using namespace moetune;

TEST_CASE("tensors of the reference library have its values", "[tensor_io]") {
  const TemporaryFolder folder;
  write_text_atomically(folder / "model.safetensors", reference_safetensors());
  const SafetensorsFolder model(folder.path());
  const auto same = [&](const std::string& name, const at::Tensor& expected) {
    const at::Tensor tensor = read_tensor(model, name);
    return tensor.scalar_type() == expected.scalar_type() && tensor.sizes() == expected.sizes() &&
           at::equal(tensor.to(at::kDouble), expected.to(at::kDouble));
  };
  CHECK(same("scale", at::tensor(1.5f).squeeze()));
  CHECK(same("w", at::tensor({1.f, -2.f, 0.5f, 4.f, 0.25f, -8.f}).view({2, 3}).to(at::kBFloat16)));
  CHECK(same("f8", at::tensor({1.f, -2.f, 448.f, 0.5f}).to(at::kFloat8_e4m3fn)));
  CHECK(same("e8", at::tensor({1.f, 2.f, 0.25f}).to(at::kFloat8_e8m0fnu)));
  CHECK(same("none", at::zeros({0, 4})));
  CHECK(same("ids", at::tensor({7, -1}, at::kLong)));
  CHECK(same("on", at::tensor({1, 0}).to(at::kBool)));

  const SafetensorsFile file(folder / "model.safetensors");
  CHECK(at::equal(read_tensor(file, "ids"), at::tensor({7, -1}, at::kLong)));
  CHECK(at::equal(read_rows(file, "ids", 1, 1), at::tensor({-1}, at::kLong)));
}

TEST_CASE("rows are a range of dim 0", "[tensor_io]") {
  const TemporaryFolder folder;
  const at::Tensor w = at::arange(5 * 3 * 2, at::kFloat).view({5, 3, 2});
  write_tensors(folder / "model.safetensors", {{"w", w}, {"scalar", at::ones({})}, {"empty", at::zeros({0, 3})}}, {});
  const SafetensorsFolder model(folder.path());
  CHECK(at::equal(read_rows(model, "w", 1, 3), w.slice(0, 1, 4)));
  CHECK(at::equal(read_rows(model, "w", 0, 5), w));
  CHECK(read_rows(model, "w", 5, 0).sizes() == at::IntArrayRef({0, 3, 2}));
  CHECK(read_rows(model, "empty", 0, 0).sizes() == at::IntArrayRef({0, 3}));
  CHECK(contains(message_of<UserError>([&] { read_rows(model, "w", 3, 3); }),
                 "has shape [5, 3, 2], but 3 rows from row 3 on"));
  CHECK_THROWS_AS(read_rows(model, "w", -1, 2), UserError);
  CHECK_THROWS_AS(read_rows(model, "w", 6, 0), UserError);
  CHECK_THROWS_AS(read_rows(model, "scalar", 0, 1), UserError);
  CHECK(contains(message_of<UserError>([&] { read_rows(model, "v", 0, 1); }), "no tensor \"v\""));
}

TEST_CASE("what is written reads back in every dtype, aligned", "[tensor_io]") {
  const TemporaryFolder folder;
  std::vector<std::pair<std::string, at::Tensor>> tensors;
  const auto bytes = at::arange(1, 1 + 8 * 6, at::kByte);
  for (const at::ScalarType type :
       {at::kBool, at::kByte, at::kChar, at::kFloat8_e5m2, at::kFloat8_e4m3fn, at::kFloat8_e8m0fnu,
        at::kFloat8_e4m3fnuz, at::kFloat8_e5m2fnuz, at::kShort, at::kUInt16, at::kHalf, at::kBFloat16, at::kInt,
        at::kUInt32, at::kFloat, at::kComplexFloat, at::kDouble, at::kLong, at::kUInt64}) {
    tensors.emplace_back(str("t", tensors.size()), type == at::kBool ? at::tensor({1, 0, 1}).to(at::kBool)
                                                                     : bytes.clone().view(type).view({-1, 3}));
  }
  tensors.emplace_back("odd", at::ones({3}, at::kByte));
  write_tensors(folder / "a.safetensors", tensors, {{"step", "7"}});
  const SafetensorsFile file(folder / "a.safetensors");
  CHECK(file.metadata() == StringMap{{"format", "pt"}, {"step", "7"}});
  for (const auto& [name, tensor] : tensors) {
    INFO(name);
    const at::Tensor back = read_tensor(file, name);
    CHECK(back.scalar_type() == tensor.scalar_type());
    CHECK(back.sizes() == tensor.sizes());
    CHECK(at::equal(back.flatten().view(at::kByte), tensor.flatten().view(at::kByte)));
    CHECK(file.at(name).begin % static_cast<std::uint64_t>(tensor.element_size()) == 0);
  }
  CHECK(dtype_of(at::kFloat8_e4m3fn) == DType::kF8E4M3);
  CHECK(!dtype_of(at::kComplexDouble));
  CHECK(!scalar_type_of(DType::kF4));
}

TEST_CASE("tensors that the format cannot hold are refused", "[tensor_io]") {
  const TemporaryFolder folder;
  CHECK_THROWS_AS(write_tensors(folder / "a", {{"a", at::zeros({2, 3}).t()}}, {}), InternalError);
  CHECK_THROWS_AS(write_tensors(folder / "a", {{"a", at::zeros({2}, at::kComplexDouble)}}, {}), InternalError);
  SafetensorsWriter writer(folder / "b", {{"a", DType::kF4, {2}}}, {});
  writer.append("a", "x", 1);
  writer.commit();
  const SafetensorsFile file(folder / "b");
  CHECK(contains(message_of<UserError>([&] { read_tensor(file, "a"); }), "torch has no dtype for F4"));
}
