"""Proves that includes point one way: trainer -> moe -> lora -> parallel -> parallel/base, and that each third-party
surface stays where it belongs. Prints each include that does not, and exits 1.

    python3 scripts/check_includes.py [ROOT]
"""

import pathlib
import re
import sys

LAYERS = ["parallel/base", "parallel", "lora", "moe", "trainer"]  # from the bottom up
TORCH = re.compile(r"(torch|ATen|c10|caffe2)/")
# what is included, the only places that may (folders end in '/'), why
SURFACES = [
    (re.compile(r"mpi\.h$"), ["parallel/"], "ranks talk through parallel/comm/communicator.h"),
    (re.compile(r"nccl\.h$"), ["parallel/"], "ranks talk through parallel/comm/communicator.h"),
    (re.compile(r"yaml-cpp/"), ["trainer/recipe/recipe_yaml.cpp"], "recipes are read in one place"),
    (re.compile(r"(spdlog|fmt)/"), ["parallel/base/log.cpp"], "log through parallel/base/log.h"),
    (re.compile(r"CLI/"), ["trainer/"], "only the program knows a command line"),
    (re.compile(r"catch2/"), ["tests/"], "tests live in tests/"),
]
HIDDEN_FROM_MOE = re.compile(r"parallel/(communicator|mesh|weight_store)\w*\.h$")
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')
CODE = {".h", ".cpp", ".cu", ".cuh"}


def layer_of(path):
    """The index in LAYERS of a file of ours, or None."""
    return next((i for i, layer in enumerate(LAYERS) if path.startswith(layer + "/")), None)


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


def mistakes_in(path, includes):
    layer = layer_of(path)
    for number, quoted, target in includes[path]:
        where = f"{path}:{number}: includes {target}"
        target_layer = layer_of(target)
        if target_layer is not None and target_layer > layer:
            yield f"{where}: {LAYERS[target_layer]} lies above {LAYERS[layer]}"
        if quoted and target not in includes and not any(s.search(target) for s, _, _ in SURFACES):
            yield f"{where}: no such file; our includes are written from the root of the checkout"
        for surface, homes, why in SURFACES:
            if surface.match(target) and not any(path == h or (h.endswith("/") and path.startswith(h)) for h in homes):
                yield f"{where}: only {', '.join(homes)} may; {why}"
        if LAYERS[layer] == "moe" and HIDDEN_FROM_MOE.match(target):
            yield f"{where}: the model knows no ranks and no store; trainer/assemble hands it its seams"
    if LAYERS[layer] == "parallel/base" or path.endswith((".cu", ".cuh")):
        way = way_to_torch(path, includes, set())
        if way:
            yield f"{path}: sees torch by {' -> '.join(way)}; parallel/base and CUDA units must not"


def main():
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent.parent).resolve()
    includes = read_includes(root)
    mistakes = [mistake for path in includes for mistake in mistakes_in(path, includes)]
    for mistake in mistakes:
        print(mistake)
    print(
        f"{len(includes)} files, {sum(map(len, includes.values()))} includes, {len(mistakes)} that point the wrong way"
    )
    if not includes:
        sys.exit(f"no code below {root}")
    sys.exit(1 if mistakes else 0)


if __name__ == "__main__":
    main()
