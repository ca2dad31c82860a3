"""Contract 1 on the shapes of families/mixtral.py.

.venv/bin/python tests/parity/mixtral_test.py [BUILD_FOLDER] [unittest arguments]
"""

from families import FAMILIES, case


class MixtralTest(case.FamilyParity):
    family = FAMILIES["mixtral"]


if __name__ == "__main__":
    case.main(FAMILIES["mixtral"])
