"""NF4 bases: logits and gradients equal those of transformers on weights that bitsandbytes quantised and decoded.

    .venv/bin/python tests/parity/nf4_test.py [BUILD_FOLDER] [unittest arguments]

held_weights.py says what is quantised and from which dtype: "groups" is stored in fp32, "plain" in bf16. Blocks of 64
straddle rows in both (inputs of 12 to 48 elements).
"""

import unittest

import torch

import cases
import compare
import program
import reference
from fixture import ParityCase

TOLERANCE = 1e-5


class Nf4Test(ParityCase):
    def test_logits_and_gradients(self):
        for name in ("groups", "plain"):
            for base in ("nf4", "nf4_double"):
                with self.subTest(f"{name} {base}"):
                    config = cases.config(self.model(name), self.adapter(name, ["all_linear"]), base=base)
                    compare.assert_close(self, program.run(config), reference.run(config), TOLERANCE)

    def test_same_codes_on_two_ranks(self):
        """The statistics of double quantisation come from the whole tensor, whoever owns it."""
        config = cases.config(self.model("groups"), self.adapter("groups", ["experts"]), base="nf4_double",
                              mesh={"dp": 1, "ep": 2})
        compare.assert_close(self, program.run(config), reference.run(config), TOLERANCE)


if __name__ == "__main__":
    torch.set_num_threads(1)
    program.choose_build()
    unittest.main()
