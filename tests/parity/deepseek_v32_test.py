"""Contract 1 on the shapes of families/deepseek_v32.py.

.venv/bin/python tests/parity/deepseek_v32_test.py [BUILD_FOLDER] [unittest arguments]
"""

from families import FAMILIES, case


class DeepseekV32Test(case.FamilyParity):
    family = FAMILIES["deepseek_v32"]


if __name__ == "__main__":
    case.main(FAMILIES["deepseek_v32"])
