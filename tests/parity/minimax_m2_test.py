"""Contract 1 on the shapes of families/minimax_m2.py.

.venv/bin/python tests/parity/minimax_m2_test.py [BUILD_FOLDER] [unittest arguments]
"""

from families import FAMILIES, case


class MinimaxM2Test(case.FamilyParity):
    family = FAMILIES["minimax_m2"]


if __name__ == "__main__":
    case.main(FAMILIES["minimax_m2"])
