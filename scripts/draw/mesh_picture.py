"""Who holds what, as a picture: hosts and their ranks, each with its experts, heads, shards and bytes; below, the ranks
once more for each kind of group, in the colour of their group.

    python scripts/draw mesh MESH.json > mesh.svg
"""

import math
from dataclasses import dataclass

from draw.picture import COLOURS, GROUND, INSIDE, LINE, MARGIN, PALE, PAPER, SOFT, Picture, colour
from draw.planned_mesh import PlannedMesh, read_mesh
from draw.units import bytes_text, count_text

MOST_RANKS, MOST_COLUMNS = 64, 4
GAP, PAD = 8, 10
DENSE, EXPERTS, HOST = "#7c8a96", "#b9c3cc", PALE


@dataclass
class _Grid:
    """Where each rank's box goes: hosts one below the other, ranks in rows of whole tensor axes."""

    mesh: PlannedMesh
    left: float
    top: float
    width: float
    box_height: float
    gap: float
    host_title: float = 0

    def __post_init__(self):
        self.per_host = self.mesh.ranks_per_host
        self.shown = min(self.mesh.num_ranks, MOST_RANKS)
        self.columns = min(self.mesh.axes["tp"], MOST_COLUMNS)
        while self.columns * 2 <= min(MOST_COLUMNS, self.per_host):
            self.columns *= 2
        self.hosts, self.bottom = [], self.top
        for first in range(0, self.shown, self.per_host):
            rows = math.ceil(min(self.per_host, self.shown - first) / self.columns)
            y = self.bottom + (self.gap if first else 0)
            height = self.host_title + rows * (self.box_height + self.gap) + self.gap
            self.hosts.append((self.left, y, self.width, height))
            self.bottom = y + height

    def rank(self, rank):
        host, place = divmod(rank, self.per_host)
        row, column = divmod(place, self.columns)
        width = (self.width - self.gap) / self.columns - self.gap
        x = self.left + self.gap + column * (width + self.gap)
        y = self.hosts[host][1] + self.host_title + self.gap + row * (self.box_height + self.gap)
        return x, y, width, self.box_height


def draw(arguments):
    return mesh_picture(read_mesh(arguments))


def mesh_picture(mesh):
    picture = Picture(f"Who holds what on {mesh.name}")
    ranks = "1 rank" if mesh.num_ranks == 1 else f"{mesh.num_ranks} ranks"
    hosts = f" on {mesh.hosts} hosts" if mesh.hosts > 1 else ""
    picture.text(MARGIN, 26, f"{mesh.name}: {ranks}{hosts}", bold=True, size=14)
    model = mesh.model
    parameters = count_text(model.parameters, gap="")
    said = f"{parameters} parameters: {model.layers} layers, {model.experts} experts, {model.heads} heads"
    picture.text(MARGIN, 44, f"{model.type}, {said}", fill=SOFT)
    y = 44
    if len(mesh.stages) > 1:
        y += 18
        picture.text(MARGIN, y, _stages_text(mesh.stages), fill=SOFT)
    y = _ranks(picture, mesh, y + 12)
    y = _legend(picture, y)
    _groups(picture, mesh, y + 12)
    return picture.finish()


def _stages_text(stages):
    """ "4 stages of 15 to 16 layers, all of 2 to 9 kept, attention of 15" """

    def span(counts):
        return str(min(counts)) if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"

    said, last = "", [0] * len(stages)
    for level in ("all", "experts", "attention"):  # each counts the layers that keep more, too
        kept = [getattr(stage.kept, level) for stage in stages]
        if kept != last:
            said += f", {level} of {span(kept)}{'' if any(last) else ' kept'}"
        last = kept
    return f"{len(stages)} stages of {span([stage.layers for stage in stages])} layers{said}"


def _ranks(picture, mesh, top):
    grid = _Grid(mesh, MARGIN, top, INSIDE, box_height=128, gap=GAP, host_title=18)
    for host, (x, y, width, height) in enumerate(grid.hosts):
        picture.box((x, y, width, height), PAPER, stroke=LINE, radius=4)
        picture.text(x + PAD, y + 17, f"host {host}", fill=SOFT)
    for rank in range(grid.shown):
        _holdings(picture, mesh, rank, grid.rank(rank))
    more = mesh.num_ranks - grid.shown
    if not more:
        return grid.bottom
    picture.text(MARGIN, grid.bottom + 16, f"... and {more} ranks more", fill=SOFT)
    return grid.bottom + 16


