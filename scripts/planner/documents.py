"""The longest document that fits: recipes/deepseek-v3-attention.yaml, one document for each group of ranks that takes
documents of its own, over the layouts of each machine, and in the recipe's own mesh; block inputs on the device, or in
host memory."""

from planner.asking import command, markdown
from planner.layouts import Layout

RECIPE = "recipes/deepseek-v3-attention.yaml"
MACHINES = ("1xH200", "2xH200", "8xH100", "16xH100", "8xH200", "128xH100")
RECIPES_MESH = (Layout(8, 2),)
STEP, MOST = 4096, 163840  # the model's own bound: max_position_embeddings of its config.json


def _layouts(gpus):
    for tp in (1, 2, 4, 8):
        for ep in (1, 8, 16):
            if gpus % (tp * ep) == 0:
                yield Layout(ep, tp)
                if gpus > 1:
                    yield Layout(ep, tp, "all")


def _question(machine, layout, tokens, inputs):
    gpus = int(machine.split("x")[0])
    return (
        RECIPE,
        "--on",
        machine,
        f"data.max_tokens={tokens}",
        f"train.batch={layout.data_ranks(gpus)}",
        *layout.words(),
        f"offload.activations={inputs}",
        "--tokens-per-document",
        str(tokens),
    )


def longest(asking, machine, inputs, layouts=None):
    """(tokens, question, plan): of the layouts that take the longest documents, the fastest. None: none fits."""
    best = {layout: None for layout in layouts or _layouts(int(machine.split("x")[0]))}
    fits, too_many = 0, MOST // STEP + 1
    tried = MOST // STEP  # the bound itself first
    while too_many - fits > 1:
        plans = asking.all([_question(machine, layout, tried * STEP, inputs) for layout in best])
        found = {layout: plan for layout, plan in zip(best, plans) if plan and plan["memory"]["fits"]}
        if found:  # what does not fit now will not with more
            fits, best = tried, found
        else:
            too_many = tried
        tried = (fits + too_many) // 2
    if fits == 0:
        return None
    layout = max(best, key=lambda of: best[of]["time"]["tokens_per_s"])
    return fits * STEP, _question(machine, layout, fits * STEP, inputs), best[layout]


def _row(name, inputs, found):
    tokens, _, plan = found
    mesh, memory = plan["mesh"], plan["memory"]
    return (
        name,
        {"none": "device", "host": "host"}[inputs],
        f"{tokens:,}",
        f"dp {mesh['dp']} ep {mesh['ep']} tp {mesh['tp']}" + ("" if mesh["shard"] == "none" else ", sharded"),
        f"{memory['device_bytes'] / 2**30:.1f} of {memory['device_limit_bytes'] / 2**30:.1f}",
        f"{memory['host_bytes'] / 2**30:.0f} of {memory['host_limit_bytes'] / 2**30:.0f}",
        f"{plan['time']['tokens_per_s_per_gpu']:,.0f}",
    )


def table(asking):
    asked = [(machine, machine, "none", None) for machine in MACHINES]
    asked += [("16xH100, the recipe's mesh", "16xH100", inputs, RECIPES_MESH) for inputs in ("none", "host")]
    rows, commands = [], []
    for name, machine, inputs, layouts in asked:
        found = longest(asking, machine, inputs, layouts)
        if found is None:
            rows.append((name, "", "none: the weights alone do not fit", "", "", "", ""))
            continue
        commands.append(f"    {command(found[1])}\n")
        rows.append(_row(name, inputs, found))
    head = [
        "machine",
        "block inputs",
        "longest document",
        "mesh",
        "GiB of a GPU",
        "GiB of host, a rank",
        "tokens/s a GPU",
    ]
    return "".join(commands) + "\n" + markdown(head, rows, right={2, 4, 5, 6})
