"""Tokens by the memory of words are those of the tokenizers package, or there is no such memory."""

import json
import random
import re
import tempfile
import time
import unittest
from pathlib import Path
from unittest import mock

import support
from support import documents, model_folder, prepare, small_tokenizer, write_lines
from tokenizers import AddedToken, Regex, normalizers, pre_tokenizers, processors

from prepare import pipeline, template, words
from prepare.literals import one_of
from prepare.split_pattern import translated
from prepare.words import Words

BYTE_LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
_ENDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LETTERS = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]", r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
# By which public families of models split text, one after the other.
PATTERNS = {
    "cl100k": [rf"{_ENDS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"],
    "o200k": [
        rf"[^\r\n\p{{L}}\p{{N}}]?{_LETTERS[1]}*{_LETTERS[0]}+{_ENDS}?|[^\r\n\p{{L}}\p{{N}}]?{_LETTERS[1]}+{_LETTERS[0]}*"
        rf"{_ENDS}?|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
    ],
    "deepseek": [
        r"\p{N}{1,3}",
        "[一-龥\u3040-ゟ゠-ヿ]+",
        r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^"
        + "\r\n"
        + r"\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+"
        "[\r\n]*|" + _SPACES,
    ],
}
PIECES = [
    *(
        "'s",
        "'LL",
        "'ſ",
        " ",
        "  ",
        "\n",
        "\r\n",
        "\t",
        "\x0b",
        "\xa0",
        "\u2003",
        "a",
        "Bc",
        "é",
        "ß",
        "Ω",
        "я",
        "“",
        "…",
    ),
    *("½", "²", "1", "4444", "_", "-", "[", "]", "^", "\\", "&", "~", "|", "#", "<think>", "<s>", "<", "{", "$", "x"),
]
FOREIGN = [
    "\x85",
    "\x1c",
    "\x00",
    "\u0301",
    "漢",
    "ひ",
    "😀",
    "\U000f0000",
    "\U000f0005",
    "\ufdd0",
    "\u212a",
    "\u200b",
    "\xad",
]


def tokenizer_of(patterns):
    tokenizer = small_tokenizer(("<s>", "</s>"))
    splits = [pre_tokenizers.Split(Regex(p), "isolated") for p in patterns]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, BYTE_LEVEL])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def drawn(pieces, count):
    draw = random.Random(7)
    return ["".join(draw.choices(pieces, k=draw.randrange(40))) for _ in range(count)]


