// The program of a step, written out by hand for three blocks, and the packed weights that it asks for.
#include "trainer/sweep/step_program.h"

#include <algorithm>
#include <map>

#include "parallel/base/error.h"
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

TEST_CASE("an MTP module whose input alone trains goes up to it, and one of which nothing does not", "[step_program]") {
  const auto end_of = [](const StepTraits& traits) {
    const StepProgram program = step_program(three_layers(), traits);
    std::vector<std::string> ops;
    for (size_t i = 10; i < program.size(); ++i) ops.push_back(to_string(program[i]));
    return ops;
  };
  using Ops = std::vector<std::string>;
  CHECK(end_of({.mtp = true, .lowest_trained = kTurn, .mtp_input_trains = true}) ==
        Ops{"input of MTP", "await MTP", "down MTP", "head MTP", "up MTP", "gradient of the input of MTP", "reduce MTP",
            "gather at the turn", "reduce turn"});
  CHECK(end_of({.mtp = true, .lowest_trained = kTurn}) ==
        Ops{"input of MTP", "await MTP", "down MTP", "head MTP", "reduce MTP", "gather at the turn", "reduce turn"});
  CHECK(end_of({.mtp = true, .lowest_trained = kMtp, .mtp_input_trains = true}) ==
        Ops{"input of MTP", "await MTP", "down MTP", "head MTP", "up MTP", "gradient of the input of MTP", "reduce MTP",
            "gather at the turn", "reduce turn"});
}

TEST_CASE("the last blocks keep their graph where the way up comes to them", "[step_program]") {
  using Ops = std::vector<std::string>;
  const Blueprint blueprint = three_layers();
  const auto kept = [&](const StepTraits& traits) {
    Ops ops;
    for (const StepOp& op : step_program(blueprint, traits)) {
      if (op.keep != Keep::kNothing) ops.push_back(to_string(op));
    }
    return ops;
  };
  CHECK(kept({.kept = {}}).empty());
  CHECK(kept({.kept = KeptBlocks::whole(1)}) == Ops{"down layer 2, kept", "up layer 2, kept"});
  CHECK(kept({.mtp = true, .kept = KeptBlocks::whole(1)}) == Ops{"down MTP, kept", "up MTP, kept"});
  CHECK(kept({.lowest_trained = l(2), .kept = KeptBlocks::whole(3)}) == Ops{"down layer 2, kept", "up layer 2, kept"});
  CHECK(kept({.mode = StepMode::kEvaluate, .kept = KeptBlocks::whole(3)}).empty());
  CHECK(kept({.kept = {.attention = 3, .experts = 2, .all = 1}}) ==
        Ops{"down layer 0, attention kept", "down layer 1, attention and experts kept", "down layer 2, kept",
            "up layer 2, kept", "up layer 1, attention and experts kept", "up layer 0, attention kept"});
}

