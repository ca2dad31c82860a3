"""One expert layer's way down and up, as a picture: which collective of which group stands where, and what a rank sends
in it. Bytes are those of docs/parallelism.md for the rows that the plan has; axes of one rank have no collectives and
none are drawn.

    python scripts/draw layer MESH.json > layer.svg
"""

from dataclasses import dataclass

from draw.picture import DOWN, FETCH, GROUND, LINE, MARGIN, PAPER, SOFT, TEXT, UP, Picture
from draw.planned_mesh import read_mesh
from draw.units import bytes_text

DOWN_X, UP_X = 272, 468  # the two ways, as lines
BOX_X, BOX_WIDTH = 284, 172  # what is computed, between them
CHIP_WIDTH, CHIP_HEIGHT, LINE_HEIGHT = 56, 17, 14
TOP = 84
TENSOR_AXIS, EXCHANGE, REPLICAS = "#a9d3a1", "#b9b4e4", "#93d1cc"


@dataclass
class _Stage:
    """A stage of the layer, as it lies in the way down."""

    title: str = ""  # what is computed; none: only moves
    detail: str = ""
    chips: tuple = ()  # groups that talk: (colour, name)
    down: tuple = ()  # what they say on each way, in lines
    up: tuple = ()


TP, EP = ((TENSOR_AXIS, "tp"),), ((EXCHANGE, "ep"),)


def draw(arguments):
    return layer_picture(read_mesh(arguments))


def layer_picture(mesh):
    picture = Picture(f"What one expert layer computes and sends on {mesh.name}")
    title = "One expert layer of a step: what a rank computes, and what it sends in which group"
    picture.text(MARGIN, 26, title, bold=True, size=14)
    tp, rows = mesh.axes["tp"], f"T = {mesh.step.rows:,} rows a rank"
    rows += f", {tp} T on its tensor axis" if tp > 1 else ""
    letters = f"D = {mesh.model.width:,}, C = {mesh.model.latents:,} latents, b = {mesh.step.number_bytes} bytes"
    picture.text(MARGIN, 44, f"{mesh.name}; {rows}, {letters}", fill=SOFT)
    y = TOP
    for stage in _stages(mesh):
        y = _put(picture, stage, y)
    _way(picture, DOWN_X, TOP - 8, y, DOWN)
    _way(picture, UP_X, y, TOP - 8, UP)
    picture.text(DOWN_X - 8, TOP - 16, "Down: forward", bold=True, anchor="end")
    picture.text(UP_X + 8, TOP - 16, "Up: recompute, then backward", bold=True)
    picture.text(BOX_X + BOX_WIDTH / 2, TOP - 16, "layer l", bold=True, anchor="middle")
    return picture.finish()


# What happens, from top to bottom


def _stages(mesh):
    model, tp, ep, parts = mesh.model, mesh.axes["tp"], mesh.axes["ep"], mesh.expert_tp
    T, D, C, K, b = mesh.step.rows, model.width, model.latents, model.chosen, mesh.step.number_bytes
    S = parts * T * mesh.step.most_sends  # rows sent in the exchange, at the most
    experts = f"{model.experts // ep:,} of {model.experts:,}"
    rows = f"{tp} T rows" if tp > 1 else "T rows"

    def axis_bytes(of_row):
        return bytes_text((tp - 1) * T * of_row)

    def axis(numbers):
        return axis_bytes(numbers * b)

    def twice(numbers):
        return f"twice that: {bytes_text(2 * (tp - 1) * T * numbers * b)}"

    def at_most(count):
        return f"at most {bytes_text(count)}"

    yield _trained(mesh)
    yield _frozen(mesh)
    yield _Stage("norm, maps to latents", "T rows")
    if tp > 1:
        yield _Stage(
            chips=TP,
            down=("latents all-gathered", f"(TP-1) T C b = {axis(C)}"),
            up=("again; gradients reduce-scattered", twice(C)),
        )
    yield _Stage("attention", f"{model.heads // tp} of {model.heads} heads, {rows}")
    if tp > 1:
        yield _Stage(
            chips=TP,
            down=("outputs reduce-scattered", f"(TP-1) T D b = {axis(D)}"),
            up=("again; gradients all-gathered", twice(D)),
        )
    yield _Stage("norm, router", f"{K} of {model.experts} experts a row")
    if parts > 1:
        yield _Stage(
            chips=TP,
            down=("z, weights, experts all-gathered", axis_bytes(D * b + K * (b + 2))),
            up=("z, weights, d y all-gathered", axis_bytes((2 * D + K) * b)),
        )
    if ep > 1:
        yield _Stage(
            chips=EP,
            down=("all-to-all: z, weights, experts", at_most(S * (D * b + K * (b + 2)))),
            up=("the same and d y, again", at_most(S * (2 * D * b + K * (b + 2)))),
        )
    if model.shares_expert:
        detail = ("meanwhile " if ep > 1 else "") + (f"1/{tp} of its features, {rows}" if tp > 1 else rows)
        shared = _Stage("shared expert", detail)
        if tp > 1:
            shared.chips = TP
            shared.down = ("z all-gathered, output summed", f"(TP-1) T 2 D b = {axis(2 * D)}")
            if model.gates_shared_expert:  # by a gate whose gradient takes the output
                shared.up = ("both again, and their transposes", twice(2 * D))
            else:
                shared.up = ("z again, and both transposes", f"(TP-1) T 3 D b = {axis(3 * D)}")
        yield shared
    yield _Stage("routed experts", experts + (f", 1/{parts} of features" if parts > 1 else ", a chunk at a time"))
    if ep > 1:
        yield _Stage(
            chips=EP,
            down=("all-to-all: one sum a row, back", at_most(S * D * b)),
            up=("d z and d weights, back", at_most(S * (D + K) * b)),
        )
    if parts > 1:
        yield _Stage(
            chips=TP,
            down=("outputs reduce-scattered", f"(TP-1) T D b = {axis(D)}"),
            up=("d z and d weights likewise", axis(D + K)),
        )
    yield _Stage("sum", "x of layer l + 1")


