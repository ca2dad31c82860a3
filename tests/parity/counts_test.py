"""How many parameters transformers gives the flagships: tests/data/flagships/counts.json holds what the program must count.

    .venv/bin/python tests/parity/counts_test.py            # compares
    .venv/bin/python tests/parity/counts_test.py --print    # the table

Each model is built without memory for its weights from its published config.json (typed by hand; nothing is fetched).
A count has embedding, head and correction biases, and no MTP module or vision tower. Active: of the routed experts
only those that one token meets.
"""

import json
import pathlib
import sys
import tempfile
import unittest

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

logging.set_verbosity_error()

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODELS = ROOT / "recipes" / "models"
COUNTS = ROOT / "tests" / "data" / "flagships" / "counts.json"
# What the publishers say, to as many digits as they say; model cards and safetensors metadata.
PUBLISHED = {
    "deepseek-v3": "671B",
    "deepseek-v2": "236B",
    "deepseek-v2-lite": "16B",
    "kimi-k2": "1.0T",
    "moonlight-16b-a3b": "16B",
    "mixtral-8x7b": "46.7B",
    "mixtral-8x22b": "141B",
    "qwen3-30b-a3b": "30.5B",
    "qwen3-235b-a22b": "235B",
    "qwen1.5-moe-a2.7b": "14.3B",
    "gpt-oss-20b": "20.9B",
    "gpt-oss-120b": "116.8B",
    "llama-4-scout": "108B",
    "llama-4-maverick": "401B",
    "glm-4.5-air": "107B",
    "glm-4.5": "353B",
    "minimax-m2": "229B",
    "olmoe-1b-7b": "6.9B",
}


def count(name):
    """{"total", "active"} of a flagship."""
    settings = json.loads((MODELS / f"{name}.json").read_text())
    settings.pop("quantization_config", None)
    if settings["model_type"] == "kimi_k2":  # what its authors say it is to transformers
        settings["model_type"] = "deepseek_v3"
    with tempfile.TemporaryDirectory() as folder:
        (pathlib.Path(folder) / "config.json").write_text(json.dumps(settings.get("text_config", settings)))
        config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    tensors = dict(model.named_parameters()) | {
        key: buffer for key, buffer in model.named_buffers() if key.endswith("e_score_correction_bias")
    }
    total = sum(tensor.numel() for tensor in tensors.values())
    experts = [tensor for key, tensor in tensors.items() if ".experts." in key]
    idle = sum(tensor.numel() // len(tensor) * (len(tensor) - config.num_experts_per_tok) for tensor in experts)
    return dict(total=total, active=total - idle)


class CountsTest(unittest.TestCase):
    def test_counts(self):
        expected = json.loads(COUNTS.read_text())
        self.assertEqual(expected.keys(), PUBLISHED.keys())
        for name in expected:
            with self.subTest(name):
                self.assertEqual(count(name), expected[name])

    def test_counts_are_the_published_ones(self):
        for name, counts in json.loads(COUNTS.read_text()).items():
            unit = {"B": 1e9, "T": 1e12}[PUBLISHED[name][-1]]
            digits = len(PUBLISHED[name].partition(".")[2][:-1])
            self.assertEqual(f"{counts['total'] / unit:.{digits}f}", PUBLISHED[name][:-1], name)


if __name__ == "__main__":
    if sys.argv[1:] == ["--print"]:
        print(json.dumps({name: count(name) for name in PUBLISHED}, indent=2))
    else:
        unittest.main()
