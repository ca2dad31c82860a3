"""The unittest cases that the tests of a family derive from, and how such a test file runs.

class MixtralTest(case.FamilyParity):
    family = FAMILIES["mixtral"]

if __name__ == "__main__":
    case.main(FAMILIES["mixtral"])
"""

import os
import sys
import tempfile
import unittest

import torch

import adapter_files
import cases
import compare
import program
import reference
from families import SUPPORTED, checkpoint
from families.oracle import Oracle
from fixture import ParityCase

TOLERANCE = 1e-5
# In fp64 cosines and sines are still fp32, and their last bit is the device's: 1e-9 on the oracle's own.
DEVICE = os.environ.get("MOETUNE_TEST_DEVICE", "cpu")
EXACT = 1e-9 if DEVICE == "cpu" else 1e-6
# Adam divides a gradient by its own size; eps this large keeps rounding from becoming a step.
STATE_TOLERANCE, EPS = 1e-4, 1e-5
STATE = ("adapter/", "weight/", "router_bias/")
SKIPPED = 77

# How frozen maps are held, and the test of FamilyParity that compares them with the oracle.
BASES = {"fp32": "test_every_adapter", "nf4": "test_nf4"}


class FamilyCase(ParityCase):
    """Makes the checkpoints of `family` and adapters for them on first use, in a folder that goes when the class is
    done."""

    family = None

    def model(self, name):
        folder = self.folder / self.family.model_type / name
        return folder if folder.exists() else checkpoint.write(self.family, name, folder)

    def adapter(self, name, targets, rank=4, alpha=6.0, mtp=False, **settings):
        folder, layout = self.model(name), self.family.shapes[name].layout or self.family.layout
        settings = dict(maps=checkpoint.maps(self.family, folder, mtp), translate=layout.adapter) | settings
        to = self.folder / f"adapter-{len(list(self.folder.iterdir()))}"
        return adapter_files.write(to, folder, targets, rank, alpha, seed=11, **settings)

    def check(self, config, tolerance=TOLERANCE, state_tolerance=STATE_TOLERANCE):
        config = config | {"eps": EPS}
        # Held against double precision, so that only one side rounds.
        expected, actual = reference.run(config | dict(compute="fp64"), kind=Oracle), program.run(config)
        after = lambda tensors: {name: tensor for name, tensor in tensors.items() if name.startswith(STATE)}
        before = lambda tensors: {name: tensor for name, tensor in tensors.items() if not name.startswith(STATE)}
        compare.assert_close(self, before(actual), before(expected), tolerance)
        compare.assert_close(self, after(actual), after(expected), state_tolerance)


