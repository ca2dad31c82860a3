"""What each key of a line and of a message does: tables of an input line and the right answer.

The right answer is written out as text with [[what is trained]] between brackets, or as the mistake's words.
"""

import json
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from unittest import mock

import support
from support import decoded, documents, model_folder, prepare, small_tokenizer, weights, write_lines

CHATML = ("<s>", "<|im_start|>", "<|im_end|>")
HELLO = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
# System prompt and turns as they are; names where a message has one; two variables.
TEMPLATE = (
    "{{ 'loud ' if loud }}{{ style | default('') }}{% for m in messages %}{{ '<|im_start|>' + m.role + (' ' + m.name if"
    " m.name else '') + '\n' + m.content + '<|im_end|>' }}{% endfor %}"
)
TURNS = "<|im_start|>user\nhi<|im_end|><|im_start|>assistant\n[[ho<|im_end|>]]"


def turn(role, content, **more):
    return {"role": role, "content": content, **more}


def said(*turns):
    """The text of (role, content, trained) turns under TEMPLATE."""
    return "".join(
        f"<|im_start|>{role}\n" + (f"[[{content}<|im_end|>]]" if trained else f"{content}<|im_end|>")
        for role, content, trained in turns
    )


def corrected(**flags):
    """A conversation with a wrong first answer; flags are those of its two answers."""
    return {
        "messages": [
            turn("user", "2 + 2?"),
            turn("assistant", "WRONG 5", **{k: v[0] for k, v in flags.items()}),
            turn("user", "sure?"),
            turn("assistant", "RIGHT 4", **{k: v[1] for k, v in flags.items()}),
        ]
    }


SECOND_ONLY = said(
    ("user", "2 + 2?", 0), ("assistant", "WRONG 5", 0), ("user", "sure?", 0), ("assistant", "RIGHT 4", 1)
)
BOTH = said(("user", "2 + 2?", 0), ("assistant", "WRONG 5", 1), ("user", "sure?", 0), ("assistant", "RIGHT 4", 1))


