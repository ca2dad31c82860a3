"""Tools and calls: rendered by the model's own template, against transformers' apply_chat_template and its mask."""

import copy
import itertools
import json
import random
import tempfile
import unittest
from pathlib import Path

import support
from support import decoded, documents, model_folder, oracle, prepare, small_tokenizer, write_lines

CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
GLM = ("[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|observation|>", "<|system|>")
CALL = ("<tool_call>", "</tool_call>")
ADD = {"type": "function", "function": {"name": "add", "description": "adds", "parameters": {"type": "object"}}}


def call(name, arguments, **more):
    return {"type": "function", "function": {"name": name, "arguments": arguments}, **more}


def asks(*calls, content=None):
    return {"role": "assistant", "content": content, "tool_calls": list(calls)}


def user(content):
    return {"role": "user", "content": content}


def says(content):
    return {"role": "assistant", "content": content}


def result(content, **more):
    return {"role": "tool", "content": content, **more}


TALKS = [
    [user("2 + 2?"), asks(call("add", {"a": 2, "b": [1, "x"]})), result("4"), says("It is 4.")],
    [user("q"), asks(call("add", {}), content="Let me see."), result("4"), says("4"), user("and"), says("done")],
    [user("q"), asks(call("add", {"a": 1}), call("sub", {"b": 'é\n"q"'})), result("4"), result("5"), says("ok")],
    [user("q"), asks(call("add", {"a": 1})), result("4"), asks(call("add", {"a": 4})), result("8"), says("8")],
    [{"role": "system", "content": "Be brief."}, user("q"), asks(call("add", {"a": 1}), content="  spaced \n")],
    [user("add"), asks(call("add", {"a": "add"}), content="add"), result("add"), says("add")],
]


def with_text_arguments(talk):
    talk = copy.deepcopy(talk)
    for m in talk:
        for c in m.get("tool_calls", []):
            c["function"]["arguments"] = json.dumps(c["function"]["arguments"], ensure_ascii=False)
    return talk


