"""Contract 1: logits, losses and every gradient of moetune equal those of transformers, per tensor to 1e-5 in fp32.

    .venv/bin/python tests/parity/deepseek_v3_test.py [BUILD_FOLDER] [unittest arguments]

The reference is reference.py, which reference_test.py proves against PEFT.
"""

import os
import unittest

import torch
from transformers import DeepseekV3ForCausalLM

import cases
import compare
import program
import reference
from families import FAMILIES, case
from fixture import ParityCase

TOLERANCE = 1e-5
# In fp64 cosines and sines are still fp32, and their last bit is the device's: 1e-9 on the reference's own.
EXACT = 1e-9 if os.environ.get("MOETUNE_TEST_DEVICE", "cpu") == "cpu" else 1e-6
BF16_TOLERANCE = 2e-2
# Adam divides a gradient by its own size, so what was rounding in an element near zero is then a part of the step.
STATE_TOLERANCE = 1e-4
STATE = ("adapter/", "weight/", "router_bias/")


class DeepseekV3Test(ParityCase):
    def check(self, config, tolerance=TOLERANCE, state_tolerance=STATE_TOLERANCE):
        """Runs both sides on `config` and compares every tensor."""
        expected, actual = reference.run(config), program.run(config)
        after = lambda tensors: {name: tensor for name, tensor in tensors.items() if name.startswith(STATE)}
        before = lambda tensors: {name: tensor for name, tensor in tensors.items() if not name.startswith(STATE)}
        compare.assert_close(self, before(actual), before(expected), tolerance)
        compare.assert_close(self, after(actual), after(expected), state_tolerance)

    def test_every_adapter(self):
        """LoRA on all linear maps, ten AdamW steps."""
        for name in ("groups", "plain", "fp8"):
            with self.subTest(name):
                self.check(cases.config(self.model(name), self.adapter(name, ["all_linear"]), steps=10))

    def test_targets(self):
        """Groups, leaf names, one projection of the experts; rsLoRA; a rank other than a multiple of anything."""
        for name, targets, settings in (
            ("groups", ["attention"], dict(rslora=True, alpha=4.0)),
            ("groups", ["experts"], dict(rank=3)),
            ("plain", ["q_proj", "kv_b_proj", "experts.up_proj"], {}),
            ("plain", ["shared_expert", "dense_mlp"], {}),
            ("groups", ["gate_proj", "o_proj"], dict(rslora=True)),
        ):
            with self.subTest(f"{name} {targets}"):
                self.check(cases.config(self.model(name), self.adapter(name, targets, **settings)))

    def test_scales_that_are_powers_of_two(self):
        """U8 holds the exponent of an FP8 block's scale (e8m0), not the scale."""
        self.check(cases.config(self.model("fp8_e8m0"), self.adapter("fp8_e8m0", ["attention"])))

    def test_tied_head(self):
        """tie_word_embeddings: the logits that transformers gives of the same folder, whether the file holds no head or
        the embedding once more."""
        for name in ("tied", "tied_twice"):
            with self.subTest(name):
                config = cases.config(self.model(name), self.adapter(name, ["attention"]))
                model = DeepseekV3ForCausalLM.from_pretrained(config["model"], dtype=torch.float32)
                with torch.no_grad():
                    logits = [model(torch.tensor([d["input_ids"]])).logits[0] for d in config["documents"]]
                # B of a fresh adapter is 0.
                actual = program.run(config | {"adapter": config["adapter"] | {"from": None}})
                compare.assert_close(self, {"logits": actual["logits"]}, {"logits": torch.cat(logits)}, TOLERANCE)

    def test_mtp(self):
        """Adapters of the trunk and of the module itself; its embedding and head shared or its own."""
        for name in ("mtp", "mtp_own_head", "fp8"):
            with self.subTest(name):
                adapter = self.adapter(name, ["all_linear"], mtp=True)
                self.check(cases.config(self.model(name), adapter, mtp_loss_weight=0.3, steps=10))

    def test_mtp_module_left_alone(self):
        """At weight 0 the module of the checkpoint has no part in anything."""
        self.check(cases.config(self.model("mtp"), self.adapter("mtp", ["attention"])))

    def test_full_training(self):
        """`adapter: none`: the gradient of every weight, ten AdamW steps."""
        for name, mtp_loss_weight in (("groups", 0.0), ("plain", 0.0), ("mtp", 0.3), ("mtp_own_head", 0.3)):
            with self.subTest(name):
                self.check(cases.config(self.model(name), mtp_loss_weight=mtp_loss_weight, steps=10))

    def test_balance_loss(self):
        """Through the frozen router into the adapters below it; into the router itself in full training."""
        for adapter in (self.adapter("groups", ["attention", "experts"]), None):
            with self.subTest("adapter" if adapter else "full"):
                self.check(cases.config(self.model("groups"), adapter, balance_loss=0.05))

    def test_balance_losses_of_the_step(self):
        """Loads of the whole step, whatever the slices and ranks are, and whether graphs are kept."""
        adapter = self.adapter("groups", ["attention", "experts"])
        for kind in ("switch", "pooled"):
            for settings in (
                dict(),
                dict(slice_tokens=28),
                dict(keep=1, slice_tokens=56),
                dict(mesh=dict(dp=2, ep=1)),
                dict(mesh=dict(dp=1, ep=1, tp=2)),
            ):
                with self.subTest(kind=kind, **settings):
                    self.check(cases.config(self.model("groups"), adapter, balance_loss=0.05, balance=kind, **settings))
            with self.subTest(kind=kind, full=True):
                self.check(cases.config(self.model("groups"), None, balance_loss=0.05, balance=kind))

    def test_router_bias_update(self):
        for rate in (0.001, 0.05):
            with self.subTest(rate=rate):
                self.check(
                    cases.config(
                        self.model("groups"),
                        self.adapter("groups", ["attention", "experts"]),
                        steps=10,
                        router_bias="update",
                        bias_rate=rate,
                    )
                )

    def test_sweep_settings_change_nothing(self):
        """Slices and what is kept of the way down are means, not mathematics."""
        adapter = self.adapter("mtp", ["all_linear"], mtp=True)
        for settings in (dict(slice_tokens=56), dict(slice_tokens=28), dict(keep="all"), dict(keep=1, slice_tokens=56)):
            with self.subTest(settings):
                self.check(cases.config(self.model("mtp"), adapter, mtp_loss_weight=0.3, balance_loss=0.05, **settings))
        for settings in (dict(slice_tokens=56), dict(keep="all")):
            with self.subTest(settings):
                self.check(cases.config(self.model("groups"), **settings))

    def test_bf16_base(self):
        """Projections rounded to bf16, arithmetic in fp32."""
        self.check(cases.config(self.model("groups"), self.adapter("groups", ["all_linear"]), base="bf16"))

    def test_several_ranks(self):
        for mesh in (dict(dp=1, ep=2), dict(dp=2, ep=1)):
            with self.subTest(mesh):
                adapter = self.adapter("mtp", ["all_linear"], mtp=True)
                self.check(
                    cases.config(
                        self.model("mtp"),
                        adapter,
                        mesh=mesh,
                        mtp_loss_weight=0.3,
                        balance_loss=0.05,
                        router_bias="update",
                        steps=3,
                    )
                )

    def test_fp64(self):
        """The same in double precision on both sides, where a small mistake cannot hide in rounding."""
        settings = dict(compute="fp64", steps=10, balance_loss=0.05, router_bias="update")
        for name, mtp_loss_weight in (("groups", 0.0), ("mtp", 0.3)):
            for adapter in (self.adapter(name, ["all_linear"], mtp=mtp_loss_weight > 0), None):
                with self.subTest(f"{name} {'adapter' if adapter else 'full'}"):
                    config = cases.config(self.model(name), adapter, mtp_loss_weight=mtp_loss_weight, **settings)
                    self.check(config, tolerance=EXACT, state_tolerance=EXACT)

    def test_bf16(self):
        """What runs use: bf16 over NF4. Losses of ten steps stay within bf16's rounding of the fp32 reference on the
        same weights."""
        for base in ("bf16", "nf4"):
            with self.subTest(base):
                config = cases.config(self.model("groups"), self.adapter("groups", ["all_linear"]), steps=10, base=base)
                losses = program.run(config | {"compute": "bf16"})["losses"]
                expected = reference.run(config)["losses"]
                self.assertEqual(losses.shape, expected.shape)
                self.assertLess(((losses - expected) / expected).abs().max().item(), BF16_TOLERANCE)
                self.assertLess(losses[-1].item(), losses[0].item())


class DeepseekV3FamilyTest(case.FamilyParity):
    """What every family is held to, against an oracle that looks at one document at a time."""

    family = FAMILIES["deepseek_v3"]


if __name__ == "__main__":
    torch.set_num_threads(1)
    program.choose_build()
    unittest.main()
