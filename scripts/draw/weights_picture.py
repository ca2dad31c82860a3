"""How frozen weights that are not whole on the device get there, as a picture: the experts' slab of one layer, the
ranks that share it, the buffers; and when, along a step.

    python scripts/draw weights MESH.json > weights.svg
"""

from dataclasses import dataclass

from draw.errors import UserError
from draw.picture import DOWN, FETCH, INSIDE, LINE, MARGIN, PALE, SOFT, UP, WIDTH, Picture, colour
from draw.planned_mesh import read_mesh
from draw.units import bytes_text

MOST_RANKS = 4  # drawn of those that share a slab
MOST_RECORDS = 64  # marked in it
FETCH_LASTS = 0.8  # of a use of the step, as it is drawn


@dataclass
class _Stay:
    """A stretch of time in which a buffer holds a slab, in uses of the step."""

    slab: int
    fetched: float = 0.0  # its fetch begins
    begin: float = 0.0  # it is there
    end: float = 0.0  # the buffer may be overwritten


def draw(arguments):
    return weights_picture(read_mesh(arguments))


def weights_picture(mesh):
    """UserError where nothing is frozen."""
    held = mesh.weights
    if held.experts.slab_bytes == 0:
        raise UserError(
            "--picture weights: the experts train themselves (adapter: none, train.parts), and none are frozen; ask "
            "for --picture mesh or layer"
        )
    picture = Picture(f"Frozen weights between host, ranks and buffers on {mesh.name}")
    picture.text(MARGIN, 26, "Frozen weights: a slab, its shards, the buffers", bold=True, size=14)
    where = f"{held.host_layers} of them in host memory" if held.host_layers else "all on the device"
    if held.host_layers >= held.layers:
        where = "all in host memory"
    shards = held.experts.shards
    cut = f"in {shards} shards" if shards > 1 else "whole"
    of = f"stage {held.stage}'s {held.layers}" if len(mesh.stages) > 1 else str(held.layers)
    picture.text(MARGIN, 44, f"Experts of {of} layers, {where}; each slab {cut}", fill=SOFT)
    y = _slab(picture, mesh, 64)
    y = _shares(picture, mesh, y + 20)
    picture.text(MARGIN, y + 34, "Along a step", bold=True)
    slabs, fetches = mesh.fetches.slabs, mesh.fetches.round
    if slabs > len(fetches.before):
        _timeline(picture, mesh, y + 44)
    elif slabs:
        said = f"Only {slabs} slabs are fetched, and stay in their buffers: once, for all steps."
        picture.text(MARGIN, y + 54, said)
    else:
        picture.text(MARGIN, y + 54, "Every slab is whole and on the device: a step fetches nothing.")
    return picture.finish()


def _slab(picture, mesh, y):
    held, experts = mesh.weights.experts, mesh.model.experts // mesh.axes["ep"]
    said = f"{experts} records of packed gate, up and down, {bytes_text(held.slab_bytes)}"
    picture.text(MARGIN, y + 12, f"The slab of one layer's experts at ep 0: {said}")
    top, height, width = y + 20, 26, INSIDE / held.shards
    for shard in range(held.shards):
        picture.box((MARGIN + shard * width, top, width, height), colour(shard), stroke=SOFT)
    records = min(experts, MOST_RECORDS)
    for record in range(1, records):
        x = MARGIN + INSIDE * record / records
        picture.line(x, top, x, top + 5, SOFT)
    if held.shards <= 16:
        for shard in range(held.shards):
            words = f"shard {shard + 1}" if held.shards <= 8 else str(shard + 1)
            words = words if held.shards > 1 else "whole"
            picture.text(MARGIN + (shard + 0.5) * width, top + 20, words, size=11, anchor="middle")
    return top + height


