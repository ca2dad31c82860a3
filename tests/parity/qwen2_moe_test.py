"""Contract 1 on the shapes of families/qwen2_moe.py.

.venv/bin/python tests/parity/qwen2_moe_test.py [BUILD_FOLDER] [unittest arguments]
"""

from families import FAMILIES, case


class Qwen2MoeTest(case.FamilyParity):
    family = FAMILIES["qwen2_moe"]


if __name__ == "__main__":
    case.main(FAMILIES["qwen2_moe"])
