"""Each line format's tokens and labels, and each mistake's message."""

import json
import shutil
import tempfile
import unittest
from pathlib import Path

import support
from support import documents, model_folder, oracle, prepare, small_tokenizer, write_lines

BOS, EOS = "<s>", "</s>"
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '[' + m.role + ']' + m.content }}{% if m.role == 'assistant' %}{{"
    " eos_token }}{% endif %}{% endfor %}"
)


class Formats(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.root = Path(cls.folder.name)
        cls.chat = model_folder(cls.root / "chat", small_tokenizer((BOS, EOS), bos=BOS), BOS, EOS, TEMPLATE)
        cls.bare = model_folder(cls.root / "bare", small_tokenizer((BOS, EOS), bos=BOS), BOS, EOS)
        cls.no_bos = model_folder(cls.root / "no_bos", small_tokenizer((BOS, EOS)), BOS, EOS)
        cls.oracle = oracle(cls.bare)

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def call(self, data, *options, model="chat"):
        file = self.root / "data.jsonl"
        if isinstance(data, bytes):
            file.write_bytes(data)
        else:
            write_lines(file, data)
        folder = ["--model", getattr(self, model)] if model else []
        return prepare(file, *folder, "--cache", self.root / "cache", *options)

    def good(self, data, *options, model="chat"):
        code, summary, _, err = self.call(data, *options, model=model)
        self.assertEqual(code, 0, err)
        return summary, documents(summary)

    def bad(self, data, *messages, options=(), model="chat"):
        code, _, _, err = self.call(data, *options, model=model)
        self.assertEqual(code, 2, err)
        for message in messages:
            self.assertIn(message, err)
        self.assertNotIn("Traceback", err)
        if messages[0] != "unchecked":
            self.assertIn("fix:", err)
        return err

    def ids(self, text):
        return self.oracle(text, add_special_tokens=False)["input_ids"]

    # formats

    def test_text(self):
        bos, eos = self.oracle.bos_token_id, self.oracle.eos_token_id
        body = self.ids("Grüße, 東京 fox")
        summary, ((tokens, labels),) = self.good([{"text": "Grüße, 東京 fox"}])
        self.assertEqual(summary["format"], "text")
        self.assertEqual(tokens, [bos, *body, eos])
        self.assertEqual(labels, [-100, *body, eos])
        _, ((tokens, labels),) = self.good([{"text": "Grüße, 東京 fox"}], model="no_bos")
        self.assertEqual(tokens, [*body, eos])
        self.assertEqual(labels, [-100, *body[1:], eos])  # nothing predicts a document's first token

    def test_bos_and_eos_written_out_are_not_doubled(self):
        _, ((tokens, _),) = self.good([{"text": "<s>fox</s>"}], "--special-tokens", "allow")
        self.assertEqual(tokens, [self.oracle.bos_token_id, *self.ids("fox"), self.oracle.eos_token_id])
        _, ((tokens, _),) = self.good([{"text": "<s>fox</s>"}], "--special-tokens", "as_text")
        self.assertEqual(self.oracle.decode(tokens), "<s><s>fox</s></s>")
        self.assertEqual((tokens.count(self.oracle.bos_token_id), tokens.count(self.oracle.eos_token_id)), (1, 1))

    def test_prompt_completion(self):
        summary, ((tokens, labels),) = self.good([{"prompt": "The quick", "completion": " brown fox"}])
        self.assertEqual(summary["format"], "prompt/completion")
        whole = self.ids("The quick brown fox")
        self.assertEqual(tokens, [self.oracle.bos_token_id, *whole, self.oracle.eos_token_id])
        self.assertEqual(self.oracle.decode([t for t in labels if t != -100]), " brown fox</s>")
        _, ((tokens, labels),) = self.good([{"prompt": "The quick", "completion": " brown fox"}], "--train-on", "all")
        self.assertEqual(labels, [-100] + tokens[1:])

    def test_alpaca_through_the_template(self):
        line = {"instruction": "Translate.", "input": "fox", "output": "Fuchs", "text": "ignored"}
        summary, rendered = self.good([line, {"instruction": "Hi", "input": "", "output": "Ho"}])
        self.assertEqual(summary["format"], "alpaca")
        chats = [
            {"messages": [{"role": "user", "content": "Translate.\n\nfox"}, {"role": "assistant", "content": "Fuchs"}]},
            {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]},
        ]
        self.assertEqual(rendered, self.good(chats)[1])

    def test_alpaca_without_a_template(self):
        _, docs = self.good(
            [{"instruction": "Translate.", "input": "fox", "output": "Fuchs"}, {"instruction": "Hi", "output": "Ho"}],
            model="bare",
        )
        self.assertEqual(
            self.oracle.decode(docs[0][0][1:]),
            "Below is an instruction that describes a task, paired with an input that provides further context. Write a"
            " response that appropriately completes the request.\n\n### Instruction:\nTranslate.\n\n###"
            " Input:\nfox\n\n### Response:\nFuchs</s>",
        )
        self.assertEqual(self.oracle.decode([t for t in docs[0][1] if t != -100]), "Fuchs</s>")
        self.assertTrue(self.oracle.decode(docs[1][0]).endswith("### Instruction:\nHi\n\n### Response:\nHo</s>"))

    def test_sharegpt(self):
        line = {
            "conversations": [
                {"from": "system", "value": "s"},
                {"from": "human", "value": "a"},
                {"from": "gpt", "value": "b"},
                {"from": "user", "value": "c"},
                {"from": "assistant", "value": "d"},
            ]
        }
        roles = {"human": "user", "gpt": "assistant"}
        same = {
            "messages": [
                {"role": roles.get(m["from"], m["from"]), "content": m["value"]} for m in line["conversations"]
            ]
        }
        summary, docs = self.good([line])
        self.assertEqual(summary["format"], "sharegpt")
        self.assertEqual(docs, self.good([same])[1])

    def test_input_ids_need_no_tokenizer(self):
        summary, docs = self.good(
            [{"input_ids": [5, 6, 7], "labels": [5, -100, 7]}, {"input_ids": [1, 2], "labels": [-100, 2]}], model=None
        )
        self.assertEqual(docs, [([5, 6, 7], [-100, -100, 7]), ([1, 2], [-100, 2])])
        self.assertEqual((summary["documents"], summary["tokens"], summary["target_tokens"]), (2, 5, 2))
        self.assertEqual(summary["format"], "input_ids/labels")

    def test_byte_order_mark_and_blank_lines(self):
        _, docs = self.good(b'\xef\xbb\xbf{"text": "a"}\r\n\n  \n{"text": "b"}')
        self.assertEqual(len(docs), 2)

    def test_format_is_said(self):
        _, _, _, err = self.call([{"text": "a"}])
        self.assertIn("format text", err)

    def test_show(self):
        _, _, out, _ = self.call([{"prompt": "ask ", "completion": "tell"}], "--show", "5")
        self.assertIn("<s>ask [[tell</s>]]", out)
        _, _, out, _ = self.call([{"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}], "--show", "1", model=None)
        self.assertIn("5 [[6 7]]", out)

    # mistakes in lines

    def test_all_masked(self):
        talk = [{"role": "user", "content": "a"}]
        lines = [{"messages": talk + [{"role": "assistant", "content": "b"}]}] + [
            {"messages": talk, "id": f"n{i}"} for i in range(12)
        ]
        err = self.bad(
            lines,
            "nothing to train on: every label is masked: 12 lines",
            "line 2 (id 'n0')",
            "line 11 (id 'n9')",
            "... and 2 more",
        )
        self.assertNotIn("line 12", err)
        self.bad([{"input_ids": [1, 2], "labels": [1, -100]}], "nothing to train on", model=None)

    def test_mixed_formats(self):
        self.bad(
            [{"text": "a"}, {"prompt": "a", "completion": "b", "id": 4}, {"foo": 1}],
            "not in the file's format, text: 2 lines",
            "line 2 (id '4'): prompt/completion",
            "line 3: keys foo",
        )

    def test_unknown_format(self):
        self.bad(
            [{"question": "a", "answer": "b"}],
            "line 1: its format is not known; its keys are question, answer",
            '{"messages"',
        )

    def test_empty_files(self):
        self.bad(b"", "the file is empty")
        self.bad(b"\n \n", "the file is empty")

    def test_bad_utf8(self):
        self.bad(b'{"text": "a"}\n{"text": "\xff"}\n', "not UTF-8: 1 line", "line 2: byte 0xff at byte 11")
        self.bad(b'{"text": "a\\ud800b"}\n', "half of a surrogate pair", 'character 2 of "text"')

    def test_bad_json(self):
        self.bad(
            b'{"text": "a"}\n{"text": \n[1]\n"x"\n{"text": "a", "text": "b"}\n{"text": NaN}\n',
            "not valid JSON: 2 lines",
            "line 2: Expecting value",
            "not a JSON object: 2 lines",
            "line 3: a list instead",
            'a key stands twice in one object: 1 line\n    line 5: "text"',
            "NaN is not JSON",
        )

    def test_depth(self):
        self.bad(b'{"text": "a", "x": ' + b"[" * 80 + b"]" * 80 + b"}", "nested too deep: 1 line", "at most 64 levels")
        self.bad(b'{"text": "a", "x": ' + b"[" * 500_000 + b"]" * 500_000 + b"}", "nested too deep: 1 line")
        self.good(b'{"text": "a", "x": [' + b"[]," * 80 + b"[]]}")

    def test_line_length(self):
        from prepare import jsonl

        cap, jsonl.MAX_LINE_BYTES = jsonl.MAX_LINE_BYTES, 1 << 20
        try:
            self.bad(
                b'{"text": "a"}\n{"text": "' + b"a" * (3 << 20) + b'"}\n{"text": 5}\n',
                "longer than 1 MiB: 1 line\n    line 2",
                '"text" is not a string: 1 line\n    line 3',
            )
        finally:
            jsonl.MAX_LINE_BYTES = cap
        self.assertEqual(cap, 64 << 20)

    def test_bad_messages(self):
        def turn(**m):
            return {"messages": [{"role": "user", "content": "a", **m}, {"role": "assistant", "content": "b"}]}

        for line, message in (
            ({"messages": []}, '"messages" is not a list of messages'),
            ({"messages": "hi"}, '"messages" is not a list of messages'),
            (
                {"messages": [{"from": "human", "value": "a"}]},
                'a message without "role" or "content": 1 line\n    line 1: keys from, value',
            ),
            (turn(content=None), '"content" is not a string'),
            (turn(content=[{"type": "image"}]), "content that is not text"),
            (turn(train="yes"), '"train" is not true or false'),
            (turn(tool_calls=[{}]), "calls in a message that is not the assistant's"),
            (turn(content="\ufdd0"), "content holds U+FDD0..U+FDEF"),
            (turn(role=3), '"role" is not a string'),
        ):
            self.bad([line], message, "line 1")

    def test_bad_lines_of_other_formats(self):
        self.bad([{"text": ""}], '"text" is empty')
        self.bad([{"prompt": [], "completion": "a"}], '"prompt" is not a string', "a list")
        self.bad(
            [{"instruction": "a", "output": "b", "history": [["a", "b"]]}],
            '"history" in an alpaca line, and no chat template',
            model="bare",
        )
        self.bad(
            [{"conversations": [{"from": "narrator", "value": "x"}]}],
            "a speaker that is not known: 1 line\n    line 1: 'narrator'",
            "human, user, gpt",
        )
        self.bad(
            [{"conversations": [{"role": "user", "content": "x"}]}],
            '"conversations" is not a list of {"from", "value"}',
        )

    def test_bad_ids(self):
        for line, message in (
            ({"input_ids": [1, 2]}, '"input_ids" without "labels"'),
            ({"input_ids": [1, 2], "labels": [1]}, "differ in length: 1 line\n    line 1: 2 and 1"),
            ({"input_ids": [1, -1], "labels": [1, 1]}, '"input_ids" holds an id out of range'),
            ({"input_ids": [1, True], "labels": [1, 1]}, '"input_ids" is not a list of whole numbers'),
            ({"input_ids": [1, 2], "labels": [1, -5]}, '"labels" holds an id out of range'),
            ({"input_ids": [1, 2**31], "labels": [1, 1]}, "out of range"),
            ({"input_ids": [1, 2, 3, 4], "labels": [2, 3, 4, -100]}, '"labels" are shifted'),
            ({"input_ids": [], "labels": []}, "nothing to train on"),
        ):
            self.bad([line], message, model=None)
        self.bad([{"input_ids": [1, 99999], "labels": [1, 99999]}], "token 99999 lies beyond the vocabulary")
        # A model's embedding may have more rows than its tokenizer has tokens.
        config = self.root / "chat" / "config.json"
        config.write_text('{"vocab_size": 2000}')
        self.addCleanup(config.unlink)
        _, ((tokens, _),) = self.good([{"input_ids": [1, 1999], "labels": [1, 1999]}])
        self.assertEqual(tokens, [1, 1999])
        self.bad([{"input_ids": [1, 2000], "labels": [1, 2000]}], "token 2000 lies beyond the vocabulary of 2000")

    # mistakes in the model's files and options

    def test_missing_template(self):
        self.bad(
            [{"messages": [{"role": "user", "content": "a"}]}],
            "the model has no chat template",
            "chat_template.jinja",
            model="bare",
        )

    def test_missing_model(self):
        self.bad([{"text": "a"}], "format text needs a tokenizer", "--model DIR", model=None)
        self.bad([{"text": "a"}], "tokenizer.json: there is no such file", options=("--model", self.root))

    def test_missing_file(self):
        code, _, _, err = prepare(self.root / "nowhere.jsonl", "--cache", self.root)
        self.assertEqual(code, 2)
        self.assertIn("nowhere.jsonl: cannot be read: No such file", err)
        code, _, _, err = prepare(self.root, "--cache", self.root)
        self.assertIn("this is a folder", err)

    def test_unreadable_model_files(self):
        folder = self.root / "broken"
        model_folder(folder, self.bare / "tokenizer.json", BOS, EOS)
        (folder / "tokenizer_config.json").write_text("{")
        self.bad([{"text": "a"}], "tokenizer_config.json: not valid JSON", options=("--model", folder))
        (folder / "tokenizer.json").write_text("{}")
        self.bad([{"text": "a"}], "tokenizer.json: tokenizers cannot read it", options=("--model", folder))

    def test_wrong_types_in_model_files(self):
        """File and key are named; a value of another type is never taken for none."""
        folder = self.root / "wrong"
        for file, value, message in (
            ("tokenizer_config.json", [1], "tokenizer_config.json: holds a list, not an object"),
            ("tokenizer_config.json", {"eos_token": 5}, 'tokenizer_config.json: "eos_token" is 5'),
            ("tokenizer_config.json", {"bos_token": ["a"]}, 'tokenizer_config.json: "bos_token" is ["a"]'),
            ("tokenizer_config.json", {"bos_token": {"content": 1}}, 'tokenizer_config.json: "bos_token" is {'),
            ("tokenizer_config.json", {"chat_template": 5}, '"chat_template" is a int'),
            ("special_tokens_map.json", {"eos_token": 5}, 'special_tokens_map.json: "eos_token" is 5'),
            ("special_tokens_map.json", "a", "special_tokens_map.json: holds a str, not an object"),
            ("config.json", 7, "config.json: holds a int, not an object"),
        ):
            with self.subTest(message):
                shutil.rmtree(folder, ignore_errors=True)
                model_folder(folder, self.bare / "tokenizer.json", None, None)
                (folder / file).write_text(json.dumps(value))
                self.bad([{"text": "a"}], message, options=("--model", folder))
        shutil.rmtree(folder)
        model_folder(folder, self.bare / "tokenizer.json", BOS, EOS)
        (folder / "special_tokens_map.json").mkdir()
        (folder / "tokenizer_config.json").unlink()
        self.bad([{"text": "a"}], "special_tokens_map.json: is no file", options=("--model", folder))

    def test_missing_eos(self):
        folder = model_folder(self.root / "no_eos", self.bare / "tokenizer.json", BOS, None)
        self.bad([{"text": "a"}], 'no "eos_token"', options=("--model", folder))

    def test_vocabulary_of_the_model(self):
        folder = model_folder(self.root / "small", self.bare / "tokenizer.json", BOS, EOS)
        (folder / "config.json").write_text(json.dumps({"vocab_size": 300}))
        self.bad([{"text": "The quick brown fox"}], "lies beyond the vocabulary of 300", options=("--model", folder))

    def test_options(self):
        with self.assertRaises(SystemExit) as e:
            self.call([{"text": "a"}], "--train-on", "nobody")
        self.assertEqual(e.exception.code, 2)


if __name__ == "__main__":
    unittest.main()
