// Which features each rank of a tensor axis holds.
#include "lora/formats/matrix_cut.h"

#include "lora/formats/frozen_shape.h"
#include "moe/inventory.h"
#include "tests/support/catch.h"
#include "tests/support/tiny_model.h"

using namespace moetune;

namespace {

using Sizes = std::vector<int64_t>;

Sizes sizes(int64_t whole, int64_t parts, int64_t granule) {
  Sizes held;
  int64_t end = 0;
  for (int64_t index = 0; index < parts; ++index) {
    const MatrixCut by_outputs{MatrixCut::Dim::kOutputs, index, parts, granule},
        by_inputs{MatrixCut::Dim::kInputs, index, parts, granule};
    CHECK(by_outputs.first_output(whole) == (parts > 1 ? end : 0));
    CHECK(by_inputs.first_input(whole) == (parts > 1 ? end : 0));
    CHECK(by_inputs.inputs(whole) == by_outputs.outputs(whole));
    CHECK(by_outputs.inputs(whole) == whole);
    held.push_back(by_outputs.outputs(whole));
    end += held.back();
  }
  CHECK(end == whole);
  return held;
}

}  // namespace

TEST_CASE("parts are runs of whole granules, as equal as granules allow", "[matrix_cut]") {
  CHECK(sizes(10944, 2, 64) == Sizes{5504, 5440});  // DeepSeek-V2-Lite's dense layer
  CHECK(sizes(10944, 4, 64) == Sizes{2752, 2752, 2752, 2688});
  CHECK(sizes(2880, 8, 64) == Sizes{384, 384, 384, 384, 384, 320, 320, 320});  // gpt-oss's experts
  CHECK(sizes(320, 4, 64) == Sizes{128, 64, 64, 64});
  CHECK(sizes(128, 4, 64) == Sizes{64, 64, 0, 0});
  CHECK(sizes(96, 2, 64) == Sizes{64, 32});
  CHECK(sizes(96, 4, 64) == Sizes{64, 32, 0, 0});
  CHECK(sizes(20, 3, 8) == Sizes{8, 8, 4});
  CHECK(sizes(256, 4, 64) == sizes(256, 4, 0));
  CHECK(sizes(18, 3, 0) == Sizes{6, 6, 6});
  CHECK(sizes(18, 1, 0) == Sizes{18});
  CHECK(sizes(18, 1, 64) == Sizes{18});
}

TEST_CASE("a granule suits the format: blocks where there are blocks, else equal parts where they divide",
          "[matrix_cut]") {
  for (const BaseFormat format : {BaseFormat::kNf4, BaseFormat::kNf4Double}) CHECK(cut_granule(format, 96, 2) == 64);
  for (const BaseFormat format : {BaseFormat::kBf16, BaseFormat::kFp32}) {
    CHECK(cut_granule(format, 96, 2) == 48);
    CHECK(cut_granule(format, 10944, 8) == 1368);
    CHECK(cut_granule(format, 20, 3) == 8);
  }
}

TEST_CASE("all maps of an MLP are cut at the same features, pairs of gate and up kept together", "[matrix_cut]") {
  Blueprint model = tiny_blueprint(2);
  model.layers[0].dense_width = 192;
  model.experts.width = 320;
  model.experts.shared_width = 96;
  model.experts.biases = true;
  for (const bool joint : {false, true}) {
    if (joint) model.experts.layout = ExpertSpec::Layout::kInterleaved;
    for (const BaseFormat base : {BaseFormat::kNf4, BaseFormat::kBf16}) {
      for (const int64_t parts : {1, 2, 3, 4}) {
        for (int64_t index = 0; index < parts; ++index) {
          for (const LayerId layer : model.blocks(/*with_mtp=*/false)) {
            for (const TensorSpec& tensor : model.block_tensors(layer)) {
              if (tensor.cut_features == 0 || tensor.cut == MatrixCut::Dim::kNone) continue;
              INFO(tensor.name << " in " << to_string(base) << ", part " << index << " of " << parts);
              const MatrixCut cut = TensorParts{parts, parts, base}.cut_of(tensor, index),
                              features{MatrixCut::Dim::kOutputs, index, parts,
                                       cut_granule(base, tensor.cut_features, parts)};
              const int64_t width = tensor.cut_features, of_feature = tensor.role == TensorRole::kGateUp ? 2 : 1;
              const bool by_inputs = tensor.role == TensorRole::kDown;
              CHECK(by_inputs == (cut.dim == MatrixCut::Dim::kInputs));
              const int64_t whole = tensor.shape[by_inputs ? 1 : 0];
              CHECK((by_inputs ? cut.first_input(whole) : cut.first_output(whole)) ==
                    of_feature * features.first_output(width));
              CHECK((by_inputs ? cut.inputs(whole) : cut.outputs(whole)) == of_feature * features.outputs(width));
            }
          }
        }
      }
    }
  }
}
