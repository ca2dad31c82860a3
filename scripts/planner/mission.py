"""Figures that others published beside what the planner says of the same, and why they differ.

Sizes are the planner's counts; times are this program's, on machines at the rates that the planner has. Nothing is
fitted to a published figure: where one was made with other arithmetic or another kind of training, that is named.
"""

from planner.asking import Numbered, markdown

ATTENTION, EXPERTS = "recipes/deepseek-v3-attention.yaml", "recipes/deepseek-v3-experts.yaml"
FULL_DATA = ("--documents", "1000000", "--tokens-per-document", "4096")
HOUR, GB, GIB = 3600.0, 1e9, float(1 << 30)
DOCUMENTS, TOKENS = 50_000, 1024


def _full(model, machines):
    return ("--model", model, "--method", "full", "--on", machines, *FULL_DATA)


def _frozen(plan):
    """Bytes of a GPU that are frozen weights, packed or plain."""
    names = ("frozen dense maps", "frozen experts", "plain tensors")
    return {part["name"]: part["bytes"] for part in plan["memory"]["parts"] if part["name"] in names}


def _hours(plan):
    hours = plan["run"]["hours"]
    return f"{60 * hours:.0f} minutes" if hours < 1 else f"{hours:.1f} hours"


def _sizes(ask):
    v3, of_v3 = ask.plan("--model", "deepseek-v3", "--on", "16xH100")
    model = v3["model"]
    attention, of_attention = ask.plan(ATTENTION, "--on", "16xH100")
    routers, of_routers = ask.plan(ATTENTION, "--on", "16xH100", "router.train=full")
    six, of_six = ask.plan(EXPERTS, "--on", "16xH100")
    seven, of_seven = ask.plan(EXPERTS, "--on", "16xH100", "adapter.rank=7")
    mixtral, of_mixtral = ask.plan("--model", "mixtral-8x7b", "--on", "1xH100")
    v2, of_v2 = ask.text("--model", "deepseek-v2", "--on", "8xH100")
    experts_of_v2 = next(line for line in v2.splitlines() if line.startswith("experts")).split(None, 1)[1]
    gates = routers["adapter"]["parameters"] - attention["adapter"]["parameters"]
    active = model["active_parameters"]
    mixtral_model, mixtral_frozen = mixtral["model"], sum(_frozen(mixtral).values())
    return [
        (
            "DeepSeek-V3: 187,107,328 numbers in the attention of a layer",
            f"{model['attention_parameters_per_layer']:,} {of_v3}",
            "equal: five maps and the norms of the two latents",
        ),
        ("44.04 M in a routed expert", f"{model['expert_parameters']:,} {of_v3}", "equal: 3 x 7168 x 2048"),
        (
            "gates: 106,430,464",
            f"{gates:,} {of_routers} less {of_attention}",
            "equal: the routers of 58 layers, 256 x 7168 each, without their 256 correction biases. These gates choose"
            " experts; gate projections, below, are maps inside experts",
        ),
        (
            "37.51 to 37.55 B active of 671 B; its authors say 37 B",
            f"{active:,} of {model['parameters']:,} {of_v3}",
            "equal to 37.55 B, embedding and head counted whole and the module for multi-token prediction left out; 37.51"
            f" B is what remains without one expert's {model['expert_parameters'] / 1e6:.2f} M",
        ),
        (
            "about 200 M in adapters on attention, rank 32",
            f"{attention['adapter']['parameters']:,} {of_attention}",
            "3 % less: the five linear maps of all 61 layers, rank x (inputs + outputs) each",
        ),
        (
            "800 M to 1 B in adapters on the experts' gate projections, rank 6 to 7",
            f"{six['adapter']['parameters']:,} {of_six}, {seven['adapter']['parameters']:,} {of_seven}",
            "equal: 58 x 256 maps, 9,216 a rank each",
        ),
        (
            "Mixtral-8x7B: 47 B parameters, 13 B active",
            f"{mixtral_model['parameters']:,}, {mixtral_model['active_parameters']:,} {of_mixtral}",
            "equal, rounded",
        ),
        (
            'Mixtral-8x7B: "90 GB"',
            f"{2 * mixtral_model['parameters'] / GB:.1f} GB = 2 x {mixtral_model['parameters'] / 1e9:.1f} B;"
            f" to train on, NF4: {mixtral_frozen / GB:.1f} GB frozen, {mixtral['memory']['device_bytes'] / GB:.1f} GB"
            f" at the most with all that a step holds {of_mixtral}",
            "90 GB are the weights in 16 bits, to run it; 4 bits hold them in a little more than a quarter, and training"
            " adds inputs, graphs and a block's work, which grow with the tokens of a step and are made to fill the GPU",
        ),
        ("DeepSeek-V2: 160 + 2 experts", f"{experts_of_v2} {of_v2}", "equal"),
    ]


def _nf4(ask):
    attention, of_attention = ask.plan(ATTENTION, "--on", "16xH100")
    experts, of_experts = ask.plan(EXPERTS, "--on", "16xH100")
    parameters = attention["model"]["parameters"]

    def said(plan):
        parts = _frozen(plan)
        listed = " + ".join(f"{size / GB:.1f}" for size in parts.values())
        return (
            f"{listed} = {sum(parts.values()) / GB:.1f} GB frozen, {plan['memory']['device_bytes'] / GB:.1f} GB in all"
        )

    return (
        "DeepSeek-V3 in NF4 on 16 GPUs: about 85 GB a GPU",
        f"{said(experts)} {of_experts}; {said(attention)} {of_attention} (dense maps, experts, plain tensors)",
        f"{2 * parameters / 16 / GB:.1f} GB are a sixteenth of 671 B numbers in *16* bits. In NF4 a sixteenth of all is"
        f" {0.516 * parameters / 16 / GB:.0f} GB; attention, shared expert and dense layers are on every GPU instead of"
        " on one of 16, and with ep 8 an expert is on two. The rest of the sum is the step, which fills what is left",
    )