def _holdings(picture, mesh, rank, box):
    """What a rank holds, in its box."""
    place, holdings, held = mesh.place(rank), mesh.holdings, mesh.weights
    left, top, width, _ = box
    x, right = left + PAD, left + width - PAD
    picture.box(box, GROUND, stroke=LINE, radius=3)
    picture.text(x, top + 18, f"rank {rank}", bold=True)
    said = f"dp {place['dp']}  ep {place['ep']}  tp {place['tp']}"
    picture.text(right, top + 18, said, fill=SOFT, size=11, anchor="end")

    def part(y, index, words):
        picture.box((x, y - 9, 10, 10), colour(index), radius=2)
        picture.text(x + 14, y, words)

    part(top + 38, place["ep"], f"experts {holdings.experts[place['ep']]}")
    if len(mesh.stages) > 1:
        picture.text(right, top + 38, f"stage {place['pp']}", fill=SOFT, size=11, anchor="end")
    slabs = f"F {holdings.features[place['tp']]}" if mesh.expert_tp > 1 else "their slabs"
    picture.text(x + 14, top + 51, f"{slabs}: {_shard(mesh, rank, held.experts)}", fill=SOFT, size=11)
    part(top + 69, place["tp"], f"heads {holdings.heads[place['tp']]}")
    picture.text(x + 14, top + 82, f"dense slabs: {_shard(mesh, rank, held.dense)}", fill=SOFT, size=11)
    _bytes_bar(picture, held, (x, top + 92, width - 2 * PAD, 12))
    picture.text(x, top + 119, f"device {bytes_text(held.dense.bytes + held.experts.bytes)}", size=10)
    if held.host_bytes > 0:
        picture.text(right, top + 119, f"host {bytes_text(held.host_bytes)}", fill=SOFT, size=10, anchor="end")


def _shard(mesh, rank, weights):
    """ "shard 2 of 4", or "whole": counted from 1, in the order in which the group's ranks share."""
    return "whole" if weights.shards == 1 else f"shard {mesh.shard(rank, weights) + 1} of {weights.shards}"


def _bytes_bar(picture, held, bar):
    """Frozen bytes of a rank: dense maps and experts on the device, and what lies in host memory."""
    x, y, width, height = bar
    amounts = ((held.dense.bytes, DENSE), (held.experts.bytes, EXPERTS), (held.host_bytes, HOST))
    total = max(1, sum(amount for amount, _ in amounts))
    for amount, fill in amounts:
        if amount:
            share = width * amount / total
            picture.box((x, y, share, height), fill, stroke=SOFT)
            x += share


def _legend(picture, y):
    picture.text(MARGIN, y + 22, "Frozen weights of a rank:", fill=SOFT)
    keys = (
        (DENSE, "dense maps on the device"),
        (EXPERTS, "experts on the device"),
        (HOST, "in host memory"),
    )
    picture.legend(MARGIN + 150, y + 12, keys, stroke=SOFT)
    return y + 26


def _groups(picture, mesh, top):
    """The ranks once more for each kind of group, in the colour of their group."""
    experts = ("the same experts: slabs", "sharded, gradients summed")
    if mesh.expert_tp > 1:
        experts = ("the same experts, in parts:", "gradients of whole halves")
    kinds = (
        ("ep", "tokens travel to experts", "and back"),
        ("tp", "the same documents: rows are", "gathered, partial sums summed"),
        ("expert_replicas", *experts),
        ("data", "the same heads: dense slabs", "sharded, gradients summed"),
    )
    all_ranks = "world and stage are all ranks" if len(mesh.stages) == 1 else "world is all ranks"
    said = f"Groups: ranks of one colour talk to each other, grey ones are alone; {all_ranks}"
    picture.text(MARGIN, top + 16, said, bold=True)
    width = (INSIDE - 3 * GAP) / 4
    for i, (name, first, second) in enumerate(kinds):
        x, y = MARGIN + i * (width + GAP), top + 24
        picture.text(x, y + 16, name, bold=True)
        picture.text(x, y + 31, first, fill=SOFT, size=11)
        picture.text(x, y + 45, second, fill=SOFT, size=11)
        grid = _Grid(mesh, x, y + 53, width, box_height=18, gap=4)
        for host in grid.hosts:
            picture.box(host, PAPER, stroke=LINE, radius=3)
        alone = mesh.group_size(name) == 1
        for rank in range(grid.shown):
            picture.chip(grid.rank(rank), PALE if alone else colour(mesh.group(rank, name)), str(rank))
    sizes = [mesh.group_size(name) for name, *_ in kinds]
    if any(size > 1 and mesh.num_ranks // size > len(COLOURS) for size in sizes):
        said = f"There are more groups than colours: each comes back after {len(COLOURS)}."
        picture.text(MARGIN, grid.bottom + 18, said, fill=SOFT)
