"""The chat template as an untrusted program: where it comes from, what it may do, and what stops it."""

import datetime
import json
import tempfile
import time
import unittest
from pathlib import Path

import support
from tokenizers import Tokenizer
from support import documents, model_folder, prepare, small_tokenizer, write_lines

from prepare import template as template_module
from prepare.template import ChatTemplate, TemplateRefused, limits

TALK = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


class Sources(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.root = Path(self.folder.name)
        self.data = write_lines(self.root / "data.jsonl", [{"messages": TALK}])

    def tearDown(self):
        self.folder.cleanup()

    def text(self, model):
        code, summary, _, err = prepare(self.data, "--model", model, "--cache", self.root / "cache")
        self.assertEqual(code, 0, err)
        return Tokenizer.from_file(str(model / "tokenizer.json")).decode(
            documents(summary)[0][0], skip_special_tokens=False
        )

    def test_file_before_config(self):
        one, two = ("{% for m in messages %}{{ '" + n + ":' + m.content + eos_token }}{% endfor %}" for n in "12")
        config = model_folder(
            self.root / "config", small_tokenizer(("</s>",)), None, {"content": "</s>", "__type": "AddedToken"}, one
        )
        self.assertEqual(self.text(config), "1:a</s>1:b</s>")
        named = model_folder(
            self.root / "named",
            config / "tokenizer.json",
            None,
            "</s>",
            [{"name": "tool_use", "template": one}, {"name": "default", "template": two}],
        )
        self.assertEqual(self.text(named), "2:a</s>2:b</s>")
        (config / "chat_template.jinja").write_text(two)
        self.assertEqual(self.text(config), "2:a</s>2:b</s>")
        unnamed = model_folder(
            self.root / "unnamed", config / "tokenizer.json", None, "</s>", [{"name": "rag", "template": one}]
        )
        code, _, _, err = prepare(self.data, "--model", unnamed, "--cache", self.root / "cache")
        self.assertEqual(code, 2)
        self.assertIn('none of its chat templates is named "default", only rag', err)

    def test_what_stands_in_the_place_of_a_file(self):
        """A link that leads nowhere, or a folder, is not as if the file had been left out."""
        template = "{% for m in messages %}{{ m.content + eos_token }}{% endfor %}"
        for name in ("chat_template.jinja", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.json"):
            model = model_folder(self.root / f"in {name}", small_tokenizer(("</s>",)), None, "</s>", template)
            (model / name).unlink(missing_ok=True)
            for put, told in (
                (lambda path: path.symlink_to("../blobs/gone"), "is a link to ../blobs/gone, which is not there"),
                (lambda path: path.mkdir(), "is no file"),
            ):
                put(model / name)
                code, _, _, err = prepare(self.data, "--model", model, "--cache", self.root / "cache")
                self.assertEqual(code, 2, err)
                self.assertIn(f"{name}: {told}", err)
                self.assertIn("fix:", err)
                (model / name).rmdir() if (model / name).is_dir() else (model / name).unlink()

    def test_refusals_name_the_line_and_the_templates_words(self):
        model = model_folder(
            self.root / "m", small_tokenizer(("</s>",)), None, "</s>", "{{ raise_exception('roles must alternate') }}"
        )
        code, _, _, err = prepare(self.data, "--model", model, "--cache", self.root / "cache")
        self.assertEqual(code, 2)
        self.assertIn(
            'the chat template refuses the conversation: 1 line\n    line 1: it says "roles must alternate"', err
        )

    def test_syntax_and_size(self):
        model = model_folder(self.root / "m", small_tokenizer(("</s>",)), None, "</s>", "a\n{% for %}")
        code, _, _, err = prepare(self.data, "--model", model, "--cache", self.root / "cache")
        self.assertEqual(code, 2)
        self.assertIn("does not compile", err)
        self.assertIn("at its line 2", err)
        (model / "chat_template.jinja").write_text("x" * ((1 << 20) + 1))
        code, _, _, err = prepare(self.data, "--model", model, "--cache", self.root / "cache")
        self.assertEqual(code, 2)
        self.assertIn("larger than 1 MiB", err)


class Limits(unittest.TestCase):
    def render(self, source):
        template = ChatTemplate(source, "<s>", None)
        with limits():
            return template.render(TALK)

    def refused(self, source, words):
        with self.assertRaises(TemplateRefused) as e:
            self.render(source)
        self.assertIn(words, str(e.exception))

    def test_environment_is_that_of_transformers(self):
        source = (
            "{{ bos_token }}{% for m in messages %}\n  {% if loop.last %}\n{{ m | tojson }}{% break %}{% endif %}\n{%"
            " endfor %}{{ '<é>' | tojson }}{% generation %}{{ messages[0].content }}{% endgeneration %}{{ eos_token is"
            " defined }}{{ tools is none }}"
        )
        from transformers.utils.chat_template_utils import render_jinja_template

        expected, _ = render_jinja_template(conversations=[TALK], chat_template=source, bos_token="<s>")
        self.assertEqual(self.render(source), expected[0])

    def test_date(self):
        self.assertEqual(self.render("{{ strftime_now('%d %b %Y') }}"), datetime.date.today().strftime("%d %b %Y"))

    def test_sandbox(self):
        self.refused("{{ ''.__class__.__mro__ }}", "unsafe")
        self.refused("{{ messages.append(1) }}", "it says")
        self.refused("{% include '/etc/passwd' %}", "no loader")

    def test_time(self):
        limit, template_module.RENDER_SECONDS = template_module.RENDER_SECONDS, 0.3
        try:
            begin = time.monotonic()
            self.refused(
                "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "it ran for more than"
            )
            self.assertLess(time.monotonic() - begin, 20)
        finally:
            template_module.RENDER_SECONDS = limit

    def test_memory(self):
        self.refused("{{ 'a' * 10000000000 }}", "memory")
        self.refused("{{ 'a'.ljust(10000000000) }}", "memory")
        self.refused("{{ 'x' | center(10000000000) }}", "memory")
        self.refused("{{ '%9999999999d' % 1 }}", "memory")
        self.refused("{{ range(1000000) | list }}", "OverflowError")

    def test_integers(self):
        self.refused("{{ 10 ** 10 ** 10 ** 10 }}", "an integer grows too large")
        self.refused(
            "{% set ns = namespace(x=3) %}{% for i in range(90) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
            "an integer grows too large",
        )

    def test_output(self):
        limit, template_module.OUTPUT_BYTES = template_module.OUTPUT_BYTES, 1000
        try:
            self.refused("{{ 'a' * 1001 }}", "writes more than")
            self.refused("{{ 'é' * 501 }}", "writes more than")
            self.assertEqual(len(self.render("{{ 'é' * 500 }}")), 500)
        finally:
            template_module.OUTPUT_BYTES = limit
        self.assertEqual(limit, 8 << 20)

    def test_errors_of_expressions(self):
        self.refused("{{ messages[0].content + 1 }}", "TypeError")
        self.refused("{{ nothing.at.all }}", "it says \"'nothing' is undefined\"")
        self.refused("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recurses")


if __name__ == "__main__":
    unittest.main()
