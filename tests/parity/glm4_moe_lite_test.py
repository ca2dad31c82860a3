"""Contract 1 on the shapes of families/glm4_moe_lite.py.

.venv/bin/python tests/parity/glm4_moe_lite_test.py [BUILD_FOLDER] [unittest arguments]
"""

from families import FAMILIES, case


class Glm4MoeLiteTest(case.FamilyParity):
    family = FAMILIES["glm4_moe_lite"]


if __name__ == "__main__":
    case.main(FAMILIES["glm4_moe_lite"])
