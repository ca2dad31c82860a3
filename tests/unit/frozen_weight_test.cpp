// Frozen weights in every format: the values they stand for, how long they are dense, what they weigh.
#include "tests/support/catch.h"

#include "lora/frozen_weight.h"
#include "parallel/base/error.h"
#include "tests/support/message_of.h"
#include "tests/support/numbers.h"

using namespace moetune;

namespace {

constexpr BaseFormat kFormats[] = {BaseFormat::kNf4, BaseFormat::kNf4Double, BaseFormat::kBf16, BaseFormat::kFp32};

/// Absmax scaling by hand: each block of 64 to the nearest of NF4's values (QLoRA, appendix E).
at::Tensor nf4_by_hand(const at::Tensor& weight_OI) {
  const at::Tensor map = at::tensor(
      {-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
       -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
       0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0},
      at::kDouble);
  const at::Tensor blocks = weight_OI.to(at::kDouble).view({-1, 64}), absmax = std::get<0>(blocks.abs().max(1, true));
  const at::Tensor nearest = ((blocks / absmax).unsqueeze(-1) - map).abs().argmin(-1);
  return (map.index_select(0, nearest.flatten()).view_as(blocks) * absmax).view_as(weight_OI);
}

}  // namespace

TEST_CASE("the dense form is the held value in the compute type, unit by unit", "[frozen_weight]") {
  constexpr int64_t E = 3, O = 16, I = 24;
  const at::Tensor stack = random_normal({E, O, I}, 1, at::kFloat);
  for (const BaseFormat format : kFormats) {
    for (const at::ScalarType compute : {at::kBFloat16, at::kFloat, at::kDouble}) {
      INFO(to_string(format) << " in " << c10::toString(compute));
      Scratch scratch(at::kCPU, compute);
      scratch.reserve(2 * E * O * I);
      DequantCounters counters;
      FrozenWeight weight({format, E, O, I}, at::kCPU, compute);
      for (const int64_t e : {2, 0, 1}) weight.set(e, stack[e]);
      const auto value = [&](int64_t e) {
        if (format == BaseFormat::kFp32) return stack[e].to(at::kDouble);
        return format == BaseFormat::kBf16 ? stack[e].to(at::kBFloat16).to(at::kDouble) : nf4_by_hand(stack[e]);
      };
      const double exact = compute == at::kBFloat16 ? 4e-3 : 1e-7,
                   tolerance = format == BaseFormat::kNf4Double ? 2e-2 : exact;

      CHECK(contains(message_of<InternalError>([&] { weight.dense(); }), "not in use"));
      weight.use(scratch, counters);
      CHECK(weight.dense().scalar_type() == compute);
      CHECK(weight.dense().sizes() == at::IntArrayRef({E, O, I}));
      for (int64_t e = 0; e < E; ++e) CHECK(distance(weight.dense()[e].to(at::kDouble), value(e)) < tolerance);
      const bool held_dense = (format == BaseFormat::kBf16 && compute == at::kBFloat16) ||
                              (format == BaseFormat::kFp32 && compute == at::kFloat);
      CHECK(counters.elements == (held_dense ? 0 : E * O * I));
      CHECK(weight.scratch_elements() == (held_dense ? 0 : E * O * I));
      CHECK(at::equal(weight.dense_units(1, 2, scratch, counters), weight.dense().narrow(0, 1, 2)));
      CHECK(counters.elements == (held_dense ? 0 : (E + 2) * O * I));
      if (!held_dense) {
        // Among other numbers, which stay: units apart, and rows apart.
        for (const int64_t gap : {0, 8}) {
          at::Tensor among = at::full({2, O + 4, I + gap}, 7.0, compute);
          const at::Tensor place = among.narrow(1, 3, O).narrow(2, 0, I);
          weight.dense_units_into(1, 2, place, scratch, counters);
          CHECK(at::equal(place, weight.dense().narrow(0, 1, 2)));
          CHECK(among.eq(7.0).sum().item<int64_t>() == among.numel() - place.numel());
        }
        CHECK(counters.elements == (E + 2 + 2 + 2) * O * I);
      }
      weight.release();
      CHECK(contains(message_of<InternalError>([&] { weight.dense(); }), "not in use"));
    }
  }
}

