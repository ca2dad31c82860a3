"""Defects that trainers like this one have had, each as a change of one source file, with the contract that must catch
it.

    .venv/bin/python tests/mutations/mutations.py list                    # name;file of each, for CMake
    .venv/bin/python tests/mutations/mutations.py write NAME OUT.cpp      # the source file with the defect in it

CMake links `mutants/NAME` from the program's own objects and the changed one, which the linker takes instead of the
library's; the program itself has no hook. Code in headers cannot be changed so. A text that is not found exactly once
in its file is an error of the build: whoever changed that line says here how the same defect looks now.
"""

import dataclasses
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]


@dataclasses.dataclass(frozen=True)
class Command:
    """`verify-layout` of a layout, or `train` with these values of the recipe, on so many ranks."""

    ranks: int
    layout: str = ""
    recipe: tuple = ()  # (key, value) pairs


TWO_TP, TWO_EP, TWO_SHARDED = Command(2, layout="tp=2"), Command(2, layout="ep=2"), Command(2, layout="dp=2,shard=all")
TRAIN = (("model.base", "bf16"), ("train.steps", 4), ("run.check_replicas_every", 1))


@dataclasses.dataclass(frozen=True)
class Mutation:
    name: str
    why: str  # what goes wrong, and where it did
    source: str
    edits: tuple  # (text, replacement) pairs, one after the other
    command: Command
    says: str  # regular expression for what the program says, with exit code 1


