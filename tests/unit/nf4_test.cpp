// NF4 against bitsandbytes' CPU path, through tests/fixtures/nf4.safetensors (made by make_nf4.py). Equal means bit for
// bit.
#include "tests/support/catch.h"

#include <ATen/Parallel.h>

#include <bit>
#include <limits>

#include "lora/formats/nf4.h"
#include "lora/formats/nf4_blocks.h"
#include "parallel/base/error.h"
#include "parallel/bytes/tensor_io.h"

using namespace moetune;

namespace {

const SafetensorsFile& fixture() {
  static const SafetensorsFile file(MOETUNE_SOURCE_DIR "/tests/fixtures/nf4.safetensors");
  return file;
}
at::Tensor fixture(const std::string& name) { return read_tensor(fixture(), name); }

/// Same shape, dtype and bits: -0.0 differs from 0.0.
bool same_bits(const at::Tensor& a, const at::Tensor& b) {
  return a.scalar_type() == b.scalar_type() && a.sizes() == b.sizes() &&
         at::equal(a.contiguous().view(-1).view(at::kByte), b.contiguous().view(-1).view(at::kByte));
}

at::Tensor dequantised(const Nf4Tensor& q, at::ScalarType dtype) {
  const at::Tensor out = at::full(q.shape, -7.0, dtype);
  nf4_dequantise_into(q, out);
  return out;
}

const std::vector<std::string> kCases = {"fp32", "bf16",   "fp16",  "short",    "odd",
                                         "tiny", "groups", "edges", "zero_end", "ties"};

}  // namespace

TEST_CASE("NF4 equals bitsandbytes bit for bit", "[nf4]") {
  for (const std::string& name : kCases) {
    INFO("case " << name);
    const at::Tensor weight = fixture(name + ".weight");

    const Nf4Tensor single = nf4_quantise(weight, false);
    CHECK(single.shape == weight.sizes().vec());
    CHECK(same_bits(single.codes, fixture(name + ".codes")));
    CHECK(same_bits(single.absmax, fixture(name + ".absmax")));
    CHECK(same_bits(dequantised(single, at::kFloat), fixture(name + ".single.fp32")));
    CHECK(same_bits(dequantised(single, at::kBFloat16), fixture(name + ".single.bf16")));

    const Nf4Tensor nested = nf4_quantise(weight, true);
    CHECK(!nested.absmax.defined());
    CHECK(same_bits(nested.codes, fixture(name + ".codes")));
    CHECK(same_bits(nested.double_absmax->codes, fixture(name + ".absmax_codes")));
    CHECK(same_bits(nested.double_absmax->nested_absmax, fixture(name + ".nested_absmax")));
    CHECK(same_bits(nested.double_absmax->offset, fixture(name + ".offset")));
    CHECK(same_bits(dequantised(nested, at::kFloat), fixture(name + ".double.fp32")));
    CHECK(same_bits(dequantised(nested, at::kBFloat16), fixture(name + ".double.bf16")));
  }
}

TEST_CASE("The map of double quantisation is that of bitsandbytes", "[nf4]") {
  static constexpr Nf4DynamicMap kMap = nf4_dynamic_map();
  const at::Tensor expected = fixture("map");
  REQUIRE(expected.numel() == 256);
  for (int i = 0; i < 256; ++i) {
    INFO("code " << i);
    CHECK(std::bit_cast<uint32_t>(kMap.values[i]) == std::bit_cast<uint32_t>(expected.data_ptr<float>()[i]));
  }
}

TEST_CASE("NF4 in fp64 holds the fp32 values exactly, and takes fp64 weights as fp32", "[nf4]") {
  const at::Tensor weight = fixture("fp32.weight");
  const Nf4Tensor q = nf4_quantise(weight.to(at::kDouble), true);
  CHECK(same_bits(q.codes, fixture("fp32.codes")));
  CHECK(same_bits(dequantised(q, at::kDouble), fixture("fp32.double.fp32").to(at::kDouble)));
}

