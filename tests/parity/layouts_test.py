"""Contract: `moetune verify-layout` finds that every layout computes what one rank computes, and says so when one does
not parse.

    .venv/bin/python tests/parity/layouts_test.py [BUILD_FOLDER] [unittest arguments]

Layouts of up to eight ranks, stages of a pipeline among them, in fp64, LoRA on every target with dropout, MTP, balance loss and bias update on a
double-quantised base.
"""

import re
import subprocess
import unittest

import program
from fixture import ParityCase

RECIPE = """
run: {{dir: {folder}/run, device: cpu}}
model: {{path: {model}, base: nf4_double}}
adapter: {{rank: 4, alpha: 8, dropout: 0.1, targets: [all_linear]}}
data: {{train: {folder}/train.jsonl}}
train: {{steps: 1, clip: 0.5}}
mesh: {{ep: 1}}
router: {{bias: update, balance_loss: 0.01}}
mtp: {{loss_weight: 0.3}}
"""


class LayoutsTest(ParityCase):
    def verify(self, ranks, *arguments):
        recipe = self.folder / "recipe.yaml"
        recipe.write_text(RECIPE.format(folder=self.folder, model=self.model("mtp")))
        launch = (
            ["mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-np", str(ranks)]
            if ranks > 1
            else []
        )
        return subprocess.run(
            [*launch, str(program.build / "moetune"), "verify-layout", str(recipe), *arguments],
            capture_output=True,
            text=True,
            timeout=900,
        )

    def test_every_layout_computes_the_same(self):
        done = self.verify(8)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        lines = re.findall(
            r"^(?:pp (\d) x )?dp (\d) x ep (\d) x tp (\d)(.*?) +(\d)  (\S+) +(\S+) +(\S+) +(\S+) +same$",
            done.stdout,
            re.MULTILINE,
        )
        self.assertGreaterEqual(len(lines), 30, done.stdout)
        self.assertGreaterEqual(sum(line[0] != "" for line in lines), 8, done.stdout)
        for pp, dp, ep, tp, _, ranks, *distances in lines:
            self.assertEqual(int(pp or 1) * int(dp) * int(ep) * int(tp), int(ranks))
            for distance in distances:
                self.assertLessEqual(float(distance), 1e-9)
        # Orders of summation differ: equal bits everywhere would mean that every layout ran on one rank.
        self.assertGreater(max(float(line[7]) for line in lines), 0.0)
        said = "\n".join(line[4] for line in lines)
        for word in ("sharded", "from host", "rounds", "experts too", "1 group", "40 groups"):
            self.assertIn(word, said)

    def test_parts_that_some_stages_alone_freeze_or_train(self):
        """Frozen is something on the first and the last stage of three alone, or trained on the last alone."""
        for changes in (
            ["train.parts=[experts, attention, dense_mlp, shared_expert, router, norms]"],
            ["train.parts=[head]"],
            ["train.parts=[embedding]", "mtp.loss_weight=0"],
        ):
            parts = ["adapter=none", "model.base=fp32", "router.balance_loss=0", *changes]
            done = self.verify(3, *parts, "--layout", "pp=3,pp_groups=2", "--layout", "pp=2")
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
            self.assertIn("2 of 2 layouts compute what one rank computes", done.stdout)

    def test_weights_that_train_lie_in_shards(self):
        layouts = (
            "dp=2,ep=2,shard=all",
            "dp=2,tp=2,expert_tp=2,shard=all,offload=all",
            "tp=4,shard=all",
            "pp=2,dp=2,shard=all,pp_groups=3",
            "pp=2,ep=2,offload=all",
        )
        named = [word for layout in layouts for word in ("--layout", layout)]
        for parts in (
            ["adapter=none", "model.base=fp32"],
            ["train.parts=[router, norms, embedding]", "adapter.targets=[attention]"],
        ):
            done = self.verify(4, *parts, *named)
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
            self.assertIn("5 of 5 layouts compute what one rank computes", done.stdout)

    def test_levels_of_what_layers_keep(self):
        """On several ranks and stages, groups of documents and streamed weights among them."""
        layouts = ("ep=2,dp=2,buffer_rows=7", "tp=4,shard=all,offload=all", "ep=2,tp=2,expert_tp=2", "pp=2,pp_groups=3")
        for keep in ("attention", "experts", "1"):
            named = [word for layout in layouts for word in ("--layout", layout)]
            done = self.verify(4, f"train.keep={keep}", "offload.activations=host", *named)
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
            self.assertIn("4 of 4 layouts compute what one rank computes", done.stdout)

    def test_ranks_without_an_expert_that_trains(self):
        """They fetch no trained experts, and meet the others in the sums and gathers of all else."""
        done = self.verify(
            4,
            "train.parts=[experts]",
            "train.experts=[0]",
            "adapter.targets=[attention]",
            *("--layout", "ep=2,offload=all", "--layout", "ep=2,dp=2,shard=all", "--layout", "ep=4,offload=all"),
        )
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertIn("3 of 3 layouts compute what one rank computes", done.stdout)

    def test_layouts_that_cannot_be(self):
        for layout, reason in (
            ("dp=2", "2 ranks; the job has 1"),
            ("dq=2", "'dq=2' is not understood"),
            ("shard=some", "'shard=some' is not understood"),
            ("tp=4,expert_tp=2", "expert_tp is 2; allowed is 1, or tp, which is 4"),
        ):
            done = self.verify(1, "--layout", layout)
            self.assertEqual(done.returncode, 2)
            self.assertIn(reason, done.stderr)


if __name__ == "__main__":
    program.choose_build()
    unittest.main()
