"""Counts of docs/planner.md that are exact, by the program and by formulas of their own; and what must hold in any plan."""

import json
import os
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path

from sound_page import sound_tree

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(os.environ.get("MOETUNE_BUILD", ROOT / "build")) / "moetune"
ATTENTION, EXPERTS = (str(ROOT / "recipes" / f"deepseek-v3-{what}.yaml") for what in ("attention", "experts"))


def plan(*words, code=0):
    ran = subprocess.run([PROGRAM, "plan", *words, "--json"], capture_output=True, text=True, timeout=60)
    if ran.returncode != code:
        raise AssertionError(f"plan {' '.join(words)}: exit code {ran.returncode}: {ran.stderr}")
    return json.loads(ran.stdout)


class MissionTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.config = json.loads((ROOT / "recipes" / "models" / "deepseek-v3.json").read_text())
        cls.attention = plan(ATTENTION, "--on", "16xH100", "--documents", "1000", "--tokens-per-document", "700")
        cls.page = (ROOT / "docs" / "planner.md").read_text()

    def maps_of_attention(self):
        """(inputs, outputs) of the five linear maps of latent attention."""
        of = self.config
        width, heads, q, kv = (of[key] for key in ("hidden_size", "num_attention_heads", "q_lora_rank", "kv_lora_rank"))
        nope, rope, value = of["qk_nope_head_dim"], of["qk_rope_head_dim"], of["v_head_dim"]
        return [
            (width, q),
            (q, heads * (nope + rope)),
            (width, kv + rope),
            (kv, heads * (nope + value)),
            (heads * value, width),
        ]

    def test_model(self):
        model, of = self.attention["model"], self.config
        attention = sum(i * o for i, o in self.maps_of_attention()) + of["q_lora_rank"] + of["kv_lora_rank"]
        expert = 3 * of["hidden_size"] * of["moe_intermediate_size"]
        self.assertEqual((model["attention_parameters_per_layer"], attention), (187107328, 187107328))
        self.assertEqual((model["expert_parameters"], expert), (44040192, 44040192))
        self.assertEqual(model["parameters"], 671026419200)
        self.assertEqual(model["active_parameters"], 37552297472)
        for count in (187107328, 44040192, 671026419200, 37552297472):
            self.assertIn(f"{count:,}", self.page)

    def test_adapters(self):
        layers, experts = self.config["num_hidden_layers"], self.config["n_routed_experts"]
        with_experts = layers - self.config["first_k_dense_replace"]
        attention = layers * 32 * sum(i + o for i, o in self.maps_of_attention())
        self.assertEqual((self.attention["adapter"]["parameters"], attention), (194013184, 194013184))
        of_gate = self.config["hidden_size"] + self.config["moe_intermediate_size"]
        for rank, count in ((6, 821035008), (7, 957874176)):
            planned = plan(EXPERTS, "--on", "16xH100", f"adapter.rank={rank}")
            self.assertEqual(planned["adapter"]["parameters"], with_experts * experts * rank * of_gate)
            self.assertEqual(planned["adapter"]["parameters"], count)
            self.assertIn(f"{count:,}", self.page)

    def test_routers(self):
        """The gates that choose experts: what training them adds."""
        gates = plan(ATTENTION, "--on", "16xH100", "router.train=full")["adapter"]["parameters"]
        self.assertEqual(gates - self.attention["adapter"]["parameters"], 58 * 256 * 7168)
        self.assertEqual(58 * 256 * 7168, 106430464)

    def test_frozen_bytes(self):
        """NF4 with 64 numbers to an absmax: of the recipe's 32 experts a layer at least 4.5 bits a number."""
        parts = {part["name"]: part["bytes"] for part in self.attention["memory"]["parts"]}
        numbers = 58 * 32 * 44040192
        self.assertGreaterEqual(parts["frozen experts"], numbers / 2)
        self.assertLessEqual(parts["frozen experts"], numbers * 0.5625)

    def test_any_plan(self):
        """Exposed times add up to the step, parts of a place cover its bytes, tokens are those of the documents."""
        short = ("--documents", "3000", "--tokens-per-document", "500")
        plans = plan("--model", "deepseek-v2-lite", *short)["plans"]
        plans += [self.attention, plan("--model", "mixtral-8x7b", "--method", "full", "--on", "16xH100", *short)]
        for of, tokens in zip(plans, [3000 * 500] * 4 + [1000 * 700, 3000 * 500]):
            step = of["time"]["step_s"]
            self.assertAlmostEqual(
                sum(part["exposed_s"] for part in of["time"]["parts"]) / step["expected"], 1, places=6
            )
            self.assertLessEqual(step["low"], step["expected"])
            self.assertLessEqual(step["expected"], step["high"])
            self.assertEqual(of["run"]["tokens"], tokens)
            for place in ("device", "host"):
                parts = [part for part in of["memory"]["parts"] if part["where"] == place]
                always = sum(part["bytes"] for part in parts if part["phase"] == "run")
                self.assertGreaterEqual(sum(part["bytes"] for part in parts), of["memory"][f"{place}_bytes"])
                self.assertLessEqual(always, of["memory"][f"{place}_bytes"])
            run = of["run"]
            seconds = run["load_s"] + run["evaluation_s"] + run["save_s"] + run["steps"] * step["expected"]
            self.assertAlmostEqual(run["hours"] * 3600 / seconds, 1, places=6)
            dollars = run["hours"] * of["mesh"]["gpus"] * of["cost"]["price_per_gpu_hour"]
            self.assertAlmostEqual(of["cost"]["dollars"] / dollars, 1, places=6)

    def test_does_not_fit(self):
        of = plan("--model", "deepseek-v3", "--on", "1xL40S", code=3)
        self.assertFalse(of["memory"]["fits"])
        self.assertTrue(of["changes_to_fit"])

    def test_html(self):
        folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, folder)
        path = folder / "plan.html"
        plan("--model", "olmoe-1b-7b", "--on", "1xH100,2xH200", "--html", str(path))
        tree = sound_tree(self, path.read_text(encoding="utf-8"))
        self.assertIn("1 x H100", "".join(tree.find("body").itertext()))

    def test_page(self):
        """Every part that scripts/planner_page writes is there, with something in it."""
        for name in ("mission", "published", "documents", "weak", "strong"):
            content = self.page.split(f"<!-- {name}: written by scripts/planner_page -->\n")[1].split("<!-- end -->")[0]
            self.assertIn("| --- |", content)


if __name__ == "__main__":
    unittest.main()