class WordsTest(unittest.TestCase):
    def same(self, tokenizer, memory, texts):
        """How many of the texts the memory took."""
        taken = 0
        for text, want, got in zip(
            texts, tokenizer.encode_batch(texts, add_special_tokens=False), memory.encode(texts)
        ):
            if got is not None:
                taken += 1
                offsets = list(zip(got.starts.tolist(), got.ends.tolist()))
                self.assertEqual((got.ids.tolist(), offsets), (want.ids, want.offsets), text)
        return taken

    def test_same_tokens(self):
        page = (Path(__file__).resolve().parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
        for name, patterns in PATTERNS.items():
            with self.subTest(name):
                tokenizer = tokenizer_of(patterns)
                memory = Words.of(tokenizer)
                texts = ["", *drawn(PIECES, 2000), *(support.TEXTS[0], page)]
                self.assertEqual(self.same(tokenizer, memory, texts), len(texts))
                mixed = drawn(PIECES + FOREIGN, 500)
                self.assertLess(0, self.same(tokenizer, memory, mixed))
                self.assertFalse(any(memory.encode([f"a {f} b"])[0] for f in FOREIGN))
        plain = tokenizer_of([])
        plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        self.assertEqual(self.same(plain, Words.of(plain), drawn(PIECES, 2000)), 2000)

    def test_table_that_is_full(self):
        tokenizer = tokenizer_of(PATTERNS["cl100k"])
        memory = Words.of(tokenizer)
        with mock.patch.object(words, "MOST_WORDS", 50):
            for _ in range(3):
                self.assertEqual(self.same(tokenizer, memory, drawn(PIECES, 100)), 100)

    def test_table_after_a_failure(self):
        tokenizer = tokenizer_of(PATTERNS["cl100k"])
        memory = Words.of(tokenizer)
        pieces = memory.pieces
        memory.pieces = None
        with self.assertRaises(AttributeError):
            memory.encode(["never seen before"])
        memory.pieces = pieces
        self.assertEqual(self.same(tokenizer, memory, ["never seen before", "seen"]), 2)

    def test_words_without_end(self):
        """The table is bounded in characters too."""
        tokenizer = tokenizer_of(PATTERNS["cl100k"])
        memory = Words.of(tokenizer)
        with mock.patch.object(words, "MOST_CHARACTERS", 1000):
            for letter in "abc":
                self.assertEqual(self.same(tokenizer, memory, [letter * 2000]), 1)
                self.assertLess(memory.lengths.sum(), 2500)

    def test_pattern_without_end(self):
        """A pattern that takes time without bound is the tokenizers package's to try."""
        tokenizer = tokenizer_of(["(?:x|x|x)+y|[^y]"])
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            model = model_folder(root / "model", tokenizer, "<s>", "</s>")
            file = write_lines(root / "texts.jsonl", [{"text": "x" * 40}])
            begin = time.monotonic()
            with mock.patch.object(pipeline, "WORDS_BYTES", 0), mock.patch.object(template, "RENDER_SECONDS", 0.3):
                code, _, _, err = prepare(file, "--model", model, "--cache", root / "cache")
            self.assertEqual(code, 2)
            self.assertIn("tokenizer.json fails on this text", err)
            self.assertLess(time.monotonic() - begin, 100)

    def test_other_tokenizers(self):
        self.assertIsNone(Words.of(small_tokenizer(("<s>",), sentencepiece=True)))
        changes = {
            "dropout": lambda t: setattr(t.model, "dropout", 0.5),
            "lstrip": lambda t: t.add_tokens([AddedToken("<gap>", lstrip=True)]),
            "lower": lambda t: setattr(t, "normalizer", normalizers.Lowercase()),
            "prefix": lambda t: setattr(t, "pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=True)),
            "digits": lambda t: setattr(t, "pre_tokenizer", pre_tokenizers.Digits()),
            "none": lambda t: setattr(t, "pre_tokenizer", None),
        }
        for name, change in changes.items():
            with self.subTest(name):
                tokenizer = tokenizer_of(PATTERNS["cl100k"])
                change(tokenizer)
                self.assertIsNone(Words.of(tokenizer))

    def test_translation_that_is_wrong(self):
        wrong = translated(PATTERNS["cl100k"][0]).replace("{1,3}", "{1,4}")
        with mock.patch.object(words, "translated", lambda _: wrong):
            self.assertIsNone(Words.of(tokenizer_of(PATTERNS["cl100k"])))

    def test_what_is_not_translated(self):
        for source in (
            r"\p{Han}+",
            "a$",
            "^a",
            r"\bword",
            r"(?<=a)b",
            r"[a&&b]",
            r"[[a]b]",
            r"\w+",
            r"\x41",
            "a*",
            "[",
            ".",
        ):
            self.assertIsNone(translated(source), source)
        self.assertTrue(re.fullmatch(translated(r"[^\s\-\]a]+"), "bcd"))
        self.assertIsNone(re.search(translated(r"[^\s\-\]a]"), "- ]a\U000f0000"))

    def test_longest_name(self):
        names = ["<a>", "<ab>", "<a>b", "b", "*"]
        self.assertEqual(one_of(names).findall("<a>b<ab>x<a>*<a"), ["<a>b", "<ab>", "<a>", "*"])
        self.assertEqual(one_of([]).findall("a"), [])
        self.assertEqual(one_of("x" * k for k in range(1, 3000)).findall("x" * 3000 + "y"), ["x" * 2999, "x"])
        self.assertEqual(one_of(["x" * 5000]).findall("x" * 5000), ["x" * 5000])

    def test_whole_files(self):
        """A file comes out the same with and without it, special tokens as text and bad lines too."""
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            model = model_folder(
                root / "model", support.small_deepseek_tokenizer(), *support.DEEPSEEK, support.DEEPSEEK_TEMPLATE
            )
            contents = [*drawn([p for p in PIECES + FOREIGN[4:7] if p != "<think>"], 60), support.DEEPSEEK[1], "x" * 99]
            talks = [[("user", c or "-"), ("assistant", d or "-")] for c, d in zip(contents, contents[1:])]
            lines = [{"messages": [{"role": r, "content": c} for r, c in talk]} for talk in talks]
            lines[3]["messages"][1]["weight"] = 0.5
            file = write_lines(root / "talks.jsonl", lines)
            texts = write_lines(root / "texts.jsonl", [{"text": c} for c in contents if c])
            for arguments in (
                (file,),
                (file, "--special-tokens", "reject"),
                (texts,),
                (texts, "--special-tokens", "allow"),
            ):
                outcomes = []
                for least in (1 << 20, 0):
                    with mock.patch.object(pipeline, "WORDS_BYTES", least):
                        cache = root / f"cache{least}"
                        code, summary, _, err = prepare(*arguments, "--model", model, "--cache", cache)
                        outcomes.append(
                            (
                                code,
                                err,
                                json.dumps(summary and documents(summary)),
                                summary and support.weights(summary),
                            )
                        )
                self.assertEqual(*outcomes)


if __name__ == "__main__":
    unittest.main()