def _runs(ask):
    attention, of_attention = ask.plan(ATTENTION, "--on", "16xH100")
    rate = attention["time"]["tokens_per_s"]
    implied = [rate * hours * HOUR / DOCUMENTS for hours in (8, 12)]
    cost = attention["cost"]
    slow, of_slow = ask.plan(ATTENTION, "--on", "16xH100", "--network", "100gbe")
    rows = [
        (
            "8 to 12 hours and $400 to 600 for 50,000 instructions on 16 H100",
            f"{_hours(attention)}, ${cost['dollars']:.0f}, for {DOCUMENTS:,} documents of {TOKENS:,} tokens {of_attention};"
            f" {_hours(slow)}, ${slow['cost']['dollars']:.0f}, with 100 Gbit/s Ethernet between the two hosts {of_slow}",
            f"neither length nor network is published with it: at {rate:,.0f} tokens/s 8 to 12 hours are {implied[0]:,.0f}"
            f" to {implied[1]:,.0f} tokens a document; over Ethernet the exchange of experts on both hosts is nearly all"
            f" of a step. The dollars are $3.1 a GPU-hour, the table's H100 ${cost['price_per_gpu_hour']:.2f}",
        )
    ]
    said, days, marks = [], [], []
    for machines in ("64xH100", "128xH100"):
        short, of_short = ask.plan("--model", "deepseek-v3", "--method", "full", "--on", machines)
        rate = short["time"]["tokens_per_s"]
        fits = "" if short["memory"]["fits"] else ", which does not fit"
        said.append(f"{machines}: {_hours(short)}, ${short['cost']['dollars']:.0f}{fits} {of_short}")
        days.append(f"{rate * 24 * HOUR / 1e9:.1f} to {rate * 48 * HOUR / 1e9:.1f} B tokens on {machines}")
        marks.append(
            f"${24 * int(machines.split('x')[0]) * short['cost']['price_per_gpu_hour']:,.0f} a day on {machines}"
        )
    rows.append(
        (
            "1 to 2 days and $5,000 to 15,000 for full fine-tuning on 64 to 128 H100",
            "; ".join(said),
            f"the same {DOCUMENTS * TOKENS / 1e6:.1f} M tokens, one epoch, all 671 B numbers trained. Days are another"
            f" amount of data: 1 to 2 of them are {days[0]}, {days[1]}, at {marks[0]}, {marks[1]}",
        )
    )
    return rows


def mission(asking):
    ask = Numbered(asking)
    rows = _sizes(ask)
    rows.insert(4, _nf4(ask))
    rows += _runs(ask)
    return ask.block() + "\n" + markdown(["published", "what the planner says", "why they differ"], rows)


# Others' throughput: (who, model, machines, tokens/s a GPU as published, precision and settings, the planner's machines)
PUBLISHED = (
    (
        "DeepSeek, its own pre-training",
        "deepseek-v3",
        "2048xH100",
        "14.8 T tokens in 2.664 M hours of 2,048 H800",
        14.8e12 / (2.664e6 * HOUR),
        "FP8, with multi-token prediction, pipelined over 16 stages with both directions' exchange under products, a"
        " token on at most 4 hosts",
    ),
    (
        "Megatron-Bridge 25.09",
        "deepseek-v3",
        "1024xH100",
        "1,024 H100",
        1297,
        "FP8, TP 2 PP 8 EP 64, 8,192 sequences a step; loads forced even",
    ),
    (
        "NeMo Automodel, 2026-06",
        "deepseek-v3",
        "256xH100",
        "256 H100",
        1002,
        "bf16, PP 4 EP 64, DeepEP; loads forced even, no clipping",
    ),
    ("NeMo Automodel, 2026-06", "deepseek-v3", "1024xH100", "1,024 H100", 865, "the same, 8,192 sequences a step"),
    (
        "Megatron-Bridge 25.09",
        "qwen3-30b-a3b",
        "16xH100",
        "16 H100, tokens dropped",
        10494,
        "FP8, PP 2 EP 8; rows beyond an expert's share are not computed",
    ),
    ("Megatron-Bridge 25.11", "qwen3-30b-a3b", "16xH100", "16 H100, dropless", 5275, "FP8, PP 2 EP 8"),
    (
        "NeMo Automodel, 2026-06",
        "qwen3-30b-a3b",
        "8xH100",
        "8 H100",
        12040,
        "bf16, EP 8, 512 sequences a step; loads forced even, no clipping",
    ),
)


def published(asking):
    ask = Numbered(asking)
    rows = []
    for who, model, machines, where, rate, settings in PUBLISHED:
        plan, mark = ask.plan(*_full(model, machines))
        mesh = plan["mesh"]
        batch = plan["run"]["sequences_a_step"]
        said = f"{plan['time']['tokens_per_s_per_gpu']:,.0f} {mark}: dp {mesh['dp']} ep {mesh['ep']} tp {mesh['tp']}"
        said += f", {batch:,} sequences" + ("" if plan["memory"]["fits"] else "; does not fit")
        largest = max(plan["time"]["parts"], key=lambda part: part["exposed_s"])
        share = largest["exposed_s"] / plan["time"]["step_s"]["expected"]
        rows.append((who, f"{model}, {where}", f"{rate:,.0f}", said, f"{largest['name']}, {share:.0%}", settings))
    head = ["who", "what", "published tokens/s a GPU", "planned here, bf16", "largest part here", "there"]
    return ask.block() + "\n" + markdown(head, rows, right={2})