class FamilyParity(FamilyCase):
    """Contract 1 for one family: logits, loss, every adapter gradient and ten AdamW steps equal the oracle's."""

    def shapes(self):
        return [name for name, shape in self.family.shapes.items() if not shape.refused]

    def test_what_is_not_computed_is_refused_by_name(self):
        for name, shape in self.family.shapes.items():
            if shape.refused:
                with self.subTest(name), self.assertRaisesRegex(RuntimeError, shape.refused):
                    program.run(cases.config(self.model(name), self.adapter(name, ["all_linear"])))

    def test_every_adapter(self):
        """LoRA on all linear maps of every shape, ten steps."""
        for name in self.shapes():
            with self.subTest(name):
                self.check(cases.config(self.model(name), self.adapter(name, ["all_linear"]), steps=10))

    def test_fp64(self):
        """The same in double precision on both sides, where a small mistake cannot hide in rounding."""
        for name in self.shapes():
            with self.subTest(name):
                config = cases.config(self.model(name), self.adapter(name, ["all_linear"]), steps=10, compute="fp64")
                self.check(config, EXACT, EXACT)

    def test_targets(self):
        """Every group by itself, where the shape has such maps; rsLoRA; a rank other than a multiple of anything."""
        for name in self.shapes():
            maps = checkpoint.maps(self.family, self.model(name))
            for group in ("attention", "dense_mlp", "shared_expert", "experts"):
                if adapter_files.targeted(maps, [group]):
                    with self.subTest(f"{name} {group}"):
                        self.check(cases.config(self.model(name), self.adapter(name, [group], rank=3, rslora=True)))

    def test_routers(self):
        """Adapters on the routers' maps, and the maps themselves, beside adapters elsewhere; experts on two ranks, rows
        over two."""
        # A single expert's normalised weight is 1, whatever Mixtral's router says: its gradient is rounding alone.
        settings = {name: checkpoint.text_settings(self.model(name)) for name in self.shapes()}
        constant = lambda name: self.family.model_type == "mixtral" and settings[name]["num_experts_per_tok"] == 1
        for name in filter(lambda name: not constant(name), self.shapes()):
            for train in ("lora", "full"):
                for mesh in (dict(dp=1, ep=1, tp=1), dict(dp=1, ep=2), dict(dp=1, ep=1, tp=2)):
                    with self.subTest(f"{name} {train} {mesh}"):
                        adapter = self.adapter(name, ["attention", "experts"], routers=train == "lora")
                        config = cases.config(
                            self.model(name), adapter, router_train=train, compute="fp64", mesh=mesh, steps=3
                        )
                        self.check(config, EXACT, EXACT)

    def test_balance_losses(self):
        """Through the frozen routers into what lies below them, whatever slices and ranks the loads come from."""
        for name in self.shapes():
            for kind, settings in (
                ("sequence", dict(slice_tokens=28)),
                ("switch", dict(mesh=dict(dp=2, ep=1))),
                ("pooled", dict(mesh=dict(dp=1, ep=1, tp=2), keep=1)),
            ):
                with self.subTest(f"{name} {kind}"):
                    adapter = self.adapter(name, ["attention", "experts"])
                    config = cases.config(
                        self.model(name), adapter, balance=kind, balance_loss=0.05, compute="fp64", **settings
                    )
                    self.check(config, EXACT, EXACT)

    def test_mtp(self):
        """Adapters of the trunk and of the module itself, where the checkpoint has one."""
        for name in filter(lambda name: self.family.shapes[name].mtp, self.shapes()):
            for settings in (dict(slice_tokens=28), dict(mesh=dict(dp=1, ep=2), steps=3)):
                with self.subTest(f"{name} {settings}"):
                    adapter = self.adapter(name, ["all_linear"], mtp=True)
                    config = cases.config(self.model(name), adapter, mtp_loss_weight=0.3, compute="fp64", **settings)
                    self.check(config, EXACT, EXACT)

    def test_router_bias_update(self):
        """Where routers have a correction bias; the experts that a step chooses depend on the loads of those before."""
        for name in self.shapes():
            adapter = self.adapter(name, ["attention", "experts"])
            settings = dict(router_bias="update", bias_rate=0.05, compute="fp64", steps=4)
            config = cases.config(self.model(name), adapter, **settings)
            with self.subTest(name):
                if Oracle(config).router_biases():
                    self.check(config, EXACT, EXACT)
                    self.check(config | dict(mesh=dict(dp=1, ep=2)), EXACT, EXACT)
                else:
                    with self.assertRaisesRegex(RuntimeError, "router.bias: update moves a correction bias"):
                        program.run(config)

    def test_nf4(self):
        """Frozen maps in 4 bits, arithmetic in fp32; and that four ranks, whose cuts no block of them may feel, hold the
        same: equal to one rank's results in double precision, where a rounding cannot hide what another block adds."""
        name = self.shapes()[0]
        config = cases.config(self.model(name), self.adapter(name, ["all_linear"]), base="nf4")
        self.check(config)
        wide = config | dict(compute="fp64", eps=EPS)
        one, four = program.run(wide), program.run(wide | dict(mesh=dict(dp=1, ep=1, tp=4), expert_tp=4))
        compare.assert_close(self, four, one, EXACT)

    def test_sweep_settings_change_nothing(self):
        """Slices and what is kept of the way down are means, not mathematics."""
        two = dict(dp=1, ep=1, tp=2)
        for name in self.shapes():
            for settings in (
                dict(slice_tokens=28),
                dict(keep="all"),
                dict(keep="attention", slice_tokens=28),
                dict(keep="experts", mesh=two, expert_tp=2),
                dict(keep="experts", slice_tokens=28, mesh=dict(dp=1, ep=2)),
            ):
                with self.subTest(f"{name} {settings}"):
                    self.check(cases.config(self.model(name), self.adapter(name, ["all_linear"]), **settings))

    @unittest.skipIf(DEVICE == "cpu", "compares a GPU with the CPU: MOETUNE_TEST_DEVICE=cuda")
    def test_bf16_on_the_device(self):
        """Ten steps in bf16 give the losses that they give on the CPU."""
        name = next(name for name, shape in self.family.shapes.items() if not shape.refused)
        config = cases.config(
            self.model(name), self.adapter(name, ["all_linear"]), compute="bf16", base="bf16", steps=10
        )
        here, there = program.run(config | {"device": "cpu"}), program.run(config | {"device": DEVICE})
        torch.testing.assert_close(there["losses"].cpu(), here["losses"], rtol=2e-2, atol=0)

    def test_several_ranks(self):
        """Experts on two ranks, matrices cut over two and over four, where some families have two key heads for them,
        the batch over two."""
        for name in self.shapes():
            for mesh in (dict(dp=1, ep=2), dict(dp=1, ep=1, tp=2), dict(dp=1, ep=1, tp=4), dict(dp=2, ep=1)):
                with self.subTest(f"{name} {mesh}"):
                    config = cases.config(
                        self.model(name), self.adapter(name, ["all_linear"]), compute="fp64", mesh=mesh
                    )
                    self.check(config, EXACT, EXACT)


def main(family):
    """Runs the calling file's tests if the program trains `family`, or should; ends with 77 if it says that it does
    not."""
    torch.set_num_threads(1)
    program.choose_build()
    refusal = refused(family)
    supported = family.model_type in SUPPORTED
    if refusal and not supported:
        print(f"moetune does not train {family.model_type} yet: {refusal}")
        sys.exit(SKIPPED)
    if refusal:
        sys.exit(f"{family.model_type} is in families.SUPPORTED, but moetune refuses it: {refusal}")
    if not supported:
        sys.exit(f"moetune does not refuse {family.model_type}: add it to families.SUPPORTED")
    unittest.main(module="__main__")


def refused(family):
    """What moetune says when it does not know the family; None when it does, whatever else may be wrong."""
    with tempfile.TemporaryDirectory() as folder:
        name = next(iter(family.shapes))
        config = cases.config(checkpoint.write(family, name, f"{folder}/model"))
        config["documents"] = config["documents"][:1]
        try:
            program.run(config | {"batch": 1, "adapter": dict(rank=1, alpha=1.0, targets=["attention"])})
        except RuntimeError as error:
            said = [line for line in str(error).splitlines() if "model_type" in line and "this program trains" in line]
            return said[0].strip() if said else None
    return None
