"""Contract 1 on the shapes of families/deepseek_v2.py.

.venv/bin/python tests/parity/deepseek_v2_test.py [BUILD_FOLDER] [unittest arguments]
"""

from families import FAMILIES, case


class DeepseekV2Test(case.FamilyParity):
    family = FAMILIES["deepseek_v2"]


if __name__ == "__main__":
    case.main(FAMILIES["deepseek_v2"])
