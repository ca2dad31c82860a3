"""Proves that includes point one way, trainer -> moe -> lora -> parallel and from room to room inside them, that no two
units include each other in a circle, and that each third-party surface stays where it belongs. Prints each include that
does not, and exits 1.

    python3 scripts/check_includes.py [ROOT]
"""

import pathlib
import re
import sys

# From the bottom up: a file includes its own room and those above it in this list. A room is a folder, or one unit.
ROOMS = [
    "parallel/base",
    "parallel/device",
    "parallel/watch",
    "parallel/comm",
    "parallel/bytes",
    "lora/layer_id",
    "lora/formats",
    "lora/adapters",
    "lora",
    "moe",
    "trainer/recipe",
    "trainer/data",
    "trainer/sweep",
    "trainer/update",
    "trainer/state",
    "trainer/plan",
    "trainer/assemble",
    "trainer/run",
    "trainer/bench",
    "trainer/exports",
    "trainer/verify",
    "trainer/main",
]
TORCH = re.compile(r"(torch|ATen|c10|caffe2)/")
# what is included, the only places that may (folders end in '/'), why
SURFACES = [
    (re.compile(r"mpi\.h$"), ["parallel/comm/"], "ranks talk through parallel/comm/communicator.h"),
    (
        re.compile(r"nccl\.h$"),
        ["parallel/comm/", "parallel/watch/nccl_watch"],
        "ranks talk through parallel/comm/communicator.h",
    ),
    (re.compile(r"yaml-cpp/"), ["trainer/recipe/recipe_yaml.cpp"], "recipes are read in one place"),
    (re.compile(r"(spdlog|fmt)/"), ["parallel/base/log.cpp"], "log through parallel/base/log.h"),
    (re.compile(r"CLI/"), ["trainer/"], "only the program knows a command line"),
    (re.compile(r"catch2/"), ["tests/"], "tests live in tests/"),
]
HIDDEN_FROM_MOE = re.compile(r"parallel/\w+/(\w*communicator|mesh|launch|shard_groups|weight_store)\.h$")
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')
CODE = {".h", ".cpp", ".cu", ".cuh"}


def is_in(path, place):
    """Whether a file lies in a place: a folder, or a unit named without its ending."""
    return path == place or path.startswith((place.rstrip("/") + "/", place + "."))


def room_of(path):
    """The index in ROOMS of a file of ours, by the longest name that fits, or None."""
    fitting = [i for i, room in enumerate(ROOMS) if is_in(path, room)]
    return max(fitting, key=lambda i: len(ROOMS[i]), default=None)


def unit_of(path):
    """A header and its sources are one unit: safetensors.h, safetensors.cpp."""
    return path.rpartition(".")[0]


def read_includes(root):
    """{file: [(line number, quoted, what it includes)]} of all code, paths relative to the root."""
    includes = {}
    for folder in ("parallel", "lora", "moe", "trainer"):
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in CODE:
                lines = path.read_text(encoding="utf-8").splitlines()
                found = ((number, INCLUDE.match(line)) for number, line in enumerate(lines, 1))
                includes[path.relative_to(root).as_posix()] = [(n, m[1] == '"', m[2]) for n, m in found if m]
    return includes


def way_to_torch(path, includes, seen):
    """The chain of includes by which a file sees a torch header, or None."""
    if path in seen:
        return None
    seen.add(path)
    for _, _, target in includes.get(path, []):
        if TORCH.match(target):
            return [path, target]
        way = way_to_torch(target, includes, seen)
        if way:
            return [path] + way
    return None


def circles(includes):
    """Units that include each other, each circle once, as the units on the way round."""
    targets = {}
    for path, found in includes.items():
        units = {unit_of(target) for _, _, target in found if target in includes} - {unit_of(path)}
        targets.setdefault(unit_of(path), set()).update(units)
    done, way, found = set(), [], []

    def visit(unit):
        if unit in way:
            found.append(way[way.index(unit) :] + [unit])
        elif unit not in done:
            way.append(unit)
            for target in sorted(targets.get(unit, ())):
                visit(target)
            way.pop()
            done.add(unit)

    for unit in sorted(targets):
        visit(unit)
    return found


def mistakes_in(path, includes):
    room = room_of(path)
    if room is None:
        yield f"{path}: lies in none of the rooms; they are listed in scripts/check_includes.py"
        return
    for number, quoted, target in includes[path]:
        where = f"{path}:{number}: includes {target}"
        target_room = room_of(target)
        if target_room is not None and target_room > room:
            yield f"{where}: {ROOMS[target_room]} lies above {ROOMS[room]}"
        if quoted and target not in includes and not any(s.search(target) for s, _, _ in SURFACES):
            yield f"{where}: no such file; our includes are written from the root of the checkout"
        for surface, homes, why in SURFACES:
            if surface.match(target) and not any(is_in(path, home) for home in homes):
                yield f"{where}: only {', '.join(homes)} may; {why}"
        if ROOMS[room] == "moe" and HIDDEN_FROM_MOE.match(target):
            yield f"{where}: the model knows no ranks and no store; trainer/assemble hands it its seams"
    if ROOMS[room] == "parallel/base" or path.endswith((".cu", ".cuh")):
        way = way_to_torch(path, includes, set())
        if way:
            yield f"{path}: sees torch by {' -> '.join(way)}; parallel/base and CUDA units must not"


def main():
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent.parent).resolve()
    includes = read_includes(root)
    mistakes = [mistake for path in includes for mistake in mistakes_in(path, includes)]
    mistakes += [f"a circle of units: {' -> '.join(circle)}" for circle in circles(includes)]
    for mistake in mistakes:
        print(mistake)
    print(f"{len(includes)} files, {sum(map(len, includes.values()))} includes, {len(mistakes)} mistakes")
    if not includes:
        sys.exit(f"no code below {root}")
    sys.exit(1 if mistakes else 0)


if __name__ == "__main__":
    main()
