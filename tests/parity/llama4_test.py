"""Contract 1 on the shapes of families/llama4.py.

.venv/bin/python tests/parity/llama4_test.py [BUILD_FOLDER] [unittest arguments]
"""

from families import FAMILIES, case


class Llama4Test(case.FamilyParity):
    family = FAMILIES["llama4_text"]


if __name__ == "__main__":
    case.main(FAMILIES["llama4_text"])
