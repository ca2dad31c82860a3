"""Texts as the model sees them: special tokens written out, bos and eos, thoughts, and how --show tells them apart."""

import json
import tempfile
import unittest
from pathlib import Path

import support
from support import decoded, documents, model_folder, oracle, prepare, small_tokenizer, write_lines

BOS, EOS = support.DEEPSEEK
RENDERED = f"{BOS}<｜User｜>hi<｜Assistant｜>hello{EOS}"
THINKING = "<think>\nTHOUGHTS\n</think>\n4"


class Rendered(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.root = Path(cls.folder.name)
        file = support.small_deepseek_tokenizer()
        cls.deepseek = model_folder(cls.root / "deepseek", file, *support.DEEPSEEK, support.DEEPSEEK_TEMPLATE)
        cls.asking = model_folder(cls.root / "asking", file, *support.DEEPSEEK, add_bos_token=True)
        cls.putting = model_folder(
            cls.root / "putting", small_tokenizer(("<s>", "</s>"), bos="<s>"), "<s>", "</s>", support.PLAIN_TEMPLATE
        )
        cls.bos_less = model_folder(
            cls.root / "bos_less", small_tokenizer(("<s>", "</s>")), None, "</s>", add_bos_token=False
        )

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def call(self, model, line, *options):
        file = write_lines(self.root / "data.jsonl", [line])
        return prepare(file, "--model", model, "--cache", self.root / "cache", *options)

    def good(self, model, line, *options):
        code, summary, _, err = self.call(model, line, *options)
        self.assertEqual(code, 0, (line, err))
        return documents(summary)[0], err

    def test_rendered_text(self):
        tokens = oracle(self.deepseek)(RENDERED, add_special_tokens=False)["input_ids"]
        allow = ("--special-tokens", "allow")
        whole = model_folder(self.root / "whole", support.deepseek_tokenizer_file(), *support.DEEPSEEK)
        self.assertEqual(len(self.good(whole, {"text": RENDERED}, *allow)[0][0]), 6)
        (got, labels), _ = self.good(self.deepseek, {"text": RENDERED}, *allow)
        self.assertEqual((got, labels), (tokens, [-100, *tokens[1:]]))
        half = {"prompt": RENDERED.partition("hello")[0], "completion": f"hello{EOS}"}
        cut = len(oracle(self.deepseek)(half["prompt"], add_special_tokens=False)["input_ids"])
        (got, labels), _ = self.good(self.deepseek, half, *allow)
        self.assertEqual((got, labels), (tokens, [-100] * cut + tokens[cut:]))
        for line in (
            {"text": RENDERED},
            {"text": RENDERED.removeprefix(BOS)},
            {"text": BOS + "plain"},
            {"text": "a <｜User｜> b"},
            half,
            {"prompt": BOS + "a", "completion": "b"},
            {"prompt": "a", "completion": "b" + EOS},
        ):
            code, _, _, err = self.call(self.deepseek, line)
            self.assertEqual(code, 2, line)
            self.assertIn("a text that was rendered already: it holds the model's own special tokens: 1 line", err)
            self.assertIn("fix: data.special_tokens_in_content: allow", err)
            # What the user has decided stays.
            _, err = self.good(self.deepseek, line, "--special-tokens", "as_text")
            self.assertIn("stayed ordinary text in 1 documents (data.special_tokens_in_content: as_text)", err)
            self.assertEqual(self.call(self.deepseek, line, "--special-tokens", "reject")[0], 2)

    def test_other_special_tokens_stay_text(self):
        # The template does not write it, so nothing says that the text was rendered.
        other = "<｜fim▁begin｜>"
        (tokens, _), err = self.good(self.deepseek, {"text": f"about {other} tokens"})
        self.assertNotIn(oracle(self.deepseek).convert_tokens_to_ids(other), tokens)
        self.assertIn("stayed ordinary text in 1 documents", err)

    def test_thoughts_are_tokens(self):
        tags = [oracle(self.deepseek).convert_tokens_to_ids(t) for t in ("<think>", "</think>")]
        for options in (
            (),
            ("--special-tokens", "as_text"),
            ("--special-tokens", "reject"),
            ("--special-tokens", "allow"),
        ):
            (tokens, labels), err = self.good(self.deepseek, {"prompt": "2 + 2?\n", "completion": THINKING}, *options)
            self.assertEqual([l for l in labels if l in tags], tags)
            self.assertEqual(decoded(self.deepseek, labels), THINKING + EOS)
            self.assertEqual(
                tokens[:-1], oracle(self.deepseek)("2 + 2?\n" + THINKING, add_special_tokens=False)["input_ids"]
            )
            (tokens, labels), _ = self.good(
                self.deepseek, {"prompt": "2 + 2?<think>\n", "completion": "T</think>4"}, *options
            )
            self.assertEqual(([t for t in tokens if t in tags], [l for l in labels if l in tags]), (tags, tags[1:]))
            (tokens, _), _ = self.good(self.deepseek, {"text": THINKING}, *options)
            self.assertEqual([t for t in tokens if t in tags], tags)
        (tokens, _), err = self.good(self.deepseek, {"messages": [
            {"role": "user", "content": "what is <think>?"}, {"role": "assistant", "content": "a tag"}]})  # fmt: skip
        self.assertFalse(set(tags) & set(tokens))

    def test_bos(self):
        line = {"text": "some text"}
        for model, option, begins, note in (
            (self.asking, "auto", False, True),  # as transformers 5, which believes tokenizer.json
            (self.asking, "true", True, False),
            (self.asking, "false", False, False),
            (self.deepseek, "auto", False, False),
            (self.deepseek, "true", True, False),
            (self.putting, "auto", True, False),
            (self.putting, "true", True, False),
            (self.putting, "false", False, False),
        ):
            (tokens, labels), err = self.good(model, line, "--add-bos", option)
            bos = oracle(model).bos_token_id
            self.assertEqual((tokens[0] == bos, tokens.count(bos)), (begins, int(begins)), (model, option))
            self.assertEqual('"add_bos_token": true' in err, note)
            self.assertEqual(tokens[begins:-1], oracle(model)("some text", add_special_tokens=False)["input_ids"])
            self.assertEqual(labels, [-100, *tokens[1:]])
        self.assertIn("data.add_bos: true puts it", self.good(self.asking, line)[1])
        code, _, _, err = self.call(self.bos_less, line, "--add-bos", "true")
        self.assertEqual(code, 2)
        self.assertIn('no "bos_token" that the tokenizer knows', err)

    def test_bos_of_conversations_is_the_templates(self):
        line = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
        bos = oracle(self.deepseek).bos_token_id
        for option in ("auto", "true", "false"):
            self.assertEqual(self.good(self.deepseek, line, "--add-bos", option)[0][0].count(bos), 1)
        model = model_folder(
            self.root / "own",
            support.small_deepseek_tokenizer(),
            *support.DEEPSEEK,
            "{% for m in messages %}{{ m.content + eos_token }}{% endfor %}",
        )
        for option, begins in (("auto", False), ("true", True), ("false", False)):
            (tokens, labels), _ = self.good(model, line, "--add-bos", option)
            self.assertEqual(tokens[0] == bos, begins)
            self.assertEqual(decoded(model, labels), f"b{EOS}")

    def test_show(self):
        line = {"messages": [{"role": "user", "content": f"say {EOS}"}, {"role": "assistant", "content": f"{EOS}!"}]}
        _, _, out, err = self.call(self.deepseek, line, "--show", "1")
        fake = f"{{as text: {EOS}}}"
        self.assertRegex(out, r"^--- document 0: \d+ tokens, \d+ trained ---\n")
        self.assertTrue(out.endswith(f"{BOS}<｜User｜>say {fake}<｜Assistant｜>[[{fake}!{EOS}]]"), out)
        _, _, again, err = self.call(self.deepseek, line, "--show", "1")
        self.assertEqual(again, out)
        self.assertIn("up to date", err)
        self.assertIn("note: special-token text stayed ordinary text in 1 documents", err)
        _, _, out, _ = self.call(self.deepseek, line, "--show", "1", "--special-tokens", "allow")
        self.assertTrue(out.endswith(f"{BOS}<｜User｜>say {EOS}<｜Assistant｜>[[{EOS}!{EOS}]]"), out)

        # The first token of a document is never trained, so what is marked lies on both sides of a bracket here.
        _, _, out, _ = self.call(self.deepseek, {"text": RENDERED}, "--show", "1", "--special-tokens", "as_text")
        plain = out.partition("\n")[2].replace("[[", "").replace("]]", "")
        marked = "".join(f"{{as text: {t}}}" for t in (BOS, "<｜User｜>"))
        self.assertEqual(plain, f"{marked}hi{{as text: <｜Assistant｜>}}hello{{as text: {EOS}}}{EOS}")

    def test_files_of_other_tokenizers(self):
        for name, words in (("tiktoken.model", "docs/data.md"), ("tokenizer.model", "save_pretrained")):
            folder = self.root / name
            folder.mkdir()
            (folder / name).write_bytes(b"IQ== 0\n")
            code, _, _, err = self.call(folder, {"text": "a"})
            self.assertEqual(code, 2)
            self.assertIn(f"there is no such file, only {name}", err)
            self.assertIn(words, err)

    def test_tokenizers_that_fail(self):
        folder = model_folder(self.root / "fails", self.bos_less / "tokenizer.json", None, "</s>")
        whole = json.loads((folder / "tokenizer.json").read_text())
        split = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
        charsmap = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
        for changes, text, words in (
            ({"pre_tokenizer": split}, "a" * 40 + "b", "tokenizer.json fails on this text: 1 line"),  # a panic
            ({"normalizer": charsmap}, "a", "tokenizers cannot read it"),  # a panic
            (
                {"model": {**whole["model"], "unk_token": "?", "vocab": {"b": 0}, "merges": []}},
                "a",
                "tokenizer.json fails on 'a'",
            ),
            (
                {"model": {**whole["model"], "vocab": {**whole["model"]["vocab"], "?": 2**31}}},
                "a",
                "an id of 2147483648",
            ),
        ):
            (folder / "tokenizer.json").write_text(json.dumps(whole | changes))
            code, _, _, err = self.call(folder, {"text": text})
            self.assertEqual(code, 2, (changes, err))
            self.assertIn(words, err)
            self.assertIn("fix:", err)

    def test_wrong_types_in_the_models_files(self):
        for name, value, words in (
            ("tokenizer_config.json", [], "a list, not an object"),
            ("tokenizer_config.json", {"bos_token": 3}, '"bos_token" is 3'),
            ("tokenizer_config.json", {"eos_token": {"content": []}}, '"eos_token" is {"content": []}'),
            ("tokenizer_config.json", {"eos_token": "\ud800"}, '"eos_token" holds half of a surrogate pair'),
            ("tokenizer_config.json", {"add_bos_token": "yes"}, '"add_bos_token" is a str'),
            ("tokenizer_config.json", {"chat_template": "\ud800"}, '"chat_template" holds half'),
            ("tokenizer_config.json", {"chat_template": 7}, '"chat_template" is a int'),
            ("special_tokens_map.json", {"bos_token": 3}, "special_tokens_map.json: "),
            ("config.json", {"vocab_size": "7"}, '"vocab_size" is no whole number'),
            ("config.json", "x", "a str, not an object"),
        ):
            folder = model_folder(self.root / "wrong", self.bos_less / "tokenizer.json", None, "</s>")
            before = (folder / name).read_text() if (folder / name).exists() else "{}"
            (folder / name).write_text(json.dumps(value))
            code, _, _, err = self.call(folder, {"text": "a"})
            self.assertEqual(code, 2, (name, value, err))
            self.assertIn(words, err)
            self.assertIn("fix:", err)
            (folder / name).write_text(before)


if __name__ == "__main__":
    unittest.main()