class Lines(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.root = Path(cls.folder.name)
        cls.model = model_folder(cls.root / "model", small_tokenizer(CHATML), "<s>", "<|im_end|>", TEMPLATE)
        cls.bare = model_folder(cls.root / "bare", small_tokenizer(CHATML), "<s>", "<|im_end|>")

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def call(self, lines, *options, model=None):
        file = self.root / "data.jsonl"
        file.write_text("".join(json.dumps(l).replace("Infinity", "1e999") + "\n" for l in lines))
        return prepare(file, "--model", model or self.model, "--cache", self.root / "cache", *options)

    def good(self, line, *options, model=None):
        """Its text with the trained parts marked, and what was said."""
        code, summary, _, err = self.call([line], *options, model=model)
        self.assertEqual(code, 0, (line, err))
        ((tokens, labels),) = documents(summary)
        return decoded(model or self.model, labels, tokens), err

    def bad(self, line, *messages, options=(), model=None):
        code, _, _, err = self.call([line], *options, model=model)
        self.assertEqual(code, 2, (line, err))
        for message in (*messages, "fix:"):
            self.assertIn(message, err, line)
        self.assertNotIn("Traceback", err)

    def check(self, table, *options):
        for line, right in table:
            self.assertEqual(self.good(line, *options)[0], right, line)

    # what is trained

    def test_flags_of_messages(self):
        self.check(
            [
                (corrected(), BOTH),
                (corrected(weight=(0, 1)), SECOND_ONLY),
                (corrected(weight=(0.0, 1.0)), SECOND_ONLY),
                (corrected(loss=(False, True)), SECOND_ONLY),
                (corrected(loss=(0, 1)), SECOND_ONLY),
                (corrected(train=(False, True)), SECOND_ONLY),
                (corrected(train=(False, None)), SECOND_ONLY),
                (corrected(weight=(None, None), loss=(None, None), train=(None, None)), BOTH),
                (corrected(weight=(0, 1), train=(False, True), loss=(False, True)), SECOND_ONLY),
                ({"messages": [turn("user", "a", weight=0), turn("assistant", "b")]}, said(("user", "a", 0), ("assistant", "b", 1))),
                ({"messages": [turn("user", "a", train=True), turn("assistant", "b")]}, said(("user", "a", 1), ("assistant", "b", 1))),
                (
                    {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b", "weight": 0}, {"from": "gpt", "value": "c", "loss": 1}]},
                    said(("user", "a", 0), ("assistant", "b", 0), ("assistant", "c", 1)),
                ),
            ]
        )  # fmt: skip
        text, _ = self.good(corrected(weight=(0, 1)), "--train-on", "all")
        self.assertIn("WRONG 5<|im_end|>[[", text.replace("[[<|im_end|>", "<|im_end|>[["))
        self.assertNotIn("[[WRONG", text)

    def test_flags_that_say_nothing_clear(self):
        for line, message in (
            (corrected(weight=(-1, 1)), '"weight" is not a number from 0 to 1000'),
            (corrected(weight=("0", 1)), '"weight" is not a number'),
            (corrected(weight=(True, 1)), '"weight" is not a number'),
            (corrected(weight=(1e999, 1)), '"weight" is not a number'),
            (corrected(loss=([0], 1)), '"loss" is not a number'),
            (corrected(train=(0, 1)), '"train" is not true or false'),
            (corrected(weight=(1, 1), train=(False, True)), 'disagree: 1 line\n    line 1: train, weight'),
            (corrected(weight=(0.5, 1), loss=(0.25, 1)), "disagree"),
            (corrected(weight=(0, 0)), "nothing to train on"),
            ({"messages": [turn("user", "a", weight=1), turn("assistant", "b")]}, '"weight" above 0 in a message that is'),
            ({"messages": HELLO, "weight": 0}, "nothing to train on"),
            ({"messages": HELLO, "weight": "2"}, '"weight" is not a number'),
        ):  # fmt: skip
            self.bad(line, message)

    def test_fractions_are_weights(self):
        code, summary, _, _ = self.call([corrected(weight=(0.25, 1)), {"messages": HELLO}])
        (first, second), docs = weights(summary), documents(summary)
        targets = [w for w, l in zip(first, docs[0][1]) if l != -100]
        self.assertEqual(sorted(set(targets)), [0.25, 1.0])
        trained = [(decoded(self.model, [l]), w) for w, l in zip(first, docs[0][1]) if l != -100]
        self.assertEqual("".join(t for t, w in trained if w == 0.25), "WRONG 5<|im_end|>")
        self.assertEqual("".join(t for t, w in trained if w == 1), "RIGHT 4<|im_end|>")
        self.assertEqual({w for w, l in zip(second, docs[1][1]) if l != -100}, {1.0})
        self.assertEqual(summary["target_tokens"], sum(l != -100 for d in docs for l in d[1]))

    def test_weights_of_whole_lines(self):
        for line, options, right in (
            ({"messages": HELLO, "weight": 0.5}, (), {0.5}),
            ({"messages": HELLO, "weight": 0.5}, ("--train-on", "all"), {0.5}),
            ({"messages": [HELLO[0], {**HELLO[1], "weight": 0.5}], "weight": 0.5}, (), {0.25}),
            ({"text": "some text", "weight": 2}, (), {2.0}),
            ({"prompt": "a", "completion": "b", "weight": 0.5}, (), {0.5}),
            ({"instruction": "a", "output": "b", "weight": 0.125}, (), {0.125}),
        ):
            code, summary, _, err = self.call([line], *options)
            self.assertEqual(code, 0, err)
            ((_, labels),), (own,) = documents(summary), weights(summary)
            self.assertEqual({w for w, l in zip(own, labels) if l != -100}, right, line)

    def test_no_weights_where_all_count_alike(self):
        _, summary, _, _ = self.call([corrected(weight=(0, 1)), {"messages": HELLO}])
        self.assertIsNone(weights(summary))

    # what stands before it

    def test_system_beside_the_messages(self):
        system, talk = (
            "Speak like a pirate.",
            {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]},
        )
        right = f"<|im_start|>system\n{system}<|im_end|>" + TURNS
        self.check(
            [
                ({"messages": HELLO, "system": system}, right),
                ({**talk, "system": system}, right),
                ({"instruction": "hi", "output": "ho", "system": system}, right),
                ({"prompt": HELLO[:1], "completion": HELLO[1:], "system": system}, right),
                ({"messages": [turn("system", system), *HELLO], "system": system}, right),
                ({"messages": HELLO, "system": ""}, TURNS),
                ({"messages": HELLO, "system": None}, TURNS),
            ]
        )  # fmt: skip
        self.bad({"messages": [turn("system", "a"), *HELLO], "system": "b"}, "a system message that differs")
        self.bad({"messages": HELLO, "system": ["b"]}, '"system" is not a string')
        self.bad({"instruction": "a", "output": "b", "system": "c"}, '"system" in an alpaca line', model=self.bare)
        self.bad({"prompt": "a", "completion": "b", "system": "c"}, 'the key "system" is not honoured')

    def test_history_of_alpaca(self):
        self.check(
            [
                (
                    {"instruction": "hi", "input": "x", "output": "ho", "history": [["a", "b"], ["c", "d"]]},
                    said(("user", "a", 0), ("assistant", "b", 1), ("user", "c", 0), ("assistant", "d", 1), ("user", "hi\n\nx", 0), ("assistant", "ho", 1)),
                ),
                ({"instruction": "hi", "input": None, "output": "ho", "history": []}, TURNS),
            ]
        )  # fmt: skip
        for history in ("a", [["a"]], [["a", 1]], [{"a": "b"}]):
            self.bad({"instruction": "a", "output": "b", "history": history}, "history")

    def test_conversational_prompt_and_completion(self):
        talk = [turn("user", "a"), turn("assistant", "b"), turn("user", "c"), turn("assistant", "d")]
        last = said(("user", "a", 0), ("assistant", "b", 0), ("user", "c", 0), ("assistant", "d", 1))
        self.check(
            [
                ({"prompt": talk[:3], "completion": talk[3:]}, last),
                ({"prompt": [talk[0], {**talk[1], "train": True}, talk[2]], "completion": talk[3:]}, last.replace("b<|im_end|>", "[[b<|im_end|>]]")),
                ({"prompt": talk[:1], "completion": talk[1:]}, last.replace("b<|im_end|>", "[[b<|im_end|>]]")),
            ]
        )  # fmt: skip
        _, summary, _, err = self.call([{"prompt": talk[:1], "completion": talk[1:2]}])
        self.assertIn("format prompt/completion messages", err)
        self.bad({"prompt": talk[:1], "completion": []}, "is not a list of messages")
        self.bad({"prompt": ["a"], "completion": ["b"]}, "is not a list of messages")
        self.bad({"prompt": talk[:1], "completion": "b"}, '"prompt" is not a string')
        self.bad({"prompt": talk[:1], "completion": talk[1:2]}, "the model has no chat template", model=self.bare)

    def test_variables_of_the_template(self):
        loud = ("--chat-template-kwargs", '{"loud": true}')
        for line, options, right in (
            ({"messages": HELLO}, loud, "loud " + TURNS),
            ({"messages": HELLO, "chat_template_kwargs": {"loud": True}}, (), "loud " + TURNS),
            ({"messages": HELLO, "chat_template_kwargs": {"loud": False}}, loud, TURNS),
            ({"messages": HELLO, "chat_template_kwargs": {"style": "odd "}}, loud, "loud odd " + TURNS),
            ({"messages": HELLO, "chat_template_kwargs": None}, (), TURNS),
        ):
            self.assertEqual(self.good(line, *options)[0], right)
        self.bad({"messages": HELLO, "chat_template_kwargs": {"lout": 1}}, 'does not read "lout"')
        self.bad({"messages": HELLO, "chat_template_kwargs": {"messages": 1}}, '"messages" is moetune\'s to set')
        self.bad({"messages": HELLO, "chat_template_kwargs": [1]}, "is not an object")
        self.bad({"messages": HELLO}, 'does not read "lout"', options=("--chat-template-kwargs", '{"lout": 1}'))

    # keys that nothing honours

    def test_keys_of_messages(self):
        for key in ("prefix", "refusal", "channel", "Train", "wieght", "timestamp", "mask"):
            line = {"messages": [HELLO[0], {**HELLO[1], key: 1}]}
            self.bad(line, f'the key "{key}" of a message is not honoured: 1 line', f"data.ignore_keys: [{key}]")
            self.assertEqual(self.good(line, "--ignore-keys", json.dumps([key]))[0], TURNS)
            for absent in (None, "", [], {}):
                self.assertEqual(self.good({"messages": [HELLO[0], {**HELLO[1], key: absent}]})[0], TURNS)
        self.bad({"conversations": [{"from": "human", "value": "a", "score": 1}]}, 'the key "score" of a message')
        self.bad({"messages": [turn("user", [{"type": "text", "text": "a", "weight": 0.5}])]}, "of a part of content")
        ignored = self.good(corrected(weight=(0, 1)), "--ignore-keys", '["weight"]')[0]
        self.assertEqual(ignored, BOTH)

    def test_names(self):
        line = {"messages": [{**HELLO[0], "name": "Ann"}, HELLO[1]]}
        self.assertEqual(self.good(line)[0], TURNS.replace("user\n", "user Ann\n"))
        nameless = model_folder(
            self.root / "nameless", self.bare / "tokenizer.json", None, "<|im_end|>", support.CHATML_TEMPLATE
        )
        self.bad(line, 'does not write the "name" of a message', "ignore_keys: [name]", model=nameless)
        self.good(line, "--ignore-keys", '["name"]', model=nameless)

    def test_keys_of_lines(self):
        lines = [{"messages": HELLO, "source": "web", "prompt": "hi"}, {"messages": HELLO, "source": "a"}]
        code, summary, _, err = self.call(lines)
        self.assertEqual(code, 0)
        for said_ in ('note: nothing reads the key "source" of 2 lines', 'the key "prompt" of 1 lines'):
            self.assertIn(said_, err)
        # The notes are said again when the cache is there already.
        code, again, _, err = self.call(lines)
        self.assertTrue(again["reused"])
        self.assertIn('note: nothing reads the key "source" of 2 lines', err)
        code, _, _, err = self.call(lines, "--ignore-keys", '["source", "prompt"]')
        self.assertNotIn("note:", err)
        _, err = self.good({"messages": HELLO, "id": 3, "images": [], "weight": None})
        self.assertNotIn("note:", err)

    def test_keys_of_lines_that_would_change_what_is_learnt(self):
        formats = (
            {"messages": HELLO},
            {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
            {"instruction": "a", "output": "b"},
            {"prompt": "a", "completion": "b"},
            {"text": "a"},
        )
        for line in formats:
            for key in (
                "loss_mask",
                "train",
                "images",
                "rejected",
                "system_prompt",
                "documents",
                "reasoning",
                "Thinking",
                "loss-mask",
                "lossMask",
                " Weight",
                "is_trained",
                "trainable",
                "labels",
                "kto_tag",
                "suffix",
            ):
                self.bad({**line, key: ["x"]}, f'the key "{key}" is not honoured in a line of format', "ignore_keys")
                self.good({**line, key: ["x"]}, "--ignore-keys", json.dumps([key]))
            self.bad({**line, "label": False}, 'the key "label" is not honoured')
            self.good({**line, "label": 1})
        for key in ("tools", "chat_template_kwargs", "history", "functions"):
            self.bad({"text": "a", key: {"a": 1}}, f'the key "{key}" is not honoured')
        for line in ({"instruction": "a", "output": "b"}, {"prompt": "a", "completion": "b"}):
            for key in ("context", "query", "response"):
                self.bad({**line, key: "c"}, f'the key "{key}" is not honoured')

    def test_ignored_keys_of_which_a_line_consists(self):
        for line, names in (
            ({"messages": HELLO}, ["messages", "content"]),
            ({"messages": HELLO}, ["role", "x"]),
            ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, ["value"]),
            ({"text": "a"}, ["text"]),
            ({"prompt": "a", "completion": "b"}, ["completion"]),
            ({"input_ids": [1, 2], "labels": [1, 2]}, ["input_ids"]),
        ):
            code, _, _, err = self.call([line], "--ignore-keys", json.dumps(names))
            self.assertEqual(code, 0, err)
            for name in names:
                told = f'data.ignore_keys: "{name}" is not ignored: lines of this format consist of it'
                (self.assertNotIn if name == "x" else self.assertIn)(told, err)
        _, err = self.good({"messages": HELLO, "text": "a"}, "--ignore-keys", '["text"]')
        self.assertNotIn("is not ignored", err)

    def test_keys_of_lines_that_the_template_reads(self):
        for key, value in (("loud", True), ("style", "x")):
            self.bad(
                {"messages": HELLO, key: value},
                f'the key "{key}" stands beside the conversation, and the chat template reads it',
                f'"chat_template_kwargs": {{"{key}": ...}}',
            )
            self.good({"messages": HELLO, key: value}, "--ignore-keys", json.dumps([key]))
            self.good({"messages": HELLO, key: None})

    # lines that are tokenised already

    def test_tokenised_lines(self):
        ids = {"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}
        for more in (
            {"attention_mask": [1, 1, 1]},
            {"position_ids": [0, 1, 2], "attention_mask": [1, 1, 1]},
            {"attention_mask": None, "position_ids": []},
            {"token_type_ids": [], "weight": None, "source": "", "id": 3},
        ):
            code, summary, _, err = self.call([{**ids, **more}])
            self.assertEqual(code, 0, err)
            self.assertEqual(documents(summary), [([5, 6, 7], [-100, 6, 7])])
        for more, message in (
            ({"attention_mask": [1, 1, 0]}, '"attention_mask" is not 1 for each token'),
            ({"attention_mask": [1, 1]}, '"attention_mask" is not 1 for each token'),
            ({"attention_mask": [1, 1, True]}, '"attention_mask" is not a list of whole numbers'),
            ({"attention_mask": 1}, '"attention_mask" is not a list of whole numbers'),
            ({"position_ids": [0, 1, 0]}, '"position_ids" do not count from 0'),
            ({"position_ids": [0, 1, 2, 3]}, '"position_ids" do not count from 0'),
            ({"token_type_ids": [0, 0, 0]}, 'the key "token_type_ids" is not honoured'),
            ({"length": 3}, 'the key "length" is not honoured'),
        ):
            self.bad({**ids, **more}, message)
        code, _, _, err = self.call([{**ids, "length": 3}], "--ignore-keys", '["length"]')
        self.assertEqual(code, 0, err)

    # whatever the input

    def test_no_traceback(self):
        half = "\ud83d"
        for line in (
            {"messages": [turn(half, "a"), HELLO[1]]},
            {"messages": [turn("user", half), HELLO[1]]},
            {"messages": [turn("user", "a", name=half), HELLO[1]]},
            {"messages": [turn("user", "a"), turn("assistant", "b", reasoning=half)]},
            {"messages": [turn("user", "a", **{half: 1}), HELLO[1]]},
            {"messages": HELLO, "system": half},
            {"messages": HELLO, "chat_template_kwargs": {"style": half}},
            {"messages": HELLO, "chat_template_kwargs": {half: 1}},
            {"messages": HELLO, "tools": half},
            {"conversations": [{"from": half, "value": "a"}]},
            {"conversations": [{"from": "human", "value": half}]},
            {"instruction": half, "output": "a"},
            {"prompt": "a", "completion": half},
            {"text": half},
            {half: "a"},
        ):
            code, _, _, err = self.call([line])
            self.assertEqual(code, 2, (line, err))
            self.assertNotIn("Traceback", err)
            err.encode()  # nothing of it needs more than UTF-8
        for key in ("id", "note", half):
            self.assertEqual(self.call([{"messages": HELLO, key: half}])[0], 0)
        for text in (
            '{"text": "a", "n": ' + "1" * 5000 + "}",
            '{"text": ' + "1" * 4000 + "}",
            '{"text": "a", "weight": ' + "1" * 4000 + "}",
        ):
            file = self.root / "data.jsonl"
            file.write_text(text)
            code, _, _, err = prepare(file, "--model", self.model, "--cache", self.root / "cache")
            self.assertEqual(code, 2, err)
            self.assertNotIn("Traceback", err)

    def test_terminal_that_is_not_utf8(self):
        file = write_lines(self.root / "data.jsonl", [{"messages": [turn("user", "東京 é"), HELLO[1]], "clé東": 1}])
        ran = subprocess.run(
            [sys.executable, Path(support.__file__).resolve().parents[2] / "scripts" / "prepare", file]
            + ["--model", self.model, "--cache", self.root / "cache", "--show", "1"],
            env={"PYTHONIOENCODING": "ascii", "PATH": ""},
            capture_output=True,
        )
        self.assertEqual(ran.returncode, 0, ran.stderr)
        self.assertIn(b"\\u6771\\u4eac", ran.stdout)
        self.assertIn(b"nothing reads the key", ran.stderr)

    def test_tokenizer_that_panics(self):
        class PanicException(BaseException):
            """As pyo3 raises it: no Exception."""

        from prepare.tokenise import Tokeniser

        real = Tokeniser.__init__

        def breaking(self, *arguments):
            real(self, *arguments)
            tokenizer = self.tokenizer

            class Fragile:
                def encode_batch(self, texts, **options):
                    if any("boom" in t for t in texts):
                        raise PanicException("index out of bounds")
                    return tokenizer.encode_batch(texts, **options)

                def encode(self, text, **options):
                    return self.encode_batch([text], **options)[0]

            self.tokenizer = Fragile()

        with mock.patch.object(Tokeniser, "__init__", breaking):
            code, _, _, err = self.call([{"text": "fine"}, {"text": "boom"}])
            self.assertEqual(code, 2)
            self.assertIn("tokenizer.json fails on this text: 1 line\n    line 2: index out of bounds", err)
            self.assertEqual(self.call([{"text": "fine"}])[0], 0)

    def test_long_lines(self):
        from prepare import template, tokenise

        with mock.patch.object(tokenise, "OUTPUT_BYTES", 1000):
            self.bad({"text": "é" * 501}, "a document of more than 0 MiB of text")
            self.good({"text": "é" * 500})
        with mock.patch.object(template, "OUTPUT_BYTES", 1000):
            self.bad({"messages": [turn("user", "a" * 1001), HELLO[1]]}, "it writes more than 0 MiB for one line")
        self.assertEqual((template.OUTPUT_BYTES, tokenise.OUTPUT_BYTES), (8 << 20, 8 << 20))
        twice = model_folder(
            self.root / "twice",
            self.bare / "tokenizer.json",
            None,
            "<|im_end|>",
            "{% for m in messages %}{{ m.content * 3000 }}{% endfor %}",
        )
        self.bad(
            {"messages": [turn("user", "a" * 6000), HELLO[1]]}, "it writes more than 8 MiB for one line", model=twice
        )


if __name__ == "__main__":
    unittest.main()
