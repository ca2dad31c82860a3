"""Proves the reference itself: against PEFT, against transformers' own loading, packing and MTP module, and against
finite differences. Needs no moetune.

    .venv/bin/python tests/parity/reference_test.py
"""

import math
import unittest

import torch
from peft import PeftModel
from transformers import DeepseekV3ForCausalLM
from transformers.modeling_layers import MtpModel
from transformers.utils import logging

import adapter_files
import cases
import compare
import models
from fixture import ParityCase
from reference import Reference, run

torch.set_num_threads(1)
logging.set_verbosity_error()


class ReferenceTest(ParityCase):
    def test_same_model_as_from_pretrained(self):
        for name in ("groups", "plain", "mtp"):
            model = DeepseekV3ForCausalLM.from_pretrained(self.model(name), dtype=torch.float32)
            reference = Reference(cases.config(self.model(name)))
            documents = [torch.tensor(document["input_ids"]) for document in cases.documents()]
            logits_TV, _, _ = reference.forward(documents, reference.effective())
            alone_TV = torch.cat([model(input_ids=document[None]).logits[0] for document in documents])
            self.assertLess(compare.relative(logits_TV, alone_TV), 1e-6, name)

    def test_packed_equals_alone_eager_equals_sdpa(self):
        """In fp64, where anything that transformers still did in fp32 would show."""
        for name in ("groups", "mtp"):
            config = cases.config(self.model(name), compute="fp64", mtp_loss_weight=0.3 if name == "mtp" else 0.0)
            documents = [torch.tensor(document["input_ids"]) for document in cases.documents()]
            outputs = []
            for attention in ("sdpa", "eager"):
                reference = Reference(config, attention)
                packed_TV, packed_mtp_TV, _ = reference.forward(documents, reference.effective())
                alone = [reference.forward([document], reference.effective()) for document in documents]
                self.assertLess(compare.relative(packed_TV, torch.cat([out[0] for out in alone])), 1e-13)
                if name == "mtp":
                    self.assertLess(compare.relative(packed_mtp_TV, torch.cat([out[1] for out in alone])), 1e-13)
                outputs.append(packed_TV)
            self.assertLess(compare.relative(*outputs), 1e-13)

    def test_adapter_gradients_equal_peft(self):
        """Attention targets, where PEFT trains what it is asked to train."""
        for name, rslora in (("groups", False), ("plain", True)):
            adapter = self.adapter(name, ["attention"], rslora=rslora)
            expected = self.peft_gradients(self.model(name), adapter)
            actual = run(cases.config(self.model(name), adapter))
            self.assertGreater(len(expected), 20)
            compare.assert_close(self, actual, expected, 1e-5)

    def test_routed_experts_equal_peft(self):
        """PEFT fuses per-expert adapters at load; logits and loss are comparable, its fused gradients are not
        needed."""
        adapter = self.adapter("groups", ["attention", "experts"])
        peft = self.peft_gradients(self.model("groups"), adapter)
        actual = run(cases.config(self.model("groups"), adapter))
        for name in ("logits", "loss"):
            self.assertLess(compare.relative(actual[name], peft[name]), 1e-6, name)
        base = run(cases.config(self.model("groups")))
        self.assertGreater(compare.relative(base["logits"], actual["logits"]), 0.05)

    def peft_gradients(self, folder, adapter):
        """Logits, loss and adapter gradients of PEFT; its loss is transformers' own."""
        model = DeepseekV3ForCausalLM.from_pretrained(folder, dtype=torch.float32, experts_implementation="eager")
        model = PeftModel.from_pretrained(model, adapter["from"], is_trainable=True, autocast_adapter_dtype=False)
        documents = cases.documents()
        ids = torch.cat([torch.tensor(document["input_ids"]) for document in documents])[None]
        labels = torch.cat([torch.tensor([-100] + document["labels"][1:]) for document in documents])[None]
        position_ids = torch.cat([torch.arange(len(document["labels"])) for document in documents])[None]
        # A key/value cache would turn off the detection of packed documents.
        output = model(input_ids=ids, labels=labels, position_ids=position_ids, use_cache=False)
        output.loss.backward()
        result = {"logits": output.logits[0].detach(), "loss": output.loss.detach()[None]}
        for name, parameter in model.named_parameters():
            if parameter.grad is not None and ".experts." not in name:
                key = name.removeprefix(adapter_files.PREFIX).replace(".default.", ".")
                result["grad/" + key] = parameter.grad
        return result

    def test_mtp_equals_transformers_module(self):
        """transformers 5 can draft tokens with the MTP module: an implementation written by others."""
        folder = self.model("mtp")
        model = DeepseekV3ForCausalLM.from_pretrained(folder, dtype=torch.float32)
        # It knows the module by the layer number of the 671B model only.
        model._keys_to_ignore_on_load_unexpected = [r"model\.layers\.2.*"]
        module = MtpModel.from_pretrained(model)
        reference = Reference(cases.config(folder, mtp_loss_weight=0.3))
        tokens_T = torch.tensor(cases.documents()[0]["input_ids"])
        _, mtp_TV, _ = reference.forward([tokens_T], reference.effective())
        state_TD = model.model(input_ids=tokens_T[None]).last_hidden_state
        rows = len(tokens_T) - 1
        position_ids = torch.arange(rows)[None]
        embedded_TD = module.embed_tokens(tokens_T[1:])[None]
        out_TD = module.layers[0](
            embedded_TD,
            state_TD[:, :-1],
            position_ids=position_ids,
            past_key_values=None,
            attention_mask=None,
            position_embeddings=module.rotary_emb(embedded_TD, position_ids=position_ids),
        )
        self.assertLess(compare.relative(mtp_TV, module.shared_head(out_TD)[0]), 1e-6)

    def test_finite_differences(self):
        """Directional derivative of the total loss in fp64, MTP and balance loss included; adapter and full
        training."""
        settings = dict(compute="fp64", mtp_loss_weight=0.3, balance_loss=0.1)
        adapter = self.adapter("mtp", ["all_linear"], mtp=True)
        self.check_derivatives(
            cases.config(self.model("mtp"), adapter, **settings),
            [
                "model.layers.1.mlp.experts.0.gate_proj.lora_A.weight",
                "model.layers.0.self_attn.q_a_proj.lora_B.weight",
                "model.layers.2.mlp.experts.0.down_proj.lora_B.weight",
                "model.layers.2.self_attn.kv_b_proj.lora_A.weight",
                "model.layers.1.mlp.shared_experts.up_proj.lora_B.weight",
                "model.layers.0.mlp.down_proj.lora_A.weight",
            ],
        )
        self.check_derivatives(
            cases.config(self.model("mtp"), **settings),
            [
                "model.embed_tokens.weight",
                "lm_head.weight",
                "model.norm.weight",
                "model.layers.1.mlp.gate.weight",
                "model.layers.2.eh_proj.weight",
                "model.layers.2.mlp.gate.weight",
                "model.layers.2.enorm.weight",
                "model.layers.1.mlp.experts.2.up_proj.weight",
                "model.layers.0.self_attn.kv_a_layernorm.weight",
            ],
        )
        self.check_derivatives(
            cases.config(self.model("mtp_own_head"), **settings),
            [
                "model.embed_tokens.weight",
                "model.layers.2.embed_tokens.weight",
                "model.layers.2.shared_head.head.weight",
            ],
        )

    def check_derivatives(self, config, names):
        reference, width = Reference(config), 1e-6
        reference.losses(config["documents"])["total"].backward()
        for name in names:
            leaf = reference.leaves[name]
            direction = torch.randn(leaf.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
            direction /= direction.norm()
            values = []
            for sign in (1, -1):
                with torch.no_grad():
                    leaf += sign * width * direction
                    values.append(reference.losses(config["documents"])["total"].item())
                    leaf -= sign * width * direction
            measured, derived = (values[0] - values[1]) / (2 * width), (leaf.grad * direction).sum().item()
            self.assertGreater(leaf.grad.norm().item(), 1e-5, name)
            self.assertLess(abs(measured - derived), 1e-7 * max(1.0, leaf.grad.norm().item()), name)

    def test_inputs_are_hard_enough(self):
        """Unequal loads, an empty expert, choices that the bias and the groups change, and no near tie."""
        for name in models.SHAPES:
            with_mtp = "num_nextn_predict_layers" in models.SHAPES[name].config
            config = cases.config(self.model(name), compute="fp64", mtp_loss_weight=0.3 if with_mtp else 0.0)
            reference = Reference(config)
            routed = reference.losses(config["documents"])["routed"]
            for router, (logits_TE, _, chosen_TK) in routed.items():
                module, scores_TE = reference.network.routers[router], logits_TE.sigmoid()
                bias_E = reference.weights[router + ".e_score_correction_bias"]
                load_E = torch.bincount(chosen_TK.flatten(), minlength=len(bias_E))
                self.assertEqual(load_E.min().item(), 0, router)
                self.assertGreater(len(set(load_E.tolist())), 2, router)
                plain_TK = scores_TE.topk(module.top_k).indices.sort(-1).values
                changed = (plain_TK != chosen_TK.sort(-1).values).any(-1).double().mean().item()
                self.assertGreater(changed, 0.2, router)
                groups_TGE = (scores_TE + bias_E).unflatten(-1, (module.num_group, -1))
                rank_TG = groups_TGE.topk(2).values.sum(-1).sort(-1, descending=True).values
                if module.topk_group < module.num_group:
                    margin = (rank_TG[:, module.topk_group - 1] - rank_TG[:, module.topk_group]).min().item()
                    self.assertGreater(margin, 1e-5, router)
                choice_TE = scores_TE + bias_E
                kept_TE = torch.full_like(scores_TE, -torch.inf).scatter(1, chosen_TK, choice_TE.gather(1, chosen_TK))
                last_T = kept_TE.topk(module.top_k).values[:, -1]
                group_TE = torch.zeros_like(groups_TGE, dtype=torch.bool)
                group_idx = chosen_TK // groups_TGE.shape[-1]
                group_TE.scatter_(1, group_idx[..., None].expand(-1, -1, groups_TGE.shape[-1]), True)
                rest_TE = choice_TE.masked_fill(~group_TE.flatten(1) | kept_TE.isfinite(), -torch.inf)
                self.assertGreater((last_T - rest_TE.max(-1).values).min().item(), 1e-5, router)

    def test_losses_by_hand(self):
        """Both losses, the balance loss and the bias update once more, as plain loops over documents and rows."""
        config = cases.config(self.model("mtp"), compute="fp64", mtp_loss_weight=0.3, balance_loss=0.1, bias_rate=0.01)
        reference = Reference(config)
        tokens = [torch.tensor(document["input_ids"]) for document in config["documents"]]
        sums, counts, balance = {"loss": 0.0, "mtp_loss": 0.0}, {"loss": 0, "mtp_loss": 0}, 0.0
        loads = {name: [0] * 8 for name in reference.network.routers}
        for document, tokens_T in zip(config["documents"], tokens):
            logits_TV, mtp_TV, routed = reference.forward([tokens_T], reference.effective())
            for kind, rows_TV, ahead in (("loss", logits_TV, 1), ("mtp_loss", mtp_TV, 2)):
                for row in range(len(tokens_T) - ahead):
                    label = document["labels"][row + ahead]
                    if label != -100:
                        sums[kind] -= rows_TV[row].log_softmax(0)[label].item()
                        counts[kind] += 1
            for name, (router_logits_TE, _, chosen_TK) in routed.items():
                for expert in chosen_TK.flatten().tolist():
                    loads[name][expert] += 1
                if name == "model.layers.1.mlp.gate":  # the only MoE layer of the trunk
                    scores = [[1 / (1 + math.exp(-x)) for x in row] for row in router_logits_TE.tolist()]
                    for expert in range(8):
                        top = sum(sorted(row, reverse=True)[:3].count(row[expert]) for row in scores)
                        share = sum(row[expert] / sum(row) for row in scores) / len(scores)
                        balance += 0.1 * (8 * top / (3 * len(scores))) * share / len(tokens)
        result = reference.losses(config["documents"])
        for kind in sums:
            self.assertAlmostEqual(result[kind].item(), sums[kind] / counts[kind], 12)
        self.assertAlmostEqual(result["balance_loss"].item(), balance, 12)
        self.assertAlmostEqual(
            result["total"].item(),
            sum(w * result[k].item() for k, w in (("loss", 1), ("mtp_loss", 0.3), ("balance_loss", 1))),
            12,
        )
        before = {name: reference.weights[name + ".e_score_correction_bias"].clone() for name in loads}
        reference.update_router_bias(result["routed"])
        for name, load in loads.items():
            mean = sum(load) / 8
            moved = (reference.weights[name + ".e_score_correction_bias"] - before[name]).tolist()
            for expert in range(8):
                self.assertAlmostEqual(moved[expert], 0.01 * ((mean > load[expert]) - (mean < load[expert])), 12)

    def test_mtp_shares_what_is_equal(self):
        names = {"grad/model.layers.2.embed_tokens.weight", "grad/model.layers.2.shared_head.head.weight"}
        shared = run(cases.config(self.model("mtp"), mtp_loss_weight=0.3))
        self.assertFalse(names & shared.keys())
        self.assertTrue(names <= run(cases.config(self.model("mtp_own_head"), mtp_loss_weight=0.3)).keys())
        trunk = run(cases.config(self.model("mtp"), mtp_loss_weight=1e-9))
        for name in ("grad/model.embed_tokens.weight", "grad/lm_head.weight"):
            self.assertGreater(compare.relative(shared[name], trunk[name]), 0.05, name)

    def test_no_gradient_is_zero_but_that_of_empty_experts(self):
        adapter = self.adapter("mtp", ["all_linear"], mtp=True)
        result = run(cases.config(self.model("mtp"), adapter, mtp_loss_weight=0.3))
        empty = {name.rsplit(".", 3)[0] for name, grad in result.items() if name.startswith("grad/") and not grad.any()}
        self.assertTrue(empty)
        self.assertTrue(all(".experts." in name for name in empty), empty)

    def test_held_weights(self):
        """NF4 differs from fp32 by a plausible amount, double quantisation a little from single."""
        logits = {
            base: run(cases.config(self.model("groups"), base=base))["logits"]
            for base in ("fp32", "bf16", "nf4", "nf4_double")
        }
        self.assertTrue(1e-4 < compare.relative(logits["bf16"], logits["fp32"]) < 1e-1)
        self.assertTrue(1e-2 < compare.relative(logits["nf4"], logits["fp32"]) < 1.0)
        self.assertTrue(1e-4 < compare.relative(logits["nf4_double"], logits["nf4"]) < 0.3)

    def test_fp8_blocks(self):
        """Dequantised blocks are within the formats' spacing (1/16 of a value, and bf16's) of the weights they came
        from."""
        shape = models.SHAPES["fp8"]
        weight_OI = torch.randn(192, 320, generator=torch.Generator().manual_seed(0)) * 3
        tensors = {"x_proj.weight": weight_OI.to(shape.dtype)}
        expected = tensors["x_proj.weight"].float()
        scales = models.quantise_fp8(tensors)
        folder = self.folder / "one"
        folder.mkdir()
        models.write_shards(folder, [tensors, scales])
        self.assertEqual(list(scales["x_proj.weight_scale_inv"].shape), [2, 3])
        read = models.read(folder)["x_proj.weight"].float()
        self.assertTrue(((read - expected).abs() <= expected.abs() / 15 + expected.abs().max() / 448 / 512).all())

    def test_precision_leaves_room(self):
        """fp32 and fp64 differ by far less than the 1e-5 that the trainer is held to."""
        adapter = self.adapter("groups", ["all_linear"])
        for config in (
            cases.config(self.model("groups"), adapter, steps=10),
            cases.config(self.model("groups"), steps=10),
        ):
            narrow, wide = run(config), run(config | {"compute": "fp64"})
            error, name = compare.largest(narrow, wide)
            self.assertLess(error, 1e-5, name)


if __name__ == "__main__":
    unittest.main()
