"""The token cache: its bytes, its key, and that it is reused only when nothing changed."""

import hashlib
import json
import tempfile
import unittest
from pathlib import Path
from unittest import mock

import numpy as np
import support
from safetensors import safe_open
from support import model_folder, prepare, small_tokenizer, write_lines

from prepare import cache

TEMPLATE = "{% for m in messages %}{{ m.content + eos_token }}{% endfor %}"
LINES = [
    {"messages": [{"role": "user", "content": f"ask {i}"}, {"role": "assistant", "content": "tell"}]} for i in range(5)
]


class Cache(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.root = Path(self.folder.name)
        self.data = write_lines(self.root / "data.jsonl", LINES)
        self.model = model_folder(self.root / "model", small_tokenizer(("<s>", "</s>")), "<s>", "</s>", TEMPLATE)

    def tearDown(self):
        self.folder.cleanup()

    def run_it(self, *options, folder="cache"):
        code, summary, _, err = prepare(self.data, "--model", self.model, "--cache", self.root / folder, *options)
        self.assertEqual(code, 0, err)
        return summary

    def test_file(self):
        summary = self.run_it()
        with safe_open(summary["cache"], framework="numpy") as f:
            metadata, tensors = f.metadata(), {k: f.get_tensor(k) for k in f.keys()}
        self.assertEqual(
            {k: (v.dtype.name, v.ndim) for k, v in tensors.items()},
            {"tokens": ("int32", 1), "labels": ("int32", 1), "offsets": ("int64", 1)},
        )
        self.assertEqual(metadata["moetune_tokens"], "1")
        for name in ("documents", "tokens", "target_tokens"):
            self.assertEqual(int(metadata[name]), summary[name])
        self.assertEqual(metadata["format"], "messages")
        self.assertEqual(
            int(metadata["vocab_size"]),
            max(json.loads((self.model / "tokenizer.json").read_text())["added_tokens"], key=lambda t: t["id"])["id"]
            + 1,
        )
        self.assertEqual(json.loads(metadata["sources"])["data"], hashlib.sha256(self.data.read_bytes()).hexdigest())
        self.assertEqual(Path(summary["cache"]).stem, metadata["key"][:16])
        self.assertEqual(tensors["offsets"][0], 0)
        self.assertEqual(tensors["offsets"][-1], len(tensors["tokens"]))
        self.assertEqual(len(tensors["offsets"]), 6)
        self.assertEqual(int(np.sum(tensors["labels"] != -100)), summary["target_tokens"])
        self.assertTrue(all(tensors["labels"][tensors["offsets"][:-1]] == -100))
        self.assertEqual([p.name for p in (self.root / "cache").iterdir()], [Path(summary["cache"]).name])

    def test_reused_and_deterministic(self):
        first, again, elsewhere = self.run_it(), self.run_it(), self.run_it(folder="other")
        self.assertEqual((first["reused"], again["reused"], elsewhere["reused"]), (False, True, False))
        self.assertEqual({**first, "reused": True}, again)
        self.assertEqual(Path(first["cache"]).read_bytes(), Path(elsewhere["cache"]).read_bytes())

    def test_damaged_file_is_rebuilt(self):
        path = Path(self.run_it()["cache"])
        whole = path.read_bytes()
        for damaged in (
            whole[:-4],
            whole[:5],
            b"",
            whole.replace(b'"moetune_tokens": "1"', b'"moetune_tokens": "0"'),
            whole.replace(path.stem.encode(), b"0" * 16),
        ):
            path.write_bytes(damaged)
            self.assertFalse(self.run_it()["reused"])
            self.assertEqual(path.read_bytes(), whole)

    def test_key_changes_with_each_ingredient(self):
        seen = {"base": self.run_it()["cache"]}

        def differs(name, *options):
            path = self.run_it(*options)["cache"]
            self.assertNotIn(path, seen.values(), name)
            seen[name] = path

        differs("special tokens", "--special-tokens", "allow")
        differs("train on", "--train-on", "all")
        with mock.patch.object(cache, "code_digest", lambda: "0" * 64):
            differs("code")
        with mock.patch("importlib.metadata.version", lambda package: "9.9"):
            differs("library versions")
        (self.model / "config.json").write_text('{"vocab_size": 1000}')
        differs("model vocabulary")
        model_folder(self.model, self.model / "tokenizer.json", "</s>", "</s>", TEMPLATE)
        differs("bos")
        model_folder(self.model, self.model / "tokenizer.json", "</s>", "<s>", TEMPLATE)
        differs("eos")
        (self.model / "chat_template.jinja").write_text(TEMPLATE + " ")
        differs("template")
        tokenizer = self.model / "tokenizer.json"
        tokenizer.write_text(tokenizer.read_text() + "\n")
        differs("tokenizer")
        write_lines(self.data, LINES[:-1])
        differs("data")
        (self.model / "chat_template.jinja").write_text(TEMPLATE + "{# strftime_now #}")
        differs("template with a date")
        with mock.patch("prepare.template.datetime.date") as date:
            import datetime

            date.today.return_value = datetime.datetime(2020, 2, 2).date()
            differs("date")

    def test_code_digest_covers_every_source_file(self):
        package = Path(cache.__file__).parent
        before = cache.code_digest()
        extra = package / "zz_extra_for_a_test.py"
        try:
            extra.write_text("")
            self.assertNotEqual(cache.code_digest(), before)
        finally:
            extra.unlink()
        self.assertEqual(cache.code_digest(), before)

    def test_nothing_is_left_after_a_failure(self):
        code, _, _, err = prepare(self.data, "--model", self.model, "--cache", self.data / "no")
        self.assertEqual(code, 2)
        self.assertIn("cannot be written: Not a directory", err)
        with mock.patch("os.replace", side_effect=OSError(28, "No space left on device")):
            code, _, _, err = prepare(self.data, "--model", self.model, "--cache", self.root / "cache")
        self.assertEqual(code, 2)
        self.assertIn("No space left", err)
        self.assertEqual(list((self.root / "cache").iterdir()), [])


if __name__ == "__main__":
    unittest.main()
