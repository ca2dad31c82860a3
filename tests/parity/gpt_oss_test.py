"""Contract 1 on the shapes of families/gpt_oss.py.

.venv/bin/python tests/parity/gpt_oss_test.py [BUILD_FOLDER] [unittest arguments]
"""

from families import FAMILIES, case


class GptOssTest(case.FamilyParity):
    family = FAMILIES["gpt_oss"]


if __name__ == "__main__":
    case.main(FAMILIES["gpt_oss"])
