"""`cmake --install` gives a tree that runs from anywhere: moved, called through a link, from another folder, with the
checkout out of sight.

.venv/bin/python tests/faults/install_test.py [BUILD_FOLDER]
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from tiny_run import TinyRun, program

ROOT = pathlib.Path(__file__).resolve().parents[2]


class InstallTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = pathlib.Path(tempfile.mkdtemp())
        cls.addClassCleanup(shutil.rmtree, cls.folder)
        cmake = ROOT / ".venv" / "bin" / "cmake"
        first = cls.folder / "first"
        subprocess.run(
            [str(cmake) if cmake.exists() else "cmake", "--install", str(program().parent), "--prefix", str(first)],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        cls.tree = cls.folder / "moved to" / "a place"
        cls.tree.parent.mkdir()
        first.rename(cls.tree)
        # A mark that only the tree's own files have.
        for recipe in (cls.tree / "share" / "moetune" / "recipes").glob("*.yaml"):
            recipe.write_text("# of the tree\n" + recipe.read_text())

    def call(self, *arguments, expect=0, program=None, **environment):
        ended = subprocess.run(
            [str(program or self.tree / "bin" / "moetune"), *arguments],
            cwd="/",
            env={k: v for k, v in os.environ.items() if k != "MOETUNE_PYTHON"} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
        )
        self.assertEqual(ended.returncode, expect, ended.stdout)
        return ended.stdout

    def tiny(self, name):
        """A run on text with a small tokenizer of its own."""
        from tokenizers import Tokenizer, models, pre_tokenizers

        tiny = TinyRun(self.folder / name)
        words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
        words.pre_tokenizer = pre_tokenizers.Whitespace()
        words.add_special_tokens(["</s>"])
        words.save(str(self.folder / name / "model" / "tokenizer.json"))
        (self.folder / name / "model" / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
        (self.folder / name / "train.jsonl").write_text(json.dumps({"prompt": "a", "completion": " b"}) + "\n")
        return tiny.arguments("prepare")[2]

    def test_recipes(self):
        self.assertIn("of the tree", self.call("recipes", "ls"))
        link = self.folder / "moetune"
        link.symlink_to(self.tree / "bin" / "moetune")
        self.assertIn("of the tree", self.call("recipes", "cat", "quickstart", program=link))
        for data in ("models/deepseek-v3.json", "machines/h100.json", "machines/networks.json", "machines/prices.json"):
            self.assertTrue((self.tree / "share" / "moetune" / "recipes" / data).is_file(), data)

    def test_prepare(self):
        recipe = self.tiny("prepared")
        output = self.call("prepare", recipe, "--show", "1")
        self.assertIn("--- document 0: 3 tokens, 2 trained ---", output)
        python = (self.tree / "share" / "moetune" / "python").read_text().strip()
        self.assertTrue(pathlib.Path(python).is_file(), python)
        # A Python of the user's is taken instead; one that is none is named.
        self.assertIn("/dev/null", self.call("prepare", recipe, expect=2, MOETUNE_PYTHON="/dev/null"))

    def test_draw(self):
        run, page = self.folder / "drawn", self.folder / "drawn.html"
        run.mkdir()
        (run / "log.jsonl").write_text(json.dumps({"kind": "start", "step": 0, "steps": 5}) + "\n")
        self.call("inspect", str(run), "--html", str(page))
        self.assertIn("No step has been done yet.", page.read_text(encoding="utf-8"))
        # Its Python needs no parts, its style and script are in the tree.
        page.unlink()
        self.call("inspect", str(run), "--html", str(page), MOETUNE_PYTHON=f"{sys.base_prefix}/bin/python3")
        self.assertIn("prefers-color-scheme: dark", page.read_text(encoding="utf-8"))

    def test_pictures(self):
        pictures, drawn = ROOT / "docs" / "pictures", self.folder / "drawn.svg"
        example = [str(pictures / "example.yaml"), f"model.path={pictures}", "--ranks-per-host", "4"]
        for name in ("mesh", "layer", "weights"):
            said = self.call("inspect", "--mesh", *example, "--svg", str(drawn), "--picture", name)
            self.assertIn(f"picture of the {name}", said)
            self.assertEqual(drawn.read_bytes(), (pictures / f"{name}.svg").read_bytes())
        # Nothing is left where none could be drawn.
        drawn.unlink()
        python = {"MOETUNE_PYTHON": "/no/python3"}
        said = self.call("inspect", "--mesh", *example, "--svg", str(drawn), expect=2, **python)
        self.assertIn("/no/python3: cannot be started", said)
        whole = [*example, "adapter=none", "model.base=bf16", "offload.frozen=none", "mesh.shard=none"]
        said = self.call("inspect", "--mesh", *whole, "--svg", str(drawn), "--picture", "weights", expect=2)
        self.assertIn("none are frozen", said)
        self.assertNotIn("Traceback", said)
        self.assertFalse(drawn.exists())

    def test_a_python_without_the_parts(self):
        recipe = self.tiny("bare")
        base = f"{sys.base_prefix}/bin/python3"
        if subprocess.run([base, "-c", "import tokenizers"], capture_output=True).returncode == 0:
            self.skipTest(f"{base} has them")
        output = self.call("prepare", recipe, expect=2, MOETUNE_PYTHON=base)
        self.assertIn("has no module", output)
        self.assertNotIn("Traceback", output)

    def test_version(self):
        output = self.call("--version")
        for name in ("moetune", "LibTorch", "CUDA", "NCCL", "MPI", "GPUs"):
            self.assertRegex(output, rf"(?m)^{name} +\S")


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], "-v", *(a for a in sys.argv[1:] if not pathlib.Path(a).is_dir())])
