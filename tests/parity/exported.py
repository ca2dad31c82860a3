"""The unittest case of tests that train with the program, export, and read what it wrote with something else.

class ExportTest(ExportCase): ...

The program trains on a checkpoint of the test's, its own logits come from `moetune logits`, and the other side knows
nothing of it but the exported folders. Weights move far (large learning rate), so that an export without effect would
show.
"""

import json
import os
import subprocess

import compare
import program
import cases
import yaml
from fixture import ParityCase
from safetensors.torch import load_file

TOLERANCE = 1e-5
STEPS = 3


class ExportCase(ParityCase):
    def moetune(self, *arguments, expect=0, ranks=1):
        """Output of the program, which must end with the exit code `expect`; on more ranks under mpirun."""
        launch = (
            ["mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-np", str(ranks)]
            if ranks > 1
            else []
        )
        done = subprocess.run(
            [*launch, str(program.build / "moetune"), *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=program.TIMEOUT_S,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        output = done.stdout + done.stderr
        self.assertEqual(done.returncode, expect, output[-4000:])
        return output

    def train(self, model, adapter, weights="pretrained", base="fp32", ranks=1, **sections):
        """Run folder of a run of a few steps on cases.documents(). `adapter`: a section of the recipe, or "none"."""
        place = self.folder / f"case-{len(list(self.folder.iterdir()))}"
        place.mkdir()
        data = place / "train.jsonl"
        data.write_text("".join(json.dumps(document) + "\n" for document in cases.documents()))
        recipe = {
            "run": {"dir": str(place / "run"), "seed": 3, "device": "cpu", "threads": 1},
            "model": {"path": str(model), "weights": weights, "base": base, "compute": "fp32"},
            "adapter": adapter,
            "data": {"train": str(data), "max_tokens": cases.MAX_TOKENS},
            "train": {
                "steps": STEPS,
                "batch": cases.BATCH,
                "optimizer": {"lr": 0.03},
                "schedule": {"kind": "constant"},
            },
        } | sections
        (place / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        self.moetune("train", place / "recipe.yaml", ranks=ranks)
        return place / "run"

    def own_logits(self, run):
        """[T, V] of all documents, end to end, as the trained model of the run computes them."""
        file = run.parent / "logits.safetensors"
        self.moetune("logits", run, run.parent / "train.jsonl", "--to", file, "--documents", len(cases.LENGTHS))
        tensors = load_file(file)
        tokens = [token for document in cases.documents() for token in document["input_ids"]]
        self.assertEqual(tensors["input_ids"].flatten().tolist(), tokens)
        return tensors["logits"]

    def assert_same(self, actual, expected, far_from, tolerance=TOLERANCE):
        """`far_from`: the logits that an export without effect would give."""
        self.assertGreater(compare.relative(expected, far_from), 0.01)
        self.assertLess(compare.relative(actual, expected), tolerance)

    def adapter_section(self, targets, **changes):
        return dict(rank=4, alpha=6.0, targets=targets) | changes
