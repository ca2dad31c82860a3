"""Thoughts: what a template does with them, what is refused, and what data.thoughts: keep makes of a last turn."""

import tempfile
import unittest
from pathlib import Path

import support
from support import decoded, documents, model_folder, oracle, prepare, small_tokenizer, write_lines

CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
BOS, EOS = support.DEEPSEEK
# As DeepSeek-R1: thoughts are taken out, and the generation prompt opens them.
R1_TEMPLATE = support.DEEPSEEK_TEMPLATE.replace(
    "{{ '<｜Assistant｜>' }}{% endif %}", "{{ '<｜Assistant｜><think>\\n' }}{% endif %}"
)
KEEP = ("--thoughts", "keep")


def talk(*contents, **last):
    turns = [{"role": ("user", "assistant")[i % 2], "content": c} for i, c in enumerate(contents)]
    turns[-1] |= last
    return {"messages": turns}


THOUGHT = "<think>\nTHOUGHTS\n</think>\n\n4"


class Thoughts(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.root = Path(cls.folder.name)
        tokenizer = support.small_deepseek_tokenizer()
        for name, template in (
            ("v3", support.DEEPSEEK_TEMPLATE),
            ("v31", support.DEEPSEEK31_TEMPLATE),
            ("r1", R1_TEMPLATE),
            # No generation prompt at all.
            ("closed", support.DEEPSEEK_TEMPLATE[: support.DEEPSEEK_TEMPLATE.index("{%- if add_generation")]),
        ):
            setattr(cls, name, model_folder(cls.root / name, tokenizer, *support.DEEPSEEK, template))
        cls.qwen3 = model_folder(
            cls.root / "qwen3", small_tokenizer(CHATML), None, "<|im_end|>", support.QWEN3_TEMPLATE
        )
        named = support.QWEN3_TEMPLATE.replace("reasoning_content", "thinking")
        cls.named = model_folder(cls.root / "named", small_tokenizer(CHATML), None, "<|im_end|>", named)

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def call(self, model, lines, *options):
        file = write_lines(self.root / "data.jsonl", lines)
        return prepare(file, "--model", model, "--cache", self.root / "cache", *options)

    def good(self, model, line, *options):
        code, summary, _, err = self.call(model, [line], *options)
        self.assertEqual(code, 0, (line, err))
        ((tokens, labels),) = documents(summary)
        return decoded(model, labels, tokens), err

    def bad(self, model, line, *messages, options=()):
        code, _, _, err = self.call(model, [line], *options)
        self.assertEqual(code, 2, (line, err))
        for message in (*messages, "fix:"):
            self.assertIn(message, err, line)

    def test_taken_out_is_refused(self):
        lines = [{**talk("2 + 2?", THOUGHT), "id": "a"}, talk("q", "a"), {**talk("3?", "<think>X</think>5"), "id": "b"}]
        code, _, _, err = self.call(self.v3, lines)
        self.assertEqual(code, 2)
        self.assertIn(
            "takes thoughts out of trained answers: 2 lines\n"
            "    line 1 (id 'a'): message 2: \"THOUGHTS\"\n"
            "    line 3 (id 'b'): message 2: \"X\"\n"
            "    fix: data.thoughts: keep",
            err,
        )

    def test_fields_for_thoughts(self):
        """Under each of its names, as transformers renders it under the template's own."""
        expected = oracle(self.qwen3).apply_chat_template(
            talk("2 + 2?", "4", reasoning_content="THOUGHTS")["messages"], return_dict=True
        )["input_ids"]
        for model in (self.qwen3, self.named):
            for key in ("reasoning_content", "reasoning", "thinking"):
                code, summary, _, err = self.call(model, [talk("2 + 2?", "4", **{key: "THOUGHTS"})])
                self.assertEqual(code, 0, err)
                ((tokens, labels),) = documents(summary)
                self.assertEqual(tokens, expected, key)
                self.assertEqual(decoded(model, labels), THOUGHT + "<|im_end|>")
        for key in ("reasoning_content", "reasoning", "thinking"):
            line = talk("2 + 2?", "4", **{key: "THOUGHTS"})
            self.bad(self.v3, line, 'takes thoughts out of trained answers: 1 line\n    line 1: message 2: "THOUGHTS"')
            self.good(self.v3, line, "--ignore-keys", f'["{key}"]')
            line["messages"][1]["train"] = False
            line["messages"] += talk("q", "a")["messages"]
            self.assertIn("takes the thoughts out of 1 messages", self.good(self.v3, line)[1])
        self.good(self.v3, talk("q", "a", reasoning_content=None, thinking=""))
        self.bad(self.qwen3, talk("q", "a", reasoning="x", thinking="y"), "thoughts under several names")
        self.good(self.qwen3, talk("q", "a", reasoning="x", thinking="x"))
        user = talk("q", "a")
        user["messages"][0]["thinking"] = "x"
        self.bad(self.qwen3, user, "thoughts in a message that is not the assistant's")

    def test_keep(self):
        """The text with the trained part marked; <think> and </think> are tokens."""
        asked = f"{BOS}<｜User｜>2 + 2?<｜Assistant｜>"
        thinks = ("--chat-template-kwargs", '{"thinking": true}')
        for model, line, options, right in (
            (self.v3, talk("2 + 2?", THOUGHT), (), f"{asked}[[{THOUGHT}{EOS}]]"),
            (self.closed, talk("2 + 2?", THOUGHT), (), f"{asked}[[{THOUGHT}{EOS}]]"),
            (self.v3, talk("2 + 2?", "<think>T</think>4"), (), f"{asked}[[<think>T</think>4{EOS}]]"),
            (self.v3, talk("2 + 2?", "T</think>4"), (), f"{asked}[[T</think>4{EOS}]]"),
            (self.v3, talk("2 + 2?", "4", reasoning="THOUGHTS"), (), f"{asked}[[{THOUGHT}{EOS}]]"),
            (self.closed, talk("2 + 2?", "4", thinking="THOUGHTS"), (), f"{asked}[[{THOUGHT}{EOS}]]"),
            # What the generation prompt has opened is not to be learnt.
            (self.r1, talk("2 + 2?", THOUGHT), (), f"{asked}<think>\n[[THOUGHTS\n</think>\n\n4{EOS}]]"),
            (self.r1, talk("2 + 2?", "THOUGHTS\n</think>\n\n4"), (), f"{asked}<think>\n[[THOUGHTS\n</think>\n\n4{EOS}]]"),
            (self.r1, talk("2 + 2?", "4", reasoning_content="THOUGHTS"), (), f"{asked}<think>\n[[THOUGHTS\n</think>\n\n4{EOS}]]"),
            (self.v31, talk("2 + 2?", "<think>T</think>4"), thinks, f"{asked}<think>[[T</think>4{EOS}]]"),
            (self.v31, talk("2 + 2?", "4", reasoning_content="T"), thinks, f"{asked}<think>[[T</think>4{EOS}]]"),
            # Without thoughts nothing changes.
            (self.v3, talk("2 + 2?", "4"), (), f"{asked}[[4{EOS}]]"),
        ):  # fmt: skip
            text, err = self.good(model, line, *KEEP, *options)
            self.assertEqual(text, right, (line, err))
            self.assertNotIn("as text", err)
        self.bad(self.v31, talk("q", THOUGHT), "opens the answer behind them", "{thinking: true}", options=KEEP)

    def test_keep_marks_the_tags_as_tokens(self):
        _, summary, _, _ = self.call(self.v3, [talk("q", THOUGHT)], *KEEP)
        ((tokens, _),) = documents(summary)
        for tag in ("<think>", "</think>"):
            self.assertEqual(tokens.count(oracle(self.v3).convert_tokens_to_ids(tag)), 1)

    def test_keep_with_history(self):
        line = talk("a", "<think>OLD</think>b", "c", "<think>NEW</think>d")
        text, err = self.good(self.v3, line, *KEEP)
        turns = f"{BOS}<｜User｜>a<｜Assistant｜>[[b{EOS}]]<｜User｜>c<｜Assistant｜>"
        self.assertEqual(text, f"{turns}[[<think>NEW</think>d{EOS}]]")
        self.assertIn("takes the thoughts out of 1 messages", err)
        # The template writes those of the last turn itself; those before are history.
        text, err = self.good(self.qwen3, line, *KEEP)
        self.assertIn("assistant\n[[b<|im_end|>]]", text)
        self.assertTrue(text.endswith("[[<think>\nNEW\n</think>\n\nd<|im_end|>]]\n"))
        self.assertIn("takes the thoughts out of 1 messages", err)
        self.bad(self.v3, talk("a", "<think>OLD</think>b", "c"), "not in a last turn", options=KEEP)
        self.bad(self.v3, line, "takes thoughts out of trained answers")

    def test_special_tokens_in_kept_thoughts_stay_text(self):
        line = talk("q", f"<think>so {EOS} is</think>a")
        text, err = self.good(self.v3, line, *KEEP)
        self.assertEqual(text, f"{BOS}<｜User｜>q<｜Assistant｜>[[<think>so {EOS} is</think>a{EOS}]]")
        self.assertIn("stayed ordinary text in 1 documents", err)
        self.assertEqual(self.good(self.v3, line, *KEEP, "--train-on", "all")[0].count(EOS), 2)

    def test_taken_out_of_the_middle(self):
        """Marks around the whole content survive these; the content between them does not."""
        for number, (answer, content, found) in enumerate(
            (
                ("m.content.split('<think>')[0] + m.content.split('</think>')[-1]", THOUGHT, "takes thoughts out"),
                (
                    "m.content.split('<think>')[0] + m.content.split('</think>')[-1]",
                    "So " + THOUGHT,
                    "takes thoughts out",
                ),
                ("m.content | replace('THOUGHTS', '')", THOUGHT, "changes a trained message"),
                ("m.content | replace('THOUGHTS', '...')", THOUGHT, "changes a trained message"),
                ("m.content | replace('<think>', '') | replace('</think>', '')", THOUGHT, "changes a trained message"),
                ("m.content | replace('<think>', '')", THOUGHT, "changes a trained message"),
                ("m.content | striptags", THOUGHT, "changes a trained message"),
                ("m.content | striptags", "<b>4</b>", "changes a trained message"),
                ("m.content | upper", "four", "changes a trained message"),
                ("m.content | escape", "2 < 4", "changes a trained message"),
            )
        ):
            template = support.CHATML_TEMPLATE.replace(
                "{{ m.content + '<|im_end|>' }}", f"{{{{ ({answer}) + '<|im_end|>' }}}}"
            )
            self.assertIn(answer, template)
            model = model_folder(self.root / f"middle-{number}", small_tokenizer(CHATML), None, "<|im_end|>", template)
            self.bad(model, talk("2 + 2?", content), found, "message 2")
            self.good(model, talk("2 + 2?", "4"))
            self.good(
                model,
                talk("2 + 2?", content, train=False)
                | {"messages": [*talk("2 + 2?", content, train=False)["messages"], *talk("5?", "6")["messages"]]},
            )
        # What only adds, or moves white space, changes nothing.
        for number, answer in enumerate(
            ("m.content | indent(2)", "m.content.splitlines() | join(' ')", "m.content | tojson", "m.content | trim")
        ):
            template = support.CHATML_TEMPLATE.replace(
                "{{ m.content + '<|im_end|>' }}", f"{{{{ ({answer}) + '<|im_end|>' }}}}"
            )
            model = model_folder(self.root / f"added-{number}", small_tokenizer(CHATML), None, "<|im_end|>", template)
            self.good(model, talk("q", 'a "b"\n c\n\n' + THOUGHT + " "))

    def test_taken_out_where_marks_do_not_survive(self):
        looks = model_folder(
            self.root / "looks",
            support.small_deepseek_tokenizer(),
            *support.DEEPSEEK,
            "{% for m in messages %}{% if m.reasoning_content %}{% endif %}{% if m.content | length > 9 %}{{ 'long' }}"
            "{% endif %}{{ m.content + eos_token }}{% endfor %}",
        )
        self.bad(looks, talk("question", "answer", reasoning_content="T"), "takes thoughts out of trained answers")
        self.assertEqual(self.good(looks, talk("question", "answer"))[0], f"question{EOS}[[answer{EOS}]]")

    def test_trained_messages_that_a_template_leaves_out(self):
        first = model_folder(
            self.root / "first",
            support.small_deepseek_tokenizer(),
            *support.DEEPSEEK,
            "{% for m in messages[:2] %}{{ m.content + eos_token }}{% endfor %}",
        )
        self.bad(first, talk("a", "b", "c", "d"), "leaves out a trained message", "message 4, role assistant")
        self.assertEqual(self.good(first, talk("a", "b", "c"))[0], f"a{EOS}[[b{EOS}]]")


if __name__ == "__main__":
    unittest.main()
