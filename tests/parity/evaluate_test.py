"""moetune evaluate of a model's folder gives transformers' loss, document by document.

.venv/bin/python tests/parity/evaluate_test.py [BUILD_FOLDER] [unittest arguments]
"""

import json
import os
import subprocess
import unittest

import torch

import cases
import program
from families import FAMILIES, case
from families.oracle import Oracle


class EvaluateTest(case.FamilyCase):
    family = FAMILIES["qwen3_moe"]

    def test_loss_by_document(self):
        for name, shape in self.family.shapes.items():
            if shape.refused:
                continue
            with self.subTest(name):
                config = cases.config(self.model(name))
                oracle = Oracle(config)
                with torch.no_grad():
                    expected = [float(oracle.losses([document])["loss"]) for document in config["documents"]]
                    whole = float(oracle.losses(config["documents"])["loss"])
                data, to = self.folder / f"{name}.jsonl", self.folder / f"{name}-losses.jsonl"
                data.write_text("".join(json.dumps(document) + "\n" for document in config["documents"]))
                held = [
                    "model.base=fp32",
                    "model.compute=fp32",
                    "run.device=cpu",
                    f"data.max_tokens={cases.MAX_TOKENS}",
                ]
                done = subprocess.run(
                    [program.build / "moetune", "evaluate", self.model(name), data, *held, "--to", to],
                    capture_output=True,
                    text=True,
                    env=os.environ | {"OMP_NUM_THREADS": "1"},
                )
                self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
                found = [json.loads(line) for line in to.read_text().splitlines()]
                self.assertEqual(len(found), len(expected))
                for one, loss in zip(found, expected):
                    self.assertAlmostEqual(one["loss"], loss, delta=1e-5 * abs(loss))
                targets = sum(one["target_tokens"] for one in found)
                mean = sum(one["loss"] * one["target_tokens"] for one in found) / targets
                self.assertAlmostEqual(mean, whole, delta=1e-5 * abs(whole))


if __name__ == "__main__":
    torch.set_num_threads(1)
    program.choose_build()
    unittest.main(module="__main__")
