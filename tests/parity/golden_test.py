"""Losses of twenty steps of two tiny models, as they were: what no other comparison sees drift is seen here.

.venv/bin/python tests/parity/golden_test.py [BUILD_FOLDER]
.venv/bin/python tests/parity/golden_test.py --write        # after a change that is meant, with its reason in the commit

Weights, documents and dropout follow from seeds, so the losses hang on arithmetic alone. Processors sum in different
orders: fp32 is compared to 2e-5, bf16, which rounds away more than that, to 5e-3.
"""

import json
import pathlib
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "faults"))
import tiny_run

GOLDEN = pathlib.Path(__file__).with_name("golden_losses.json")
QWEN3 = {
    "model_type": "qwen3_moe",
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
}
SETTINGS = {"train.steps": 20, "checkpoint.every_steps": 0}
OF_QWEN3 = {"router.bias": "frozen", "mtp.loss_weight": 0.0}
BOUNDS = {"fp32": 2e-5, "bf16": 5e-3}


def losses(model, compute):
    with tempfile.TemporaryDirectory() as folder:
        changes = SETTINGS | {"model.compute": compute} | (OF_QWEN3 if model == "qwen3_moe" else {})
        run = tiny_run.TinyRun(folder, **changes)
        if model == "qwen3_moe":
            (run.folder / "model" / "config.json").write_text(json.dumps(QWEN3))
        run.finish()
        return [line["loss"] for line in run.lines("step")]


class GoldenTest(unittest.TestCase):
    def test_losses(self):
        golden = json.loads(GOLDEN.read_text())
        self.assertEqual(
            set(golden), {f"{model} {compute}" for model in ("deepseek_v3", "qwen3_moe") for compute in BOUNDS}
        )
        for name, expected in golden.items():
            model, compute = name.split()
            with self.subTest(name):
                found = losses(model, compute)
                self.assertEqual(len(found), 20)
                for step, (now, then) in enumerate(zip(found, expected), 1):
                    self.assertLess(abs(now / then - 1), BOUNDS[compute], f"step {step}: {now}, was {then}")


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        found = {f"{m} {c}": losses(m, c) for m in ("deepseek_v3", "qwen3_moe") for c in BOUNDS}
        GOLDEN.write_text(json.dumps(found, indent=1) + "\n")
    else:
        unittest.main(argv=[sys.argv[0], "-v"])
