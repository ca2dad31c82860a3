"""Loading streams: a rank's peak host memory is its own share and at most two tensors, not the checkpoint.

    .venv/bin/python tests/faults/loading_test.py [BUILD_FOLDER]
"""

import json
import pathlib
import shutil
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import torch
from safetensors.torch import save_file

from tiny_run import CONFIG, TinyRun

WIDTH, EXPERT_WIDTH, EXPERTS = 1024, 512, 64
MIB = 2**20


def checkpoint(folder):
    """CONFIG with large experts, in bf16: bytes of the file, of its routed experts, and of its largest tensor."""
    config = CONFIG | {"hidden_size": WIDTH, "moe_intermediate_size": EXPERT_WIDTH, "n_routed_experts": EXPERTS, "num_nextn_predict_layers": 0}
    (folder / "config.json").write_text(json.dumps(config))
    shapes = {"model.embed_tokens": (config["vocab_size"], WIDTH), "lm_head": (config["vocab_size"], WIDTH), "model.norm": (WIDTH,)}
    heads, qk = config["num_attention_heads"], config["qk_nope_head_dim"] + config["qk_rope_head_dim"]
    for layer in range(config["num_hidden_layers"]):
        add = lambda name, *shape: shapes.__setitem__(f"model.layers.{layer}.{name}", shape)
        add("input_layernorm", WIDTH), add("post_attention_layernorm", WIDTH)
        add("self_attn.q_a_proj", config["q_lora_rank"], WIDTH), add("self_attn.q_a_layernorm", config["q_lora_rank"])
        add("self_attn.q_b_proj", heads * qk, config["q_lora_rank"]), add("self_attn.kv_a_layernorm", config["kv_lora_rank"])
        add("self_attn.kv_a_proj_with_mqa", config["kv_lora_rank"] + config["qk_rope_head_dim"], WIDTH)
        add("self_attn.kv_b_proj", heads * (config["qk_nope_head_dim"] + config["v_head_dim"]), config["kv_lora_rank"])
        add("self_attn.o_proj", WIDTH, heads * config["v_head_dim"])
        if layer < config["first_k_dense_replace"]:
            mlps = {"mlp": config["intermediate_size"]}
        else:
            mlps = {"mlp.shared_experts": EXPERT_WIDTH} | {f"mlp.experts.{e}": EXPERT_WIDTH for e in range(EXPERTS)}
            add("mlp.gate", EXPERTS, WIDTH)
        for path, width in mlps.items():
            add(f"{path}.gate_proj", width, WIDTH), add(f"{path}.up_proj", width, WIDTH), add(f"{path}.down_proj", WIDTH, width)
    generator = torch.Generator().manual_seed(1)
    tensors = {f"{name}.weight": torch.randn(shape, generator=generator).mul_(0.02).bfloat16() for name, shape in shapes.items()}
    for layer in range(config["first_k_dense_replace"], config["num_hidden_layers"]):
        tensors[f"model.layers.{layer}.mlp.gate.e_score_correction_bias"] = torch.zeros(EXPERTS)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    sizes = {name: tensor.numel() * tensor.element_size() for name, tensor in tensors.items()}
    return sum(sizes.values()), sum(size for name, size in sizes.items() if ".experts." in name), max(sizes.values())


class LoadingTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = pathlib.Path(tempfile.mkdtemp())
        cls.addClassCleanup(shutil.rmtree, cls.folder)
        (cls.folder / "model").mkdir()
        cls.file_bytes, cls.expert_bytes, cls.largest = checkpoint(cls.folder / "model")

    def peak(self, name, ranks, **values):
        run = TinyRun(self.folder / name, **{"train.steps": 1, "adapter.targets": "[attention]", "mtp.loss_weight": 0, "router.bias": "frozen", "train.batch": 2} | values)
        run.finish(ranks)
        return run.lines("start")[0]["host_peak_bytes"]

    def test_peak_host_memory(self):
        """Two ranks hold half of the experts each, be it experts of their own or half of the bytes of each layer's."""
        for name, ranks, values in (("one rank", 1, {}), ("an expert group of two", 2, {"mesh.ep": 2}), ("two that share", 2, {"mesh.shard": "all"}),
                                    ("two that share, from host memory", 2, {"mesh.shard": "all", "offload.frozen": "all"})):
            with self.subTest(name):
                program_alone = self.peak(f"small, {name}", ranks, **values)
                used = self.peak(f"large, {name}", ranks, **values, **{"model.weights": "pretrained", "model.path": self.folder / "model"}) - program_alone
                # 4.5 bits a weight of bf16's 16; what is not an expert is small and counted as it lies.
                share = (self.expert_bytes / ranks) * 4.5 / 16 + (self.file_bytes - self.expert_bytes)
                self.assertGreater(used, 0.5 * share)
                # Twice the largest tensor as fp32, and what the allocator and the page tables round.
                self.assertLess(used, share + 2 * 2 * self.largest + 48 * MIB)
                self.assertLess(used, 0.6 * self.file_bytes)


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], "-v"])