TEST_CASE("NF4 lands in a slice of a larger buffer, and only there", "[nf4]") {
  const at::Tensor expected = fixture("groups.double.bf16").view(-1);
  const Nf4Tensor q = nf4_quantise(fixture("groups.weight"), true);
  const at::Tensor buffer = at::full({expected.numel() + 11}, 5.0, at::kBFloat16);
  nf4_dequantise_into(q, buffer.slice(0, 5, 5 + expected.numel()));
  CHECK(same_bits(buffer.slice(0, 5, 5 + expected.numel()), expected));
  CHECK((buffer.slice(0, 0, 5) == 5.0).all().item<bool>());
  CHECK((buffer.slice(0, 5 + expected.numel()) == 5.0).all().item<bool>());
}

TEST_CASE("Double quantisation from shards: statistics come from the whole", "[nf4]") {
  const at::Tensor weight = fixture("groups.weight");
  std::vector<at::Tensor> absmax;
  for (const at::Tensor& shard : weight.split(100)) absmax.push_back(nf4_quantise(shard, false).absmax);
  const DoubleQuantisedAbsmax whole = double_quantise_absmax(at::cat(absmax));
  CHECK(same_bits(whole.codes, fixture("groups.absmax_codes")));
  CHECK(same_bits(whole.nested_absmax, fixture("groups.nested_absmax")));
  CHECK(same_bits(whole.offset, fixture("groups.offset")));
}

TEST_CASE("NF4 does not depend on the number of threads", "[nf4]") {
  const at::Tensor weight = at::sin(at::arange(5000 * 1024 + 7, at::kFloat));
  const int num_threads = at::get_num_threads();
  at::set_num_threads(1);
  const Nf4Tensor one = nf4_quantise(weight, true);
  const at::Tensor one_out = dequantised(one, at::kBFloat16);
  at::set_num_threads(3);
  const Nf4Tensor three = nf4_quantise(weight, true);
  const at::Tensor three_out = dequantised(three, at::kBFloat16);
  at::set_num_threads(num_threads);
  CHECK(same_bits(one.codes, three.codes));
  CHECK(same_bits(one.double_absmax->codes, three.double_absmax->codes));
  CHECK(same_bits(one.double_absmax->nested_absmax, three.double_absmax->nested_absmax));
  CHECK(same_bits(one.double_absmax->offset, three.double_absmax->offset));
  CHECK(same_bits(one_out, three_out));
}

TEST_CASE("NF4 of nothing is nothing", "[nf4]") {
  for (const bool double_quantise : {false, true}) {
    const Nf4Tensor q = nf4_quantise(at::empty({0, 64}, at::kBFloat16), double_quantise);
    CHECK(q.numel() == 0);
    CHECK(dequantised(q, at::kFloat).numel() == 0);
  }
}

TEST_CASE("NF4 refuses weights that are not finite and says how many", "[nf4]") {
  for (const auto dtype : {at::kFloat, at::kBFloat16, at::kHalf, at::kDouble}) {
    const at::Tensor weight = at::ones({70}, dtype);
    weight[3] = std::numeric_limits<float>::quiet_NaN();
    weight[68] = -std::numeric_limits<float>::infinity();
    try {
      nf4_quantise(weight, false);
      FAIL("accepted NaN");
    } catch (const UserError& error) {
      CHECK(std::string(error.what()).find("2 of 70 weights are NaN or infinite") != std::string::npos);
    }
  }
}

TEST_CASE("NF4 bytes are those of the formula: 4.5 or 4.127 bits a weight", "[nf4]") {
  const at::Tensor weight = at::ones({64, 1024}, at::kBFloat16);
  CHECK(nf4_quantise(weight, false).num_bytes() == 65536 / 2 + 65536 / 64 * 4);
  CHECK(nf4_quantise(weight, true).num_bytes() == 65536 / 2 + 65536 / 64 + 65536 / 64 / 256 * 4 + 4);
}
