"""Contract 1 on the shapes of families/qwen3_moe.py.

.venv/bin/python tests/parity/qwen3_moe_test.py [BUILD_FOLDER] [unittest arguments]
"""

from families import FAMILIES, case


class Qwen3MoeTest(case.FamilyParity):
    family = FAMILIES["qwen3_moe"]


if __name__ == "__main__":
    case.main(FAMILIES["qwen3_moe"])
