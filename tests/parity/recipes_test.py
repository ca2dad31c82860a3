"""Every recipe of recipes/ is sound for the model that it names, and its tiny twin trains for ten steps on its mesh.

    .venv/bin/python tests/parity/recipes_test.py [BUILD_FOLDER] [unittest arguments]

The twin is the recipe itself on a config.json of which the sizes are shrunk, weights drawn from the seed, on the CPU.
"""

import json
import pathlib
import random
import subprocess
import tempfile
import unittest

import program

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODELS = ROOT / "recipes" / "models"
STEPS, VOCABULARY = 10, 128

# The flagship whose config.json a recipe is for, and the ranks that its first line starts.
RECIPES = {
    "deepseek-v3-attention": ("deepseek-v3", 16),
    "deepseek-v3-experts": ("deepseek-v3", 16),
    "deepseek-v2-lite": ("deepseek-v2-lite", 1),
    "mixtral-8x7b": ("mixtral-8x7b", 1),
    "qwen3-30b-a3b": ("qwen3-30b-a3b", 1),
    "gpt-oss-120b": ("gpt-oss-120b", 2),
    "llama-4-scout": ("llama-4-scout", 4),
    "qwen3-30b-a3b-full": ("qwen3-30b-a3b", 8),
    "deepseek-v3-full": ("deepseek-v3", 128),
}
# Of a mesh that is too large for one machine the twin keeps the axes: as many stages as it has layers.
SMALLER = {"deepseek-v3-full": (8, ["mesh.pp=4", "mesh.ep=2"])}
# quickstart makes its own model and runs in scripts/quickstart.
OTHERS = {"quickstart", "quickstart-base"}

SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 64,
    "intermediate_size_mlp": 128,
    "moe_intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "q_lora_rank": 64,
    "kv_lora_rank": 64,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
    "head_dim": 32,
    "initializer_range": 0.05,
}


def shrunk(config):
    """The same model at sizes that take a second; what it computes stays."""
    small = dict(config)
    for key, value in SMALL.items():
        if config.get(key) is not None:
            small[key] = value
    if "num_key_value_heads" in config:
        same = config["num_key_value_heads"] == config["num_attention_heads"]
        small["num_key_value_heads"] = 4 if same else 2
    if config.get("layer_types"):
        small["layer_types"] = config["layer_types"][:4]
    if config.get("no_rope_layers"):
        small["no_rope_layers"] = config["no_rope_layers"][:4]
    if config.get("moe_layers"):
        small["moe_layers"] = [layer for layer in config["moe_layers"] if layer < 4]
    if config.get("first_k_dense_replace"):
        small["first_k_dense_replace"] = 1
    for key in ("n_routed_experts", "num_local_experts", "num_experts"):
        if key in config:
            small[key] = max(16, 2 * config.get("num_experts_per_tok", 1), 4 * (config.get("n_group") or 1))
    small.pop("quantization_config", None)
    if "text_config" in config:
        small["text_config"] = shrunk(config["text_config"])
    return small


def moetune(*arguments, ranks=1):
    launch = ["mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-np", str(ranks)]
    command = [*(launch if ranks > 1 else []), str(program.build / "moetune"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=program.environment())


class RecipesTest(unittest.TestCase):
    def setUp(self):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.folder = pathlib.Path(temporary.name)
        generator = random.Random(7)
        with (self.folder / "data.jsonl").open("w") as file:
            for _ in range(64):
                start, tokens = generator.randrange(VOCABULARY), []
                for _ in range(generator.randint(8, 24)):
                    tokens.append(start)
                    start = (3 * start + 1) % VOCABULARY
                file.write(json.dumps({"input_ids": tokens, "labels": tokens}) + "\n")

    def settings(self, model):
        data = self.folder / "data.jsonl"
        return [f"model.path={model}", "model.weights=random", f"data.train={data}", f"data.eval={data}"]

    def write_model(self, name, config):
        folder = self.folder / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    def test_no_recipe_is_forgotten(self):
        self.assertEqual(set(RECIPES) | OTHERS, {path.stem for path in (ROOT / "recipes").glob("*.yaml")})

    def test_validate(self):
        for recipe, (flagship, ranks) in RECIPES.items():
            with self.subTest(recipe):
                path = ROOT / "recipes" / f"{recipe}.yaml"
                self.assertIn(f"-np {ranks} " if ranks > 1 else "# build/moetune", path.read_text())
                model = self.write_model(recipe, json.loads((MODELS / f"{flagship}.json").read_text()))
                done = moetune("validate", path, "--ranks", ranks, *self.settings(model))
                self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_twins_train(self):
        for recipe, (flagship, ranks) in RECIPES.items():
            with self.subTest(recipe):
                small = shrunk(json.loads((MODELS / f"{flagship}.json").read_text()))
                model, run = self.write_model(recipe, small), self.folder / f"run-{recipe}"
                settings = [*self.settings(model), f"run.dir={run}", "run.device=cpu", "run.threads=1"]
                settings += [
                    f"train.steps={STEPS}",
                    "train.epochs=null",
                    "data.max_tokens=64",
                    "train.batch=16",
                    "model.compute=fp32",
                ]
                settings += ["train.optimizer.lr=0.01", "train.schedule.warmup_steps=0"]
                settings += ["model.base=fp32" if recipe.endswith("-full") else "model.base=nf4"]
                ranks, mesh = SMALLER.get(recipe, (ranks, []))
                settings += mesh
                done = moetune("train", ROOT / "recipes" / f"{recipe}.yaml", *settings, ranks=ranks)
                self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
                log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
                losses = [entry["loss"] for entry in log if entry["kind"] == "step"]
                self.assertEqual(len(losses), STEPS)
                self.assertLess(losses[-1], losses[0])

    def test_documents_beyond_the_indexer_are_refused(self):
        """Sparse attention is that of all tokens only where a document has no more than the indexer keeps."""
        config = json.loads((MODELS / "deepseek-v3.json").read_text()) | dict(model_type="deepseek_v32")
        recipe, data = ROOT / "recipes" / "deepseek-v3-attention.yaml", self.folder / "data.jsonl"
        lengths = [len(json.loads(line)["input_ids"]) for line in data.read_text().splitlines()]
        for longest, code in ((max(lengths) - 1, 2), (max(lengths), 0)):
            with self.subTest(longest):
                model = self.write_model(f"sparse-{longest}", shrunk(config) | dict(index_topk=longest))
                run = self.folder / f"run-{longest}"
                settings = [*self.settings(model), f"run.dir={run}", "run.device=cpu", "mesh.ep=1", "mesh.tp=1"]
                settings += ["train.steps=1", "train.epochs=null", "data.max_tokens=64", "train.batch=4"]
                settings += ["train.schedule.warmup_steps=0"]
                done = moetune("train", recipe, *settings, "run.threads=1", "model.compute=fp32")
                said = done.stdout + done.stderr
                self.assertEqual(done.returncode, code, said)
                told = moetune("evaluate", model, data, "model.weights=random", "run.device=cpu", "run.threads=1")
                self.assertEqual(told.returncode, code, told.stdout + told.stderr)
                if code:
                    self.assertIn(f"beyond {longest} this model (deepseek_v32)", told.stdout + told.stderr)
                    self.assertIn("data.train: document ", said)
                    self.assertIn(f"beyond {longest} this model (deepseek_v32)", said)


if __name__ == "__main__":
    program.choose_build()
    unittest.main()
