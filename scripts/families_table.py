"""The support table of docs/families.md, from what the parity tests run.

    .venv/bin/python scripts/families_table.py            # writes it
    .venv/bin/python scripts/families_table.py --check    # exit 1 where the document differs

A row is a family of tests/parity/families: its shapes say in which formats its checkpoints are read and which groups of
maps get adapters. What every family goes through is said by its tests: bases by families/case.py, meshes by
families_layouts_test.py, exports by families_export_test.py.
"""

import pathlib
import re
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "families.md"
BEGIN, END = "<!-- written by scripts/families_table.py -->", "<!-- end -->"
GROUPS = ("attention", "dense_mlp", "shared_expert", "experts")
sys.path.insert(0, str(ROOT / "tests" / "parity"))

MODELS = {
    "deepseek_v2": "DeepSeek-V2, V2-Lite, V2-Chat",
    "deepseek_v3": "DeepSeek-V3, R1, Kimi-K2, Moonlight",
    "deepseek_v32": "DeepSeek-V3.2 (documents of at most index_topk tokens)",
    "dots1": "dots.llm1",
    "glm4_moe": "GLM-4.5, 4.5-Air, 4.6, 4.7",
    "glm4_moe_lite": "GLM-4.7-Flash",
    "glm_moe_dsa": "GLM-5 (documents of at most index_topk tokens)",
    "gpt_oss": "gpt-oss-20b, 120b",
    "llama4_text": "Llama-4 Scout, Maverick (text)",
    "minimax_m2": "MiniMax-M2",
    "mixtral": "Mixtral 8x7B, 8x22B",
    "olmoe": "OLMoE-1B-7B",
    "qwen2_moe": "Qwen1.5-MoE, Qwen2-MoE",
    "qwen3_moe": "Qwen3-30B-A3B, 235B-A22B",
}


def meshes(layouts):
    """ "EP 2, EP 2 x TP 2" of the layouts "ep=2,buffer_rows=5" and "ep=2,tp=2": axes of more than one rank."""
    found = []
    for layout in layouts:
        values = dict(item.split("=") for item in layout.split(","))
        axes = " x ".join(f"{axis.upper()} {values[axis]}" for axis in ("dp", "ep", "tp") if axis in values)
        found.append(axes + (" with experts" if "expert_tp" in values else ""))
    return ", ".join(dict.fromkeys(found))


def require_tests(case, names):
    missing = [name for name in names if not hasattr(case, name)]
    if missing:
        sys.exit(f"{case.__name__} has no {', '.join(missing)}, which the table of families relies on")


def table():
    import adapter_files
    import families_export_test
    import families_layouts_test
    import models
    from families import FAMILIES, PAGES, case, checkpoint

    require_tests(case.FamilyParity, case.BASES.values())
    require_tests(families_export_test.FamiliesExportTest, families_export_test.EXPORTS.values())
    columns = ("`model_type`", "models", "weights on disk", "base", "targets", "mesh", "export", "proved by")
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    pages = dict(zip(FAMILIES, PAGES))
    for name, family in sorted(FAMILIES.items()):
        formats, groups = {"bf16, fp16, fp32"}, set()
        if name == "deepseek_v3" and any(shape.fp8 for shape in models.SHAPES.values()):  # its test has more shapes
            formats.add("FP8 blocks")
        shapes = {shape: spec for shape, spec in family.shapes.items() if not spec.refused}
        for shape, spec in shapes.items():
            if spec.fp8:
                formats.add("FP8 blocks")
            with tempfile.TemporaryDirectory() as folder:
                model = checkpoint.write(family, shape, pathlib.Path(folder) / "model")
                if "mxfp4" in (model / "config.json").read_text():
                    formats.add("MXFP4")
                maps = checkpoint.maps(family, model)
                groups |= {group for group in GROUPS if adapter_files.targeted(maps, [group])}
        oracle = "the authors' equations" if family.equations else "transformers"
        targets = ", ".join(group for group in GROUPS if group in groups)
        disk = ", ".join(sorted(formats, key=lambda text: (not text.startswith("bf16"), text)))
        test = ROOT / "tests" / "parity" / f"{pages[name]}_test.py"
        if not test.exists():
            sys.exit(f"{test} does not exist, which would prove {name}")
        cells = (
            f"`{name}`",
            MODELS[name],
            disk,
            ", ".join(case.BASES),
            targets,
            meshes(families_layouts_test.LAYOUTS),
            ", ".join(families_export_test.exports(family)),
            f"`{test.name}` on {', '.join(shapes)}, against {oracle}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main():
    text = DOCUMENT.read_text()
    fresh = re.sub(f"{re.escape(BEGIN)}.*?{re.escape(END)}", f"{BEGIN}\n{table()}\n{END}", text, flags=re.S)
    if "--check" in sys.argv[1:]:
        if fresh != text:
            sys.exit("docs/families.md differs from the tests; write it again: scripts/families_table.py")
        return
    DOCUMENT.write_text(fresh)


if __name__ == "__main__":
    main()