TEST_CASE("what is kept climbs a ladder, a level after the other and from the last block down", "[step_program]") {
  CHECK(KeptBlocks::after(0, 4) == KeptBlocks{});
  CHECK(KeptBlocks::after(3, 4) == KeptBlocks{3, 0, 0});
  CHECK(KeptBlocks::after(5, 4) == KeptBlocks{4, 1, 0});
  CHECK(KeptBlocks::after(11, 4) == KeptBlocks{4, 4, 3});
  for (int64_t steps = 0; steps <= KeptBlocks::most_steps(4); ++steps)
    CHECK(KeptBlocks::after(steps, 4).steps() == steps);
  CHECK(KeptBlocks::after(KeptBlocks::most_steps(4), 4) == KeptBlocks::whole(4));
  CHECK(to_string(KeptBlocks{}) == "nothing");
  CHECK(to_string(KeptBlocks::whole(2)) == "all of the last 2 blocks");
  CHECK(to_string(KeptBlocks{9, 5, 2}) == "all of the last 2, experts of 5, attention of 9 blocks");
  CHECK(to_string(KeptBlocks{9, 9, 0}) == "experts of the last 9 blocks");
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

namespace {

/// Of a pipeline over three layers: the first stage has two of them.
PipelinePlace stage_of_two(int64_t stage) {
  return {.stage = stage, .stages = 2, .layers = stages_of({2, 1}).at(stage), .mtp = true};
}

/// A dense layer and seven of experts, for pipelines of four stages.
Blueprint eight_layers() {
  Blueprint blueprint = three_layers();
  blueprint.layers.resize(8, blueprint.layers.back());
  blueprint.num_mtp_layers = 0;
  return blueprint;
}

std::vector<std::string> texts(const StepProgram& program) {
  std::vector<std::string> ops;
  for (const StepOp& op : program) ops.push_back(to_string(op));
  return ops;
}

}  // namespace

TEST_CASE("a stage receives and sends in place of what others do, one forward one backward", "[step_program]") {
  using Ops = std::vector<std::string>;
  const Blueprint blueprint = three_layers();
  const auto program = [&](int64_t stage) {
    return step_program(blueprint,
                        {.mtp = stage == 1, .lowest_trained = l(1), .pipeline = stage_of_two(stage), .groups = 2});
  };
  CHECK(texts(program(0)) ==
        Ops{"await embedding", "embed embedding", "await layer 0", "down layer 0", "await layer 1", "down layer 1",
            "send the output of layer 1", "embed embedding, group 1", "down layer 0, group 1", "down layer 1, group 1",
            "send the output of layer 1, group 1", "receive the gradient of layer 1", "up layer 1",
            "receive the gradient of layer 1, group 1", "up layer 1, group 1", "reduce layer 1, group 1"});
  CHECK(texts(program(1)) == Ops{"receive the input of layer 2",
                                 "await layer 2",
                                 "down layer 2",
                                 "await turn",
                                 "head turn",
                                 "input of MTP",
                                 "await MTP",
                                 "down MTP",
                                 "head MTP",
                                 "up MTP",
                                 "gradient of the input of MTP",
                                 "gather at the turn",
                                 "up layer 2",
                                 "send the gradient of layer 2",
                                 "receive the input of layer 2, group 1",
                                 "down layer 2, group 1",
                                 "head turn, group 1",
                                 "input of MTP, group 1",
                                 "down MTP, group 1",
                                 "head MTP, group 1",
                                 "up MTP, group 1",
                                 "gradient of the input of MTP, group 1",
                                 "gather at the turn, group 1",
                                 "up layer 2, group 1",
                                 "send the gradient of layer 2, group 1",
                                 "reduce MTP, group 1",
                                 "reduce turn, group 1",
                                 "reduce layer 2, group 1"});
  // In one group a layer's gradients go as they come: those of others do not exist yet.
  const Ops one = texts(step_program(blueprint, {.lowest_trained = l(1), .pipeline = stage_of_two(1), .groups = 1}));
  CHECK(one.back() == "send the gradient of layer 2");
  CHECK(one.at(one.size() - 2) == "reduce layer 2");
  // What trains is in the other stage alone: nobody asks for a gradient here.
  const Ops below = texts(step_program(blueprint, {.lowest_trained = l(2), .pipeline = stage_of_two(0), .groups = 1}));
  CHECK(below.back() == "send the output of layer 1");
  const Ops lowest = texts(step_program(blueprint, {.lowest_trained = l(2), .pipeline = stage_of_two(1), .groups = 1}));
  CHECK(lowest.back() == "reduce layer 2");
}

TEST_CASE("stage s of P holds the inputs of at most P - s groups, and goes through each layer once a group and way",
          "[step_program]") {
  const Blueprint blueprint = eight_layers();
  const std::vector<Stage> stages = stages_of({2, 2, 3, 1});
  for (const int64_t groups : {1, 2, 3, 4, 9}) {
    for (const bool whole_loads : {false, true}) {
      for (int64_t stage = 0; stage < 4; ++stage) {
        const PipelinePlace place{.stage = stage, .stages = 4, .layers = stages[stage], .mtp = false};
        const StepProgram program =
            step_program(blueprint, {.pipeline = place, .groups = groups, .whole_loads = whole_loads});
        std::map<LayerId, int64_t> uses, in_flight, most, next_down, next_up;
        for (const StepOp& op : program) {
          if (op.kind != Kind::kDown && op.kind != Kind::kUp) continue;
          ++uses[op.layer];
          in_flight[op.layer] += op.kind == Kind::kDown ? 1 : -1;
          most[op.layer] = std::max(most[op.layer], in_flight[op.layer]);
          CHECK(op.group == (op.kind == Kind::kDown ? next_down : next_up)[op.layer]++);
        }
        const int64_t allowed = whole_loads ? groups : std::min(groups, 4 - stage);
        CHECK(uses.size() == static_cast<size_t>(stages[stage].num_blocks()));
        for (const auto& [layer, count] : uses) {
          CHECK(count == 2 * groups);
          CHECK(most[layer] == allowed);
          CHECK(in_flight[layer] == 0);
        }
        CHECK(slab_uses(blueprint, program).size() ==
              static_cast<size_t>(2 * groups * (2 * stages[stage].num_blocks() - (stage == 0 ? 1 : 0))));
        CHECK(groups_in_flight(place, groups, whole_loads) == allowed);
      }
    }
  }
}

// Every stage does the next thing that it can: none waits for ever, and the longest chain of turns is G + P - 1 on each
// way.
TEST_CASE("stages that do what their programs say meet in every send", "[step_program]") {
  const Blueprint blueprint = eight_layers();
  const std::vector<Stage> stages = stages_of({2, 2, 3, 1});
  for (const int64_t groups : {1, 2, 3, 4, 9}) {
    for (const bool whole_loads : {false, true}) {
      std::vector<StepProgram> programs;
      for (int64_t stage = 0; stage < 4; ++stage) {
        programs.push_back(step_program(blueprint, {.pipeline = {.stage = stage, .stages = 4, .layers = stages[stage]},
                                                    .groups = groups,
                                                    .whole_loads = whole_loads}));
      }
      std::vector<size_t> at(4, 0);
      std::map<std::pair<int64_t, bool>, int64_t> sent;  // by receiver and direction: messages under way
      std::map<std::pair<int64_t, bool>, int64_t> next_sent, next_received;
      bool moved = true;
      int64_t at_loads = 0;
      while (moved) {
        moved = false;
        for (int64_t stage = 0; stage < 4; ++stage) {
          while (at[stage] < programs[stage].size()) {
            const StepOp& op = programs[stage][at[stage]];
            const bool down = op.kind == Kind::kReceive || op.kind == Kind::kSend;
            if (op.kind == Kind::kReceive || op.kind == Kind::kReceiveGradient) {
              if (sent[{stage, down}] == 0) break;
              --sent[{stage, down}];
              CHECK(op.group == next_received[{stage, down}]++);
            } else if (op.kind == Kind::kSend || op.kind == Kind::kSendGradient) {
              const int64_t to = stage + (down ? 1 : -1);
              ++sent[{to, down}];
              CHECK(op.group == next_sent[{to, down}]++);
            } else if (op.kind == Kind::kLoads) {
              // All stages meet here.
              at_loads |= int64_t{1} << stage;
              if (at_loads != 15) break;
            }
            ++at[stage];
            moved = true;
          }
        }
      }
      for (int64_t stage = 0; stage < 4; ++stage) CHECK(at[stage] == programs[stage].size());
      for (const auto& [to, count] : sent) CHECK(count == 0);
    }
  }
}