class Tools(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.root = Path(cls.folder.name)
        cls.chatml = model_folder(
            cls.root / "chatml", small_tokenizer(CHATML, words=CALL), None, "<|im_end|>", support.CHATML_TOOLS_TEMPLATE
        )
        cls.deepseek = model_folder(
            cls.root / "deepseek",
            support.small_deepseek_tokenizer(),
            *support.DEEPSEEK,
            support.DEEPSEEK31_TEMPLATE,
        )
        cls.glm = model_folder(
            cls.root / "glm", small_tokenizer(GLM, words=CALL), None, "<|user|>", support.GLM_TEMPLATE
        )
        cls.plain = model_folder(
            cls.root / "plain", small_tokenizer(("<s>", "</s>")), "<s>", "</s>", support.PLAIN_TEMPLATE
        )
        # Of the calls it writes nothing but the arguments' objects.
        cls.objects = model_folder(
            cls.root / "objects",
            small_tokenizer(CHATML, words=CALL),
            None,
            "<|im_end|>",
            "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}{% for c in m.tool_calls or [] %}"
            "{{ c.function | tojson }}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
        )

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def run_lines(self, model, lines, *options):
        file = write_lines(self.root / "data.jsonl", lines)
        return prepare(file, "--model", model, "--cache", self.root / "cache", *options)

    def good(self, model, lines, *options):
        code, summary, _, err = self.run_lines(model, lines, *options)
        self.assertEqual(code, 0, err)
        return documents(summary)

    def bad(self, model, line, *messages):
        code, _, _, err = self.run_lines(model, [line])
        self.assertEqual(code, 2, err)
        for message in (*messages, "fix:"):
            self.assertIn(message, err)

    def check_against_transformers(self, model, talks, tools=None, given=None):
        """given: what the file says, where it is not what transformers is told."""
        lines = [{"messages": t, **({"tools": tools} if tools else {})} for t in given or talks]
        for talk, (tokens, labels) in zip(talks, self.good(model, lines), strict=True):
            expected = oracle(model).apply_chat_template(
                copy.deepcopy(talk), tools=tools, return_dict=True, return_assistant_tokens_mask=True
            )
            self.assertEqual(tokens, expected["input_ids"], talk)
            want = [t if m else -100 for t, m in zip(expected["input_ids"], expected["assistant_masks"])]
            self.assertEqual(labels, want, decoded(model, labels, tokens))

    def test_chatml(self):
        self.check_against_transformers(self.chatml, TALKS, [ADD])
        self.check_against_transformers(self.chatml, TALKS)

    def test_chatml_with_text_arguments(self):
        self.check_against_transformers(self.chatml, [with_text_arguments(t) for t in TALKS], [ADD])

    def test_deepseek_takes_arguments_as_text(self):
        talks = [with_text_arguments(t) for t in TALKS]
        self.check_against_transformers(self.deepseek, talks)
        self.check_against_transformers(self.deepseek, talks, given=TALKS)

    def test_glm_takes_arguments_apart(self):
        def observed(talk):
            return [{**m, "role": "observation"} if m["role"] == "tool" else m for m in talk]

        # A turn ends with the token that begins the next, and the empty thoughts are the template's, so that
        # transformers' mask of what the template writes is another.
        for talk in TALKS:
            expected = oracle(self.glm).apply_chat_template(observed(talk), tools=[ADD], return_dict=True)["input_ids"]
            for given in (talk, observed(talk), with_text_arguments(talk)):
                ((tokens, _),) = self.good(self.glm, [{"messages": given, "tools": [ADD]}])
                self.assertEqual(tokens, expected)
        ((tokens, labels),) = self.good(self.glm, [{"messages": TALKS[0], "tools": [ADD]}])
        self.assertIn(
            "<|assistant|>\n<think></think>\n[[<tool_call>add\n<arg_key>a</arg_key>\n<arg_value>2</arg_value>\n"
            '<arg_key>b</arg_key>\n<arg_value>[1, "x"]</arg_value>\n</tool_call><|observation|>]]\n4<|assistant|>',
            decoded(self.glm, labels, tokens),
        )

    def test_objects_are_parsed_where_the_template_writes_json(self):
        ((tokens, _),) = self.good(self.objects, [{"messages": [user("q"), asks(call("add", '{"a":2}'), content="")]}])
        self.assertTrue(
            decoded(self.objects, tokens).endswith('assistant\n{"name": "add", "arguments": {"a": 2}}<|im_end|>\n')
        )

    def test_all_the_ways_to_write_a_call(self):
        """Each is the same document as the first."""
        tools = [ADD]
        end = [result("4"), says("It is 4.")]
        newest = {"messages": [user("q"), asks(call("add", '{"a": 2}')), *end], "tools": tools}
        bare = {"name": "add", "arguments": '{"a": 2}'}
        function_call = {"role": "assistant", "content": None, "function_call": bare}
        sharegpt = [("human", "q"), ("function_call", '{"name": "add", "arguments": {"a": 2}}'), ("observation", "4")]
        sharegpt = [{"from": f, "value": v} for f, v in (*sharegpt, ("gpt", "It is 4."))]
        expected = self.good(self.chatml, [newest])
        for line in (
            {**newest, "tools": json.dumps(tools)},
            {**newest, "tools": [ADD["function"]]},
            {"messages": newest["messages"], "functions": [ADD["function"]]},
            {**newest, "messages": [user("q"), asks(call("add", '{"a": 2}', id="c1", index=0)), *end]},
            {**newest, "messages": [user("q"), asks(call("add", '{"a": 2}'), content=""), *end]},
            {**newest, "messages": [user("q"), {"role": "assistant", "tool_calls": [bare]}, *end]},
            {**newest, "messages": [user("q"), {"role": "assistant", "tool_calls": json.dumps([bare])}, *end]},
            {
                **newest,
                "messages": [user("q"), function_call, {"role": "function", "name": "add", "content": "4"}, end[1]],
            },
            {**newest, "messages": [user("q"), function_call, {"role": "observation", "content": "4"}, end[1]]},
            {**newest, "messages": [user("q"), function_call, result("4", tool_call_id="c1", name="add"), end[1]]},
            {"conversations": sharegpt, "tools": json.dumps(tools)},
        ):
            self.assertEqual(self.good(self.chatml, [line]), expected, line)
        self.assertEqual(
            decoded(self.chatml, expected[0][1]),
            '<tool_call>\n{"name": "add", "arguments": {"a": 2}}\n</tool_call><|im_end|>It is 4.<|im_end|>',
        )

    def test_trained_or_not(self):
        talk = copy.deepcopy(TALKS[0])
        talk[1]["train"] = False
        ((_, labels),) = self.good(self.chatml, [{"messages": talk}])
        self.assertEqual(decoded(self.chatml, labels), "It is 4.<|im_end|>")
        ((tokens, labels),) = self.good(self.chatml, [{"messages": TALKS[0]}], "--train-on", "all")
        self.assertEqual(labels, [-100, *tokens[1:]])
        ((tokens, labels),) = self.good(self.chatml, [{"messages": talk}], "--train-on", "all")
        text = decoded(self.chatml, labels, tokens)
        self.assertIn("<|im_start|>assistant\n]]<tool_call>", text)
        self.assertIn("</tool_call><|im_end|>[[\n<|im_start|>user\n<tool_response>", text)

    def test_thoughts_that_the_template_has_not_written_are_not_trained(self):
        # History opens with </think> where the generation prompt of a thinking model has <think>.
        talk = [user("q"), {**asks(call("add", "{}")), "reasoning": "T"}, result("4"), says("4"), user("r"), says("s")]
        variables = {"chat_template_kwargs": {"thinking": True}}
        ((tokens, labels),) = self.good(self.deepseek, [{"messages": talk, **variables}], "--thoughts", "keep")
        self.assertIn("<｜Assistant｜></think>[[<｜tool▁calls▁begin｜>", decoded(self.deepseek, labels, tokens))

    def test_drawn_talks(self):
        """Whatever the talk: what the assistant says and calls is trained, and nothing else is."""
        rng, lines, wanted, count = random.Random(5), [], [], itertools.count()

        def word(said_by, trained):
            text = f"{said_by}{next(count)}{said_by}"
            wanted[-1][trained].append(text)
            return text

        def spaced(text):
            return rng.choice([text, text, " " + text, text + "\n", f"\n{text} ", text + " <|im_end|> " + text])

        for _ in range(120):
            wanted.append(([], []))
            talk = []
            for _ in range(rng.randrange(1, 4)):
                talk.append(user(spaced(word("U", False))))
                for _ in range(rng.randrange(3)):
                    trained = rng.random() < 0.7
                    content = rng.choice([None, "", spaced(word("C", trained))])
                    if not content:
                        wanted[-1][trained].pop()
                    calls = [call(word("F", trained), {"a": word("G", trained)}) for _ in range(rng.randrange(1, 3))]
                    talk += [{**asks(*calls, content=content), "weight": int(trained)}]
                    talk += [result(spaced(word("T", False))) for _ in calls]
                talk.append(says(spaced(word("A", True))))
            lines.append({"messages": talk})
        for model in (self.chatml, self.deepseek, self.glm):
            for (not_trained, trained), (_, labels) in zip(wanted, self.good(model, lines), strict=True):
                text = decoded(model, labels)
                self.assertEqual([w for w in trained if w not in text], [])
                self.assertEqual([w for w in not_trained if w in text], [])

    def test_names_that_stand_in_results_too(self):
        # As gpt-oss, which says whose result it is.
        model = model_folder(
            self.root / "twice",
            self.chatml / "tokenizer.json",
            None,
            "<|im_end|>",
            "{% set ns = namespace(name='') %}{% for m in messages %}{% if m.role == 'tool' %}{{ '<|im_start|>functions.'"
            " + ns.name + '\n' + m.content + '<|im_end|>' }}{% else %}{{ '<|im_start|>' + m.role + '\n' + m.content }}"
            "{% for c in m.tool_calls or [] %}{% set ns.name = c.function.name %}{{ 'to ' + ns.name + c.function.arguments"
            " }}{% endfor %}{{ '<|im_end|>' }}{% endif %}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
        )
        talk = [user("q"), asks(call("add", "{}"), content=""), result("4"), says("ok")]
        ((tokens, labels),) = self.good(model, [{"messages": talk}])
        self.assertEqual(
            decoded(model, labels, tokens).partition("q<|im_end|>")[2],
            "<|im_start|>assistant\n[[to add{}<|im_end|>]]<|im_start|>functions.add\n4<|im_end|>"
            "<|im_start|>assistant\n[[ok<|im_end|>]]",
        )

    def test_tool_template(self):
        # Of several templates transformers takes the one named tool_use for a line with tools.
        folder = model_folder(
            self.root / "two",
            self.chatml / "tokenizer.json",
            None,
            "<|im_end|>",
            [
                {"name": "default", "template": support.CHATML_TEMPLATE},
                {"name": "tool_use", "template": support.CHATML_TOOLS_TEMPLATE},
            ],
        )
        lines = [{"messages": TALKS[0], "tools": [ADD]}, {"messages": [user("a"), says("b")]}]
        with_tools, without = self.good(folder, lines)
        self.assertEqual(with_tools, self.good(self.chatml, lines)[0])
        self.assertIn("You are a helpful assistant", decoded(folder, without[0]))

    def test_refused(self):
        talk = [user("q"), asks(call("add", {"a": 2})), result("4"), says("4")]

        def line(message=None, **more):
            return {"messages": [user("q"), message or says("b")], **more}

        for model, value, message in (
            (self.plain, line(tools=[ADD]), "the chat template knows no tools"),
            (self.plain, {"messages": talk}, "the chat template knows no tool_calls"),
            (self.plain, {"conversations": [{"from": "human", "value": "a"}], "tools": "[{"}, "text that is not JSON"),
            (self.chatml, line(tools="[{"), '"tools" is text that is not JSON'),
            (self.chatml, line(tools={"a": 1}), '"tools" is not a list of definitions'),
            (self.chatml, line(tools=[ADD], functions=[ADD]), '"tools" and "functions" in one line'),
            (self.chatml, line(tools=[{"name": "\ud800"}]), "half of a surrogate pair"),
            (self.chatml, line(tools=[{"name": "<|im_end|>"}]), "special-token text in tools"),
            (self.chatml, line(asks(call("add", {"a": "<|im_end|>"}))), "special-token text in tools"),
            (self.chatml, line(asks(call("add", {"a": "\ufdd0"}))), "U+FDD0"),
            (self.chatml, line(asks(call("add", {"\ud800": 1}))), "half of a surrogate pair"),
            (self.chatml, line(asks(call("add", [1]))), "the arguments of a call"),
            (self.chatml, line(asks(call("", {}))), "has no name"),
            (self.chatml, line(asks({"type": "retrieval", "function": {"name": "a"}})), "not of type function"),
            (self.chatml, line(asks(call("add", {}, extra=1))), 'the key "extra" of a call is not honoured'),
            (self.chatml, line({**asks(call("add", {})), "function_call": {"name": "a"}}), "in one message"),
            (
                self.chatml,
                line({"role": "user", "content": "a", "tool_calls": [call("add", {})]}),
                "not the assistant's",
            ),
            (self.objects, line(asks(call("add", "{2"), content="")), "the arguments of a call are not JSON"),
            (self.objects, line(asks(call("add", "[2]"), content="")), "the arguments of a call are not JSON"),
            (self.objects, line(asks(call("add", '{"a": ' + "1" * 5000 + "}"), content="")), "are not JSON"),
            (self.glm, line(asks(call("add", "[" * 100_000))), "are not JSON"),
            # JSON text in a line is as strict as the line.
            (self.chatml, line(tools='[{"name": "a", "name": "b"}]'), 'the key "name" stands twice'),
            (self.chatml, line(tools='[{"name": ' + "[" * 70 + "]" * 70 + "}]"), "nested deeper than 64 levels"),
            (self.chatml, line(tools='[{"name": NaN}]'), "NaN is not JSON"),
            (self.objects, line(asks(call("add", '{"a": 1, "a": 2}'), content="")), 'the key "a" stands twice'),
            # Numbers that the template would write as Infinity.
            (self.chatml, line(tools=[{"name": "a", "most": float("inf")}]), "a number that is too large"),
            (self.chatml, line(tools='[{"name": "a", "most": -1e400}]'), "a number that is too large"),
            (self.chatml, line(asks(call("add", {"a": float("inf")}))), "a number that is too large"),
            (self.objects, line(asks(call("add", '{"a": 1e999}'), content="")), "a number that is too large"),
        ):
            file = self.root / "data.jsonl"
            file.write_text(json.dumps(value).replace("Infinity", "1e999"))
            code, _, _, err = prepare(file, "--model", model, "--cache", self.root / "cache")
            self.assertEqual(code, 2, (value, err))
            self.assertIn(message, err)
            self.assertIn("fix:", err)
            self.assertNotIn("Traceback", err)

    def test_results_that_a_template_drops(self):
        deaf = model_folder(
            self.root / "deaf",
            self.chatml / "tokenizer.json",
            None,
            "<|im_end|>",
            "{% for m in messages if m.role != 'tool' %}{{ m.content or '' }}{% for c in m.tool_calls or [] %}"
            "{{ c.function.name }}{% endfor %}{{ '<|im_end|>' }}{% endfor %}",
        )
        self.bad(deaf, {"messages": TALKS[0]}, "the chat template leaves out a tool's result", "message 3, role tool")


if __name__ == "__main__":
    unittest.main()
