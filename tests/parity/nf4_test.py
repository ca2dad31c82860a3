"""NF4 bases: logits and gradients equal those of transformers on weights that bitsandbytes quantised and decoded.

    .venv/bin/python tests/parity/nf4_test.py [BUILD_FOLDER] [unittest arguments]

held_weights.py says what is quantised and from which dtype: "groups" and "mtp" are stored in fp32, "plain" in bf16,
"fp8" in FP8 blocks. Blocks of 64 straddle rows (inputs of 12 to 48 elements).
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
        for name, mtp_loss_weight in (("groups", 0.0), ("plain", 0.0), ("fp8", 0.0), ("mtp", 0.3)):
            for base in ("nf4", "nf4_double"):
                with self.subTest(f"{name} {base}"):
                    adapter = self.adapter(name, ["all_linear"], mtp=mtp_loss_weight > 0)
                    config = cases.config(self.model(name), adapter, base=base, mtp_loss_weight=mtp_loss_weight)
                    compare.assert_close(self, program.run(config), reference.run(config), TOLERANCE)

    def test_same_codes_on_two_ranks(self):
        """The statistics of double quantisation come from the whole tensor, whoever owns it."""
        config = cases.config(
            self.model("groups"), self.adapter("groups", ["experts"]), base="nf4_double", mesh={"dp": 1, "ep": 2}
        )
        compare.assert_close(self, program.run(config), reference.run(config), TOLERANCE)


if __name__ == "__main__":
    torch.set_num_threads(1)
    program.choose_build()
    unittest.main()