MUTATIONS = [
    Mutation(
        "gradient_not_summed_over_tp",
        "A of a map that is cut by outputs is whole on every rank of the tensor axis, and each sees the gradient of its"
        " own outputs alone. Without their sum the copies drift apart, each a little wrong: the losses look fine.",
        "trainer/update/replica_groups.cpp",
        (("case Replicas::kEverywhere: return mesh.stage();", "case Replicas::kEverywhere: return mesh.data();"),),
        TWO_TP,
        r"tp 2 .*<- WRONG\n +farthest gradient: .*lora_A",
    ),
    Mutation(
        "gradient_not_summed_over_ep",
        "Ranks of an expert group take different data, so that what they hold alike (attention, norms) needs a sum over"
        " them too; written for data parallel groups alone, it is left out.",
        "trainer/update/gradients.cpp",
        (
            (
                "group.ranks().reduce_scatter_sum(own, flat);",
                "own.copy_(flat.narrow(0, group.shard_begin(), group.shard_size()));",
            ),
        ),
        TWO_EP,
        r"ep 2 .*<- WRONG\n +farthest gradient: ",
    ),
    Mutation(
        "initial_a_of_each_rank",
        "Generators seeded by rank, so that cut matrices do not get equal parts, give copies different starts as well."
        " B is zero: the first loss is right, and the first all-gather hides it.",
        "lora/adapters/adapter.cpp",
        (("stream_key(seed, name)", "stream_key(seed + cut.index, name)"),),
        Command(2, recipe=TRAIN + (("mesh.tp", 2),)),
        r"at the start: replicas differ; nothing was trained\n  model\.layers\.0\.\S+\.lora_A\.weight \(group stage\):"
        r" rank 1 has not what rank 0 has\n",
    ),
    Mutation(
        "delta_added_by_each_rank",
        "A map cut by inputs sums what its ranks give. Where each rank adds the whole of B A x to its part, and not its"
        " part of it, the sum holds it once for each rank.",
        "lora/linear.cpp",
        (
            (
                "adapter.scale(), low_TR,",
                "adapter.scale() * (adapted.weight->shape().cut.cuts_inputs() ? adapted.weight->shape().cut.parts : 1),"
                " low_TR,",
            ),
        ),
        TWO_TP,
        r"tp 2 .*<- WRONG\n",
    ),
    Mutation(
        "stale_working_copy",
        "One rank has the new values, the others go on with those of the step before: nothing looks wrong but that"
        " training is slow.",
        "trainer/update/optimizer.cpp",
        (
            (
                "member.parameter->working.copy_(FlatGroup::view(flat, member));",
                "if (group.ranks().rank() == 0) member.parameter->working.copy_(FlatGroup::view(flat, member));",
            ),
        ),
        Command(2, recipe=TRAIN + (("mesh.dp", 2),)),
        r"step 2: replicas differ; nothing was updated\n  \S+\.lora_[AB]\.weight \(group"
        r" (stage|data|expert_replicas)\): rank 1 has not what rank 0 has\n",
    ),
    Mutation(
        "received_rows_not_sorted",
        "Received rows come in the order of their senders; taken for grouped by expert they go through other experts'"
        " weights.",
        "moe/routed_experts.cpp",
        ((".sort(/*stable=*/true, 0, false)", ".floor_divide(placement_.count).sort(/*stable=*/true, 0, false)"),),
        TWO_EP,
        r"ep 2 .*<- WRONG\n",
    ),
    Mutation(
        "padding_counted_in_loads",
        "Rows of padding are routed nowhere, but they stand in the same tensor; counted as tokens they move the biases"
        " of the routers.",
        "trainer/sweep/sweep.cpp",
        (("tally(expert_TK, ", "tally(expert_TK.clamp_max(model_.blueprint.router.experts - 1), "),),
        TWO_TP,
        r"tp 2 .*<- WRONG\n",
    ),
    Mutation(
        "released_slab_read",
        "A buffer that is given back before its experts were made dense is filled with those of another layer while"
        " they are read.",
        "lora/frozen_slab.cpp",
        (
            (
                "  slabs_.store_.release(number_);\n",
                "  if (kind_ != SlabKind::kExperts) slabs_.store_.release(number_);\n",
            ),
            (
                "one.weight->bind(bytes, one.offset, record_bytes_);",
                (
                    "one.weight->bind(bytes, one.offset, record_bytes_);\n  if (kind_ == SlabKind::kExperts)"
                    " slabs_.store_.release(number_);"
                ),
            ),
        ),
        TWO_SHARDED,
        r"dp 2 .*sharded.*<- WRONG\n",
    ),
    Mutation(
        "weights_one_group_late",
        "Where the new values of a stage are waited for behind its first group, that group goes through those of the"
        " step before.",
        "trainer/sweep/step_program.cpp",
        (
            (
                "if (group_ == 0) add(Kind::kAwait, layer);",
                "if (group_ == std::min<int64_t>(1, traits_.groups - 1)) add(Kind::kAwait, layer);",
            ),
        ),
        Command(2, layout="pp=2,pp_groups=3"),
        r"pp 2 .*<- WRONG\n",
    ),
    Mutation(
        "sharded_weights_one_step_late",
        "Weights that train are gathered ahead of a step as frozen ones are, before the optimizer has written them: the"
        " first layers of each step have the numbers of the step before.",
        "parallel/bytes/weight_store.cpp",
        (("lane.trains.value_or(false) ? Rounds::kAlone : Rounds::kFollow", "Rounds::kFollow"),),
        Command(
            2, layout="dp=2,shard=all", recipe=(("train.parts", "[experts, norms]"), ("adapter.targets", "[attention]"))
        ),
        r"dp 2 .*sharded.*<- WRONG\n",
    ),
]


def mutated(mutation):
    """The source with the defect in it."""
    text = (ROOT / mutation.source).read_text()
    for old, new in mutation.edits:
        if text.count(old) != 1:
            sys.exit(
                f"tests/mutations/mutations.py: {mutation.name}: {mutation.source} has this text {text.count(old)}"
                f" times, not once:\n  {old}\nSay there how the defect looks in the code as it is now."
            )
        text = text.replace(old, new)
    return f'#line 1 "{mutation.source}"\n' + text


def main(arguments):
    if arguments == ["list"]:
        print("\n".join(f"{mutation.name};{mutation.source}" for mutation in MUTATIONS))
    elif len(arguments) == 3 and arguments[0] == "write":
        mutation = next(m for m in MUTATIONS if m.name == arguments[1])
        out, text = pathlib.Path(arguments[2]), mutated(mutation)
        if not out.exists() or out.read_text() != text:  # else nothing is compiled again
            out.write_text(text)
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
