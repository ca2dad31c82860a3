"""A planned mesh, as the program says it (trainer/plan/mesh_json.h).

mesh = read_mesh(["mesh.json"])
mesh.model.experts, mesh.weights.host_bytes   # as they stand in the file
mesh.place(5)                                 # {"pp": 0, "dp": 1, "ep": 0, "tp": 1}
mesh.group(5, "tp"), mesh.group_size("tp")    # which of the groups of that name the rank is in; ranks of each
"""

import itertools
import json
import math
from pathlib import Path
from types import SimpleNamespace

from draw.errors import UserError


class PlannedMesh:
    def __init__(self, text):
        vars(self).update(vars(json.loads(text, object_hook=lambda facts: SimpleNamespace(**facts))))
        self.axes = vars(self.axes)  # {name: ranks}, the slowest first
        self.groups = vars(self.groups)  # {name: the axes along which its ranks differ}

    @property
    def num_ranks(self):
        return math.prod(self.axes.values())

    @property
    def hosts(self):
        return math.ceil(self.num_ranks / self.ranks_per_host)

    def place(self, rank):
        """Where a rank stands along each axis."""
        places = {}
        for name, ranks in reversed(self.axes.items()):
            rank, places[name] = divmod(rank, ranks)
        return places

    def index(self, rank, axes):
        """A rank's number among those that differ from it along these axes only."""
        place, index = self.place(rank), 0
        for name, ranks in self.axes.items():
            if name in axes:
                index = index * ranks + place[name]
        return index

    def group(self, rank, name):
        return self.index(rank, self.axes.keys() - self.groups[name])

    def group_size(self, name):
        return math.prod(self.axes[axis] for axis in self.groups[name])

    def shard(self, rank, weights):
        """Which shard of its slabs a rank keeps, from 0; `weights`: dense ones or experts."""
        return self.index(rank, weights.along) % weights.shards

    def sharing(self, weights):
        """The ranks that share slabs with rank 0, in the order of their shards."""
        others = self.axes.keys() - weights.along
        ranks = (rank for rank in range(self.num_ranks) if self.index(rank, others) == 0)
        return list(itertools.islice(ranks, weights.shards))


def read_mesh(arguments):
    """Of a picture's arguments, which are a file's name."""
    if len(arguments) != 1:
        raise UserError(f"a picture is drawn of one file that holds a mesh; {len(arguments)} are given")
    return PlannedMesh(Path(arguments[0]).read_text(encoding="utf-8"))