def _shares(picture, mesh, y):
    """A column for each rank: where its shard lies, and the buffer in which all shards come together."""
    held, shards = mesh.weights.experts, mesh.weights.experts.shards
    first = mesh.weights.stage * mesh.num_ranks // len(mesh.stages)
    ranks, on_host = [first + rank for rank in mesh.sharing(held)], mesh.weights.host_layers > 0
    shown = ranks[:MOST_RANKS]
    gap = 12
    width = (INSIDE - gap * (len(shown) - 1)) / max(len(shown), 2)
    store_y = y + 24
    buffer_y = store_y + 34 + (74 if shards > 1 else 48)
    buffered = on_host or shards > 1
    for column, rank in enumerate(shown):
        x = MARGIN + column * (width + gap)
        middle = x + width / 2

        def said(y, words, **style):
            picture.text(middle, y, words, size=11, anchor="middle", **style)

        picture.text(x, y + 14, f"rank {rank}", bold=True)
        picture.box((x, store_y, width, 34), colour(column), radius=3)
        what = f"keeps shard {column + 1}" if shards > 1 else "keeps it whole"
        said(store_y + 14, f"{what}: {bytes_text(held.shard_bytes)}")
        said(store_y + 28, "pinned host memory, or device" if on_host else "on the device")
        if not buffered:
            continue
        piece = width / shards
        own = x + (column + 0.5) * piece
        picture.arrow(own, store_y + 34, own, buffer_y, FETCH)
        for shard in range(shards):
            edge = FETCH if shard == column else LINE
            picture.box((x + shard * piece, buffer_y, piece, 22), colour(shard), stroke=edge)
        said(buffer_y + 36, f"a buffer: the whole slab, {bytes_text(held.shard_bytes * shards)}")
        said(buffer_y + 50, "a second one for what is next", fill=SOFT)
    if not buffered:
        return store_y + 34
    if shards > 1:
        own = "from the host over PCIe, or on the device" if on_host else "on the device"
        words = f"own shard: {own}; the other {shards - 1}: all-gather of packed bytes over the group"
        picture.box((MARGIN, store_y + 56, INSIDE, 20), PALE, radius=3)
        picture.text(WIDTH / 2, store_y + 70, words, size=11, anchor="middle")
    more = len(ranks) - len(shown)
    if not more:
        return buffer_y + 54
    picture.text(MARGIN, buffer_y + 72, f"... and {more} rank{'s' if more > 1 else ''} more", fill=SOFT)
    return buffer_y + 76


def _stays(fetches):
    """By buffer, what it holds from the step's begin to its end."""
    stays = [[_Stay(slab)] for slab in fetches.before]
    for fetch in fetches.fetches:
        stays[fetch.buffer][-1].end = fetch.time
        there = fetch.time + FETCH_LASTS
        stays[fetch.buffer].append(_Stay(fetch.slab, fetch.time, there, there))
    for buffer in stays:
        buffer[-1].end = len(fetches.uses)
    return stays


def _timeline(picture, mesh, y):
    fetches, all_slabs = mesh.fetches.round, mesh.fetches.slabs
    uses, slabs, groups = fetches.uses, fetches.slabs, mesh.fetches.groups
    left = 92
    unit = (WIDTH - MARGIN - left) / len(uses)

    def at(time):
        return left + time * unit

    def row(top, words):
        picture.text(left - 10, top + 13, words, fill=SOFT, anchor="end")

    row(y + 6, "computes")
    for time, use in enumerate(uses):
        words = f"layer {use.slab}" if groups == 1 else f"{use.slab}, gr. {use.group}"
        picture.chip((at(time) + 1, y + 6, unit - 2, 18), UP if use.up else DOWN, words)
    for buffer, stays in enumerate(_stays(fetches)):
        top = y + 32 + buffer * 24
        row(top, f"buffer {buffer}")
        for stay in stays:
            is_fetch = stay.begin > stay.fetched
            if is_fetch:
                picture.box((at(stay.fetched) + 1, top, at(stay.begin) - at(stay.fetched) - 1, 18), FETCH)
            if stay.end > stay.begin:
                x = at(stay.begin)
                picture.box((x + (0 if is_fetch else 1), top, at(stay.end) - x - 1, 18), PALE, radius=3)
                picture.text(x + 8, top + 13, str(stay.slab), size=11)
    for time, (before, use) in enumerate(zip(uses, uses[1:]), start=1):
        if use.up and not before.up:
            picture.line(at(time), y + 2, at(time), y + 76, FETCH, dashed=True)
            words = "turn: head and loss" if groups == 1 else "turn"
            picture.text(at(time), y - 2, words, size=11, anchor="middle")
    keys = (
        (DOWN, "down"),
        (UP, "up"),
        (FETCH, "fetched: copied, gathered, beside computing"),
        (PALE, "in the buffer"),
    )
    picture.legend(left, y + 86, keys)
    fetched, kept = len(fetches.fetches), "those at a turn are still there"
    if groups == 1:
        said = f"Of {slabs} slabs {fetched} = 2 x ({slabs} - 2) are fetched a step: {kept}."
        more = f" This recipe has {all_slabs}: {mesh.fetches.a_step} fetches." if all_slabs > slabs else ""
    else:
        said = f"Of {slabs} slabs in two groups {fetched} are fetched: {kept}."
        more = f" This recipe has {all_slabs} in {groups} groups: {mesh.fetches.a_step:,} fetches."
    picture.text(MARGIN, y + 118, said + more)
    copied, gathered = bytes_text(mesh.weights.copied_bytes), bytes_text(mesh.weights.gathered_bytes)
    moved = f"copies {copied} from the host and receives {gathered} from other ranks"
    picture.text(MARGIN, y + 135, f"A step {moved}, dense maps included.")
