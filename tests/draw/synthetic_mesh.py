"""Meshes as the program says them (trainer/plan/mesh_json.cpp): DeepSeek-V3 in NF4, a step of 32 sequences of 4096
tokens; the example of docs/pictures/ where nothing else is asked for.

mesh_picture(planned(ep=16, offload="none"))
"""

import json
import math
from types import SimpleNamespace

import synthetic  # noqa: F401  (puts scripts/ on the path)

from draw.planned_mesh import PlannedMesh

MOE_LAYERS = 58


def runs(parts, total):
    size = total // parts
    return [f"{i * size}-{(i + 1) * size - 1}" if size > 1 else str(i) for i in range(parts)]


def fetch_round(slabs):
    """Two buffers: on the way down each slab is fetched as the one before it begins to be used, and on the way up."""
    uses = [{"slab": slab, "up": False, "group": 0} for slab in range(slabs)]
    uses += [{"slab": slab, "up": True, "group": 0} for slab in reversed(range(slabs))]
    fetches = [(slab, slab - 1) for slab in range(2, slabs)]
    fetches += [(slab, 2 * slabs - 2 - slab) for slab in reversed(range(slabs - 2))]
    return {
        "slabs": slabs,
        "uses": uses,
        "before": [0, 1],
        "fetches": [{"slab": slab, "buffer": slab % 2, "time": time} for slab, time in fetches],
    }


def facts(dp=2, ep=2, tp=2, expert_tp=1, shard="all", offload="half", ranks_per_host=4, pp=1):
    ranks = pp * dp * ep * tp
    per_host = min(ranks, ranks_per_host)
    considered = {"none": 1, "all": ranks // pp, "node": min(ranks // pp, per_host)}[shard]
    dense_shards = sum(rank % tp == 0 for rank in range(considered))
    holds_the_same = tp if expert_tp > 1 else 1
    expert_shards = sum(rank // tp % ep == 0 and rank % holds_the_same == 0 for rank in range(considered))
    host_layers = {"none": 0, "all": MOE_LAYERS, "half": MOE_LAYERS // 2}[offload]
    slab_bytes = 256 // ep * 3 * 7168 * 2048 // expert_tp * 9 // 16  # half a byte a number, a scale for each 64
    shard_bytes = math.ceil(slab_bytes / expert_shards / 256) * 256
    slabs = MOE_LAYERS if expert_shards > 1 else host_layers
    return {
        "name": f"pp {pp} x dp {dp} x ep {ep} x tp {tp}" + (f" (expert tp {expert_tp})" if expert_tp > 1 else ""),
        "ranks_per_host": per_host,
        "axes": {"pp": pp, "dp": dp, "ep": ep, "tp": tp},
        "expert_tp": expert_tp,
        "groups": {
            "ep": ["ep"],
            "tp": ["tp"],
            "expert_replicas": ["dp", "tp"],
            "data": ["dp", "ep"],
            "stage": ["dp", "ep", "tp"],
            "pp": ["pp"],
        },
        "stages": [
            {
                "first_layer": 61 * stage // pp,
                "layers": 61 * (stage + 1) // pp - 61 * stage // pp,
                "kept": {"attention": 5 + 3 * stage, "experts": 3 * stage, "all": 3 * stage},
                "holds": "",
            }
            for stage in range(pp)
        ],
        "model": {
            "type": "deepseek_v3",
            "parameters": 671_026_419_200,
            "layers": 61,
            "moe_layers": MOE_LAYERS,
            "width": 7168,
            "latents": 1536 + 512 + 64,
            "heads": 128,
            "experts": 256,
            "chosen": 8,
            "shares_expert": True,
            "gates_shared_expert": False,
        },
        "holdings": {
            "experts": runs(ep, 256),
            "heads": runs(tp, 128),
            "features": runs(expert_tp, 2048) * (tp // expert_tp),
        },
        "step": {"rows": 32 * 4096 // ranks, "number_bytes": 2, "gradient_bytes": 4, "most_sends": min(8, ep - 1)},
        "weights": {
            "dense": {"shards": dense_shards, "along": ["dp", "ep"], "bytes": (9 << 30) // tp // dense_shards},
            "experts": {
                "shards": expert_shards,
                "along": ["dp"] if expert_tp > 1 else ["dp", "tp"],
                "bytes": (MOE_LAYERS - host_layers) * shard_bytes,
                "slab_bytes": slab_bytes,
                "shard_bytes": shard_bytes,
            },
            "stage": 0,
            "layers": MOE_LAYERS,
            "host_bytes": host_layers * shard_bytes,
            "host_layers": host_layers,
            "copied_bytes": 2 * host_layers * shard_bytes,
            "gathered_bytes": 2 * slabs * (expert_shards - 1) * shard_bytes,
        },
        "fetches": {
            "slabs": slabs,
            "groups": 1,
            "a_step": max(0, 2 * (slabs - 2)),
            "round": fetch_round(min(slabs, 6)),
        },
    }


def in_two_groups(mesh):
    """The last of two stages: three slabs, down and up by turns, in 32 groups of which two are drawn."""
    ways = [(group, up) for group in range(2) for up in (False, True)]
    uses = [(slab, up, group) for group, up in ways for slab in ((2, 1, 0) if up else (0, 1, 2))]
    fetches = [(2, 0, 1), (0, 0, 4), (2, 0, 7), (0, 0, 10)]  # slab, buffer, time
    mesh.fetches.slabs, mesh.fetches.groups, mesh.fetches.a_step = 30, 32, 64 * 28
    mesh.fetches.round = SimpleNamespace(
        slabs=3,
        uses=[SimpleNamespace(slab=slab, up=up, group=group) for slab, up, group in uses],
        before=[0, 1],
        fetches=[SimpleNamespace(slab=slab, buffer=buffer, time=time) for slab, buffer, time in fetches],
    )
    mesh.weights.layers, mesh.weights.stage = 30, 1
    return mesh


def planned(**mesh):
    return PlannedMesh(json.dumps(facts(**mesh)))