TEST_CASE("a unit's bytes are those of its packed tensors, each rounded up to 16", "[frozen_weight]") {
  // By hand, [256, 128] in nf4_double: 16384 bytes of codes, 512 blocks, 2 groups of 256 (8 bytes, to 16), one offset
  // (4, to 16).
  CHECK(FrozenShape{BaseFormat::kNf4Double, 3, 256, 128}.unit_bytes() == 16384 + 512 + 16 + 16);
  CHECK(FrozenShape{BaseFormat::kNf4, 3, 256, 128}.unit_bytes() == 16384 + 2048);
  CHECK(FrozenShape{BaseFormat::kNf4, 1, 5, 7}.unit_bytes() == 32 + 16);
  CHECK(FrozenShape{BaseFormat::kBf16, 1, 5, 7}.unit_bytes() == 80);
  CHECK(FrozenShape{BaseFormat::kFp32, 2, 16, 24}.unit_bytes() == 1536);
  for (const BaseFormat format : kFormats) {
    FrozenWeight weight({format, 3, 16, 24}, at::kCPU, at::kFloat);
    weight.set(1, random_normal({16, 24}, 1, at::kFloat));
    int64_t bytes = 0;
    for (const at::Tensor& part : weight.packed()) bytes += (static_cast<int64_t>(part[0].nbytes()) + 15) / 16 * 16;
    CHECK(weight.shape().unit_bytes() == bytes);
  }
}

TEST_CASE("the parts of a cut weight are those of the whole, in every format", "[frozen_weight]") {
  // 128 x 384 numbers: 768 blocks, 6 a row, three groups of double quantisation whose borders fall inside rows and
  // parts.
  constexpr int64_t E = 2, O = 128, I = 384;
  const at::Tensor stack = random_normal({E, O, I}, 1, at::kFloat) * at::arange(1, O + 1).view({O, 1});
  DequantCounters counters;
  for (const BaseFormat format : kFormats) {
    for (const at::ScalarType compute : {at::kBFloat16, at::kFloat}) {
      Scratch scratch(at::kCPU, compute);
      scratch.reserve(2 * E * O * I);
      FrozenWeight whole({format, E, O, I}, at::kCPU, compute);
      for (int64_t e = 0; e < E; ++e) whole.set(e, stack[e]);
      const at::Tensor dense = whole.dense_units(0, E, scratch, counters);
      for (const MatrixCut::Dim dim : {MatrixCut::Dim::kOutputs, MatrixCut::Dim::kInputs}) {
        for (const int64_t parts : {2, 3}) {
          if (dim == MatrixCut::Dim::kOutputs && parts == 3) continue;
          for (int64_t index = 0; index < parts; ++index) {
            INFO(to_string(format) << " in " << c10::toString(compute) << ", part " << index << " of " << parts
                                   << (dim == MatrixCut::Dim::kOutputs ? " by outputs" : " by inputs"));
            FrozenWeight part({format, E, O, I, {dim, index, parts}}, at::kCPU, compute);
            for (int64_t e = 0; e < E; ++e) part.set(e, stack[e]);
            const int64_t mark = scratch.mark(), along = dim == MatrixCut::Dim::kOutputs ? 1 : 2;
            CHECK(at::equal(part.dense_units(0, E, scratch, counters), dense.chunk(parts, along)[index]));
            CHECK(at::equal(part.dense_units(1, 1, scratch, counters)[0], dense.chunk(parts, along)[index][1]));
            scratch.release_to(mark);
          }
        }
      }
    }
  }
  CHECK(contains(message_of<UserError>([&] {
                   FrozenWeight({BaseFormat::kFp32, 1, 5, 96, {MatrixCut::Dim::kOutputs, 0, 2}}, at::kCPU, at::kFloat);
                 }),
                 "cannot be cut into 2 equal parts by its outputs"));
}