def _trained(mesh):
    stage, data, replicas = map(mesh.group_size, ("stage", "data", "expert_replicas"))
    groups = (("stage", stage, stage > 1), ("data", data, mesh.axes["tp"] > 1 and data > 1))
    groups += (("replicas", replicas, replicas > 1),)
    chips = tuple((REPLICAS, f"{name} {ranks}") for name, ranks, talks in groups if talks)
    if not chips:
        down, up = ("AdamW's new values",), ("gradients, to the host",)
        return _Stage("what trains", "on this rank alone", down=down, up=up)
    down = f"{mesh.step.number_bytes} n (P-1)/P bytes"
    up = f"{mesh.step.gradient_bytes} n (P-1)/P bytes"
    return _Stage(
        "what trains",
        "copies in groups of P ranks",
        chips,
        down=("AdamW's new values all-gathered", "n/P from each of P ranks:", down),
        up=("gradients reduce-scattered", "n/P to the host of each rank:", up),
    )


def _frozen(mesh):
    held = mesh.weights
    shards, kept, on_host = held.experts.shards, held.experts.shard_bytes, held.host_layers > 0
    chips = [(FETCH, "shards")] if shards > 1 or held.dense.shards > 1 else []
    chips += [(FETCH, "host")] if on_host else []
    lines = []
    if shards > 1:
        lines.append(f"experts gathered: {bytes_text((shards - 1) * kept)}")
    elif held.dense.shards > 1:
        lines.append(f"dense maps gathered, 1/{held.dense.shards} each")
    if on_host:
        lines.append(f"own part from host: {bytes_text(kept)}")
    lines = tuple(lines or ["on the device: nothing moves"])
    return _Stage("frozen weights", "made dense for this way", tuple(chips), down=lines, up=lines)


# How it is drawn


def _put(picture, stage, y):
    """Draws a stage; where the next begins."""
    chips = len(stage.chips) * (CHIP_HEIGHT + 3) - 3
    lines = max(len(stage.down), len(stage.up)) * LINE_HEIGHT
    height = max(38 if stage.title else 0, lines, chips) + 6
    middle = y + height / 2
    if stage.title:
        centre = BOX_X + BOX_WIDTH / 2
        picture.box((BOX_X, middle - 19, BOX_WIDTH, 38), PAPER, stroke=LINE, radius=4)
        picture.text(centre, middle - 3, stage.title, bold=True, anchor="middle")
        picture.text(centre, middle + 11, stage.detail, fill=SOFT, size=11, anchor="middle")
    for i, (fill, name) in enumerate(stage.chips):
        top = middle - chips / 2 + i * (CHIP_HEIGHT + 3)
        for x in (DOWN_X - 10 - CHIP_WIDTH, UP_X + 10):
            picture.chip((x, top, CHIP_WIDTH, CHIP_HEIGHT), fill, name, ink=GROUND if fill == FETCH else TEXT)
    beside = 10 + (CHIP_WIDTH + 8 if stage.chips else 0)
    _say(picture, stage.down, DOWN_X - beside, middle, "end")
    _say(picture, stage.up, UP_X + beside, middle, None)
    return y + height


def _say(picture, lines, x, middle, anchor):
    for i, line in enumerate(lines):
        y = middle - len(lines) * LINE_HEIGHT / 2 + 11 + i * LINE_HEIGHT
        picture.text(x, y, line, fill=SOFT if i else TEXT, size=11, anchor=anchor)


def _way(picture, x, begin, end, fill):
    picture.arrow(x - 1, begin, x - 1, end, fill)
    picture.box((x - 2.5, min(begin, end) + (6 if end < begin else 0), 3, abs(end - begin) - 6), fill)
