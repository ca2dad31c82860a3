"""Contract 1 on the shapes of families/dots1.py.

.venv/bin/python tests/parity/dots1_test.py [BUILD_FOLDER] [unittest arguments]
"""

from families import FAMILIES, case


class Dots1Test(case.FamilyParity):
    family = FAMILIES["dots1"]


if __name__ == "__main__":
    case.main(FAMILIES["dots1"])
