// The program of a step, written out by hand for three blocks, and the packed weights that it asks for.
#include "trainer/sweep/step_program.h"

#include "tests/support/catch.h"

using namespace moetune;

namespace {

using Kind = StepOp::Kind;

/// A dense layer, two of experts, an MTP module of experts.
Blueprint three_layers() {
  Blueprint blueprint;
  LayerSpec dense;
  dense.dense_width = 8;
  blueprint.layers = {dense, {}, {}};
  blueprint.num_mtp_layers = 1;
  return blueprint;
}

const LayerId kEmbedding = LayerId::embedding(), kTurn = LayerId::turn(3), kMtp = LayerId::mtp(3);
LayerId l(int64_t layer) { return LayerId::block(layer); }

}  // namespace

TEST_CASE("a step goes down, turns and comes up as far as something trains", "[step_program]") {
  const StepProgram way_down = {{Kind::kAwait, kEmbedding}, {Kind::kEmbed, kEmbedding}, {Kind::kAwait, l(0)},
                                {Kind::kDown, l(0)},        {Kind::kAwait, l(1)},       {Kind::kDown, l(1)},
                                {Kind::kAwait, l(2)},       {Kind::kDown, l(2)},        {Kind::kAwait, kTurn}};
  const auto behind = [](StepProgram program, const StepProgram& rest) {
    program.insert(program.end(), rest.begin(), rest.end());
    return program;
  };
  const Blueprint blueprint = three_layers();
  const auto written = [&](const StepTraits& traits) { return step_program(blueprint, traits); };

  CHECK(written({.mode = StepMode::kEvaluate, .mtp = true}) == behind(way_down, {{Kind::kHead, kTurn}}));
  CHECK(written({.mode = StepMode::kLogits}) == behind(way_down, {{Kind::kHead, kTurn}}));
  CHECK(written({.mode = StepMode::kRoute}) == way_down);
  CHECK(written({.mode = StepMode::kRoute, .mtp = true}) ==
        behind(way_down, {{Kind::kMtpInput, kMtp}, {Kind::kAwait, kMtp}, {Kind::kDown, kMtp}}));
  CHECK(written({.lowest_trained = l(1)}) == behind(way_down, {{Kind::kHead, kTurn},
                                                               {Kind::kTurn, kTurn},
                                                               {Kind::kReduce, kTurn},
                                                               {Kind::kUp, l(2)},
                                                               {Kind::kReduce, l(2)},
                                                               {Kind::kUp, l(1)},
                                                               {Kind::kReduce, l(1)}}));
  CHECK(written({.lowest_trained = kTurn}) ==
        behind(way_down, {{Kind::kHead, kTurn}, {Kind::kTurn, kTurn}, {Kind::kReduce, kTurn}}));
  // Of the MTP module alone: the gradient of its input is nobody's.
  CHECK(written({.mtp = true, .lowest_trained = kMtp}) == behind(way_down, {{Kind::kHead, kTurn},
                                                                            {Kind::kMtpInput, kMtp},
                                                                            {Kind::kAwait, kMtp},
                                                                            {Kind::kDown, kMtp},
                                                                            {Kind::kHead, kMtp},
                                                                            {Kind::kUp, kMtp},
                                                                            {Kind::kReduce, kMtp},
                                                                            {Kind::kTurn, kTurn},
                                                                            {Kind::kReduce, kTurn}}));
}

TEST_CASE("the last blocks keep their graph where the way up comes to them", "[step_program]") {
  using Ops = std::vector<std::string>;
  const Blueprint blueprint = three_layers();
  const auto kept = [&](const StepTraits& traits) {
    Ops ops;
    for (const StepOp& op : step_program(blueprint, traits)) {
      if (op.keeps) ops.push_back(to_string(op));
    }
    return ops;
  };
  CHECK(kept({.keep_layers = 0}).empty());
  CHECK(kept({.keep_layers = 1}) == Ops{"down layer 2, kept", "up layer 2, kept"});
  CHECK(kept({.mtp = true, .keep_layers = 1}) == Ops{"down MTP, kept", "up MTP, kept"});
  CHECK(kept({.lowest_trained = l(2), .keep_layers = 3}) == Ops{"down layer 2, kept", "up layer 2, kept"});
  CHECK(kept({.mode = StepMode::kEvaluate, .keep_layers = 3}).empty());
}

TEST_CASE("a trained embedding is the last thing of a step", "[step_program]") {
  const StepProgram program = step_program(three_layers(), {.lowest_trained = kEmbedding});
  REQUIRE(program.size() > 2);
  CHECK(program[program.size() - 2] == StepOp{Kind::kEmbedGradient, kEmbedding});
  CHECK(program.back() == StepOp{Kind::kReduce, kEmbedding});
}

TEST_CASE("a step uses the packed weights of a layer once on each way", "[step_program]") {
  const Blueprint blueprint = three_layers();
  std::vector<std::string> uses;
  for (const SlabUse& use : slab_uses(blueprint, step_program(blueprint, {.mtp = true, .lowest_trained = l(2)}))) {
    uses.push_back(str(use.kind == SlabKind::kExperts ? "experts of " : "", use.layer));
  }
  CHECK(uses == std::vector<std::string>{"layer 0", "layer 1", "experts of layer 1", "layer 2", "experts of layer 2",
                                         "turn", "MTP", "experts of MTP", "MTP", "experts of MTP", "turn", "layer 2",
                                         "experts of layer 2"});
}
