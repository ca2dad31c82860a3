"""Contract 2 in every family: `moetune verify-layout` finds that every layout computes what one rank computes.

    .venv/bin/python tests/parity/families_layouts_test.py [BUILD_FOLDER] [unittest arguments]

In fp64 on four CPU ranks, a twin of every shape of families/: adapters on all linear maps and on routers, a balance
loss, and where the model has them the routers' correction biases and a multi-token-prediction module.
MOETUNE_TEST_FAMILY: only these model_types, set apart by spaces.
"""

import itertools
import json
import os
import re
import subprocess
import unittest

import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging

import program
from families import FAMILIES, checkpoint
from families.case import FamilyCase

logging.set_verbosity_error()

RANKS = 4
# Every axis by itself, and the pairs of them; experts whole and cut; the rest (shards, host memory, rounds of the
# exchange) where it costs no layout more. Of two key heads of a twin each of four tensor-parallel ranks has a copy.
LAYOUTS = (
    "dp=2,shard=all,offload=all",
    "ep=2,buffer_rows=5",
    "tp=4,expert_tp=4",
    "dp=2,ep=2,shard=all",
    "dp=2,tp=2,shard=all",
    "ep=2,tp=2",
    "pp=2,tp=2,pp_groups=2",
)
# Of a family's shapes the first goes through all layouts, the others through these.
MIXED = ("ep=2,tp=2", "pp=2,dp=2,pp_groups=3")
TOLERANCE = 1e-9
ROW = re.compile(
    r"^(?:pp (\d) x )?dp (\d) x ep (\d) x tp (\d)(.*?) +(\d)  (\S+) +(\S+) +(\S+) +(\S+) +same$", re.MULTILINE
)


def has_correction_bias(model):
    """Whether transformers' routers of the model in this folder have one."""
    with torch.device("meta"):
        names = AutoModelForCausalLM.from_config(checkpoint.configuration(model)).state_dict()
    return any(name.endswith("correction_bias") for name in names)


class FamiliesLayoutsTest(FamilyCase):
    def recipe(self, name):
        folder = self.folder / f"{self.family.model_type}-{name}-{len(list(self.folder.iterdir()))}"
        model = checkpoint.write_config(self.family, name, folder)
        recipe = dict(
            run=dict(dir=str(model / "run"), device="cpu", threads=1),
            model=dict(path=str(model), base="nf4"),
            adapter=dict(rank=4, alpha=8, dropout=0.1, targets=["all_linear"]),
            data=dict(train=str(model / "train.jsonl")),  # a twin has documents of its own
            train=dict(steps=1, clip=0.5),
            router=dict(
                train="lora",
                bias="update" if has_correction_bias(model) else "frozen",
                balance=dict(kind="sequence", weight=0.01),
            ),
            mtp=dict(loss_weight=0.3 if self.family.shapes[name].mtp else 0.0),
        )
        (model / "recipe.yaml").write_text(json.dumps(recipe))  # JSON is YAML
        return model / "recipe.yaml"

    def check(self, recipe, layouts):
        launch = ["mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-np", str(RANKS)]
        asked = itertools.chain.from_iterable(("--layout", layout) for layout in layouts)
        done = subprocess.run(
            [*launch, str(program.build / "moetune"), "verify-layout", str(recipe), *asked],
            capture_output=True,
            text=True,
            timeout=program.TIMEOUT_S,
            env=program.environment(),
        )
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        rows = ROW.findall(done.stdout)
        self.assertEqual(len(rows), len(layouts), done.stdout)
        for pp, dp, ep, tp, _, ranks, *distances in rows:
            self.assertEqual(int(pp or 1) * int(dp) * int(ep) * int(tp), int(ranks))
            for distance in distances:
                self.assertLessEqual(float(distance), TOLERANCE)
        # Orders of summation differ: equal bits everywhere would mean that every layout ran on one rank.
        self.assertGreater(max(float(row[7]) for row in rows), 0.0)

    def test_every_layout_computes_the_same(self):
        only = os.environ.get("MOETUNE_TEST_FAMILY", "").split()
        for self.family in FAMILIES.values():
            if only and self.family.model_type not in only:
                continue
            shapes = [name for name, shape in self.family.shapes.items() if not shape.refused]
            for name in shapes:
                with self.subTest(f"{self.family.model_type} {name}"):
                    self.check(self.recipe(name), LAYOUTS if name == shapes[0] else MIXED)

    def test_kimi_k2(self):
        """A model_type of its own for DeepSeek-V3's page, which transformers does not know."""
        self.family = FAMILIES["deepseek_v3"]
        recipe = self.recipe("plain")
        config = recipe.with_name("config.json")
        config.write_text(json.dumps(json.loads(config.read_text()) | dict(model_type="kimi_k2")))
        self.check(recipe, LAYOUTS)


if __name__ == "__main__":
    torch.set_num_threads(1)
    program.choose_build()
    unittest.main()