TEST_CASE("parts of unequal size are those of the whole, and of what no cut suits the whole is packed",
          "[frozen_weight]") {
  using Dim = MatrixCut::Dim;
  struct Case {
    int64_t units, outputs, inputs;
    Dim dim;
    int64_t parts, granule;
    bool packs_whole;
  };
  const Case cases[] = {
      {2, 320, 64, Dim::kOutputs, 2, 64, false}, {2, 320, 48, Dim::kOutputs, 4, 64, false},
      {1, 320, 7, Dim::kOutputs, 3, 64, false},  {1, 100, 7, Dim::kOutputs, 2, 64, false},
      {2, 128, 64, Dim::kOutputs, 4, 64, false},  // the last two have nothing
      {2, 48, 320, Dim::kInputs, 2, 64, false},  {2, 48, 320, Dim::kInputs, 4, 64, false},
      {2, 5, 704, Dim::kInputs, 3, 64, false},   {2, 48, 128, Dim::kInputs, 4, 64, false},
      {2, 32, 96, Dim::kInputs, 2, 64, true},    {2, 32, 96, Dim::kInputs, 4, 64, true},
      {1, 5, 171, Dim::kInputs, 2, 64, true},    {1, 4, 96, Dim::kInputs, 2, 0, true},
      {1, 3, 96, Dim::kOutputs, 3, 0, true},     {2, 640, 20, Dim::kOutputs, 3, 24, true},
  };
  DequantCounters counters;
  for (const Case& one : cases) {
    const at::Tensor stack = random_normal({one.units, one.outputs, one.inputs}, 1, at::kFloat) *
                             at::arange(1, one.outputs + 1).view({one.outputs, 1});
    for (const BaseFormat format : kFormats) {
      Scratch scratch(at::kCPU, at::kBFloat16);
      scratch.reserve(4 * stack.numel());
      FrozenWeight whole({format, one.units, one.outputs, one.inputs}, at::kCPU, at::kBFloat16);
      for (int64_t e = 0; e < one.units; ++e) whole.set(e, stack[e]);
      const at::Tensor dense = whole.dense_units(0, one.units, scratch, counters).clone();
      int64_t held = 0;
      for (int64_t index = 0; index < one.parts; ++index) {
        INFO(to_string(format) << ", " << one.outputs << " x " << one.inputs << ", part " << index << " of "
                               << one.parts << (one.dim == Dim::kOutputs ? " by outputs" : " by inputs"));
        const FrozenShape shape{format, one.units, one.outputs, one.inputs, {one.dim, index, one.parts, one.granule}};
        CHECK(shape.packs_whole() == (one.packs_whole && is_quantised(format)));
        if (shape.packs_whole()) CHECK(shape.unit_bytes() == whole.shape().unit_bytes());
        FrozenWeight part(shape, at::kCPU, at::kBFloat16);
        for (int64_t e = 0; e < one.units; ++e) part.set(e, stack[e]);
        scratch.reset();
        const at::Tensor own = part.dense_units(0, one.units, scratch, counters);
        CHECK(own.is_contiguous());
        CHECK(scratch.mark() >= part.scratch_elements());
        CHECK(scratch.mark() < part.scratch_elements() + 2 * 64);  // two pieces at the most, each rounded up
        for (int64_t e = 0; e < one.units; ++e) CHECK(at::equal(own[e], shape.cut.part_of(dense[e])));
        CHECK(at::equal(part.dense_units(one.units - 1, 1, scratch, counters)[0], own[one.units - 1]));
        held += own.numel();
      }
      CHECK(held == stack.numel());
    }
  }
}

TEST_CASE("one unit is a matrix, odd sizes too; what does not fit is refused", "[frozen_weight]") {
  Scratch scratch(at::kCPU, at::kFloat);
  scratch.reserve(1000);
  DequantCounters counters;
  for (const BaseFormat format : kFormats) {
    // one part: the whole
    FrozenWeight weight({format, 1, 5, 7, {MatrixCut::Dim::kInputs, 0, 1}}, at::kCPU, at::kFloat);
    const at::Tensor values = random_normal({5, 7}, 1, at::kFloat);
    weight.set(0, values.t().contiguous().t());
    weight.use(scratch, counters);
    CHECK(weight.dense().sizes() == at::IntArrayRef({5, 7}));
    CHECK(distance(weight.dense(), values) < 0.15);
    CHECK(contains(message_of<InternalError>([&] { weight.set(0, values.t()); }), "want [5, 7]"));
    CHECK(contains(message_of<InternalError>([&] { weight.set(1, values); }), "unit 1 of 1"));
  }
  CHECK(contains(message_of<UserError>([&] { FrozenWeight({BaseFormat::kNf4, 2, 5, 7}, at::kCPU, at::kFloat); }),
                 "use base: bf16"));
}
