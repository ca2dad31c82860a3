// Block-scaled FP8 against a loop over every element in Python (tests/fixtures/make_fp8.py). [300, 200] has ragged last
// blocks.
#include "tests/support/catch.h"

#include <cmath>

#include "lora/formats/fp8.h"
#include "parallel/base/error.h"
#include "parallel/bytes/tensor_io.h"

using namespace moetune;

namespace {

at::Tensor fixture(const std::string& name) {
  static const SafetensorsFile file(MOETUNE_SOURCE_DIR "/tests/fixtures/fp8.safetensors");
  return read_tensor(file, name);
}

std::string refusal(const at::Tensor& weight, const at::Tensor& scale_inv, int64_t first_row = 0) {
  try {
    fp8_blocks_dequantise(weight, scale_inv, at::kFloat, first_row);
  } catch (const UserError& error) {
    return error.what();
  }
  return "";
}

}  // namespace

TEST_CASE("FP8 blocks times their scales", "[fp8]") {
  const at::Tensor weight = fixture("weight"), scale_inv = fixture("scale_inv");
  CHECK(at::equal(fp8_blocks_dequantise(weight, scale_inv, at::kFloat), fixture("fp32")));
  CHECK(at::equal(fp8_blocks_dequantise(weight, scale_inv, at::kBFloat16), fixture("bf16")));
  CHECK(at::equal(fp8_blocks_dequantise(weight, scale_inv, at::kDouble), fixture("fp32").to(at::kDouble)));
}

TEST_CASE("FP8 rows read alone use the scales of their place", "[fp8]") {
  const at::Tensor weight = fixture("weight"), scale_inv = fixture("scale_inv"), expected = fixture("fp32");
  for (const auto& [first, count] : std::vector<std::pair<int64_t, int64_t>>{
           {0, 128}, {1, 127}, {100, 60}, {127, 2}, {255, 45}, {299, 1}, {300, 0}}) {
    INFO("rows " << first << " + " << count);
    CHECK(at::equal(fp8_blocks_dequantise(weight.slice(0, first, first + count), scale_inv, at::kFloat, first),
                    expected.slice(0, first, first + count)));
  }
}

TEST_CASE("FP8 of one narrow column block", "[fp8]") {
  const at::Tensor weight = fixture("weight").slice(1, 0, 70);
  CHECK(at::equal(fp8_blocks_dequantise(weight, fixture("scale_inv").slice(1, 0, 1), at::kFloat),
                  fixture("fp32").slice(1, 0, 70)));
}

TEST_CASE("FP8 refuses NaN codes, bad scales and scales that do not fit", "[fp8]") {
  const at::Tensor weight = fixture("weight"), scale_inv = fixture("scale_inv");
  const at::Tensor damaged = weight.clone();
  damaged.view(at::kByte)[0][3] = 0x7f;
  damaged.view(at::kByte)[299][199] = 0xff;
  CHECK(refusal(damaged, scale_inv).find("2 of 60000 weights are NaN") != std::string::npos);
  CHECK(refusal(weight, scale_inv.slice(0, 0, 2)).find("scale_inv is") != std::string::npos);
  CHECK(refusal(weight, scale_inv.slice(1, 0, 1)).find("scale_inv is") != std::string::npos);
  CHECK(refusal(weight, scale_inv.to(at::kDouble)).find("scale_inv is") != std::string::npos);
  CHECK(refusal(weight, scale_inv, 100).find("rows up to 400") != std::string::npos);
  CHECK(refusal(weight, scale_inv / 0.0).find("scales in scale_inv are NaN or infinite") != std::string::npos);
}

TEST_CASE("FP8 scales: floats are numbers, e8m0 and its bits powers of two, all else is refused", "[fp8]") {
  const auto said = [](const at::Tensor& stored) {
    try {
      fp8_scales(stored, "f: s");
    } catch (const UserError& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  const at::Tensor numbers = at::tensor({0.5, 2.0, 0.0009765625}, at::kDouble);
  for (const auto type : {at::kFloat, at::kDouble, at::kBFloat16, at::kHalf}) {
    CHECK(at::equal(fp8_scales(numbers.to(type), ""), numbers.to(at::kFloat)));
  }
  // OCP Microscaling Formats v1.0, table 7: 2^-127 .. 2^127, 255 is NaN.
  const at::Tensor bits = at::tensor({0, 117, 127, 128, 254}, at::kByte);
  const at::Tensor powers = at::tensor({std::ldexp(1.0, -127), std::ldexp(1.0, -10), 1.0, 2.0, std::ldexp(1.0, 127)});
  CHECK(at::equal(fp8_scales(bits, ""), powers.to(at::kFloat)));
  CHECK(at::equal(fp8_scales(bits.view(at::kFloat8_e8m0fnu), ""), powers.to(at::kFloat)));
  CHECK(said(at::tensor({127, 255}, at::kByte)).find("f: s holds values that are NaN") != std::string::npos);
  for (const auto type : {at::kChar, at::kShort, at::kInt, at::kLong, at::kBool, at::kFloat8_e4m3fn, at::kFloat8_e5m2,
                          at::kUInt16, at::kComplexFloat}) {
    INFO(c10::toString(type));
    CHECK(said(at::zeros({2}, type)).find("which is no scale of FP8 blocks") != std::string::npos);
  }
}

TEST_CASE("weights become FP8 blocks whose largest is e4m3's largest", "[fp8]") {
  at::Tensor weight = fixture("fp32").clone();
  weight.slice(0, 128, 256).slice(1, 0, 128).zero_();
  for (const bool powers_of_two : {false, true}) {
    const Fp8Blocks blocks = fp8_blocks_quantise(weight, powers_of_two);
    REQUIRE(blocks.weight.scalar_type() == at::kFloat8_e4m3fn);
    REQUIRE(blocks.weight.sizes() == weight.sizes());
    REQUIRE(blocks.scale_inv.sizes() == at::IntArrayRef({3, 2}));
    const at::Tensor back = fp8_blocks_dequantise(blocks.weight, blocks.scale_inv, at::kFloat);
    for (int64_t row = 0; row < 3; ++row) {
      for (int64_t column = 0; column < 2; ++column) {
        const auto block = [&](const at::Tensor& whole) {
          return whole.slice(0, 128 * row, 128 * row + 128).slice(1, 128 * column, 128 * column + 128);
        };
        const double largest = block(weight).abs().max().item<double>();
        const double scale = blocks.scale_inv[row][column].item<double>();
        INFO("block " << row << " " << column << ", largest " << largest << ", scale " << scale);
        if (largest == 0.0) {
          CHECK(scale == 1.0);
        } else if (powers_of_two) {
          CHECK(std::exp2(std::round(std::log2(scale))) == scale);
          CHECK(scale >= largest / 448 * 0.999999);
          CHECK(scale <= largest / 448 * 2.000001);
        } else {
          CHECK(std::abs(scale * 448 / largest - 1) < 1e-6);
          CHECK(block(blocks.weight).to(at::kFloat).abs().max().item<double>() == 448.0);
        }
        // Three bits behind the point, steps of 2^-9 below the smallest normal number.
        const at::Tensor error = (block(back) - block(weight)).abs();
        CHECK(error.le(block(weight).abs() * (1.001 / 16) + scale * std::exp2(-10) * 1.001).all().item<bool>());
      }
    }
  }
}
