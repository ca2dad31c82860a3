"""Contract 1 on the shapes of families/olmoe.py.

.venv/bin/python tests/parity/olmoe_test.py [BUILD_FOLDER] [unittest arguments]
"""

from families import FAMILIES, case


class OlmoeTest(case.FamilyParity):
    family = FAMILIES["olmoe"]


if __name__ == "__main__":
    case.main(FAMILIES["olmoe"])
