"""Contract 1 on the shapes of families/glm_moe_dsa.py.

.venv/bin/python tests/parity/glm_moe_dsa_test.py [BUILD_FOLDER] [unittest arguments]
"""

from families import FAMILIES, case


class GlmMoeDsaTest(case.FamilyParity):
    family = FAMILIES["glm_moe_dsa"]


if __name__ == "__main__":
    case.main(FAMILIES["glm_moe_dsa"])
