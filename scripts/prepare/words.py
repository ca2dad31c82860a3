"""Texts to tokens by a memory of words, for tokenizers that split a text into words first and join nothing across them.

    words = Words.of(tokenizer)          # or None for a tokenizer that does not work so
    encoded = words.encode(texts)                       # an Encoded for each text, None for one that is not for it

What the tokenizers package does with a text is done here for a block of texts at once: added tokens are found, the rest
is split by the patterns of tokenizer.json, and each word's tokens come from a table, which that package fills when a
word is first seen. Only texts of the characters in split_pattern.ALPHABET are taken, for which the split is proved: the
patterns have the same meaning, and texts drawn of all these characters must give the same words, tokens and offsets
both ways when the object is made. Otherwise there is none, and the package does all.
"""

import json
import random
import re
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers

from prepare.literals import one_of
from prepare.split_pattern import ALPHABET, EDGES, characters, translated

MOST_WORDS, MOST_CHARACTERS = 1 << 17, 1 << 21  # in the table, which then begins anew: some 30 MB
CUT, END, FIRST_NAME = (
    "\U000f0000",
    "\U000f0001",
    0xF0002,
)  # characters of EDGES: between words, after a text, for added tokens
MOST_NAMES = 0xFFFD - 2
# What ByteLevel splits by itself.
_BYTE_LEVEL = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_DRAWN_TEXTS, _DRAWN_PIECES, _DRAWN_NAMES = 100, 60, 100


@dataclass
class Encoded:
    """A text's tokens, and the characters [start, end) of each."""

    ids: np.ndarray
    starts: np.ndarray
    ends: np.ndarray

    @staticmethod
    def of(encoding):
        offsets = np.array(encoding.offsets, dtype=np.int32).reshape(-1, 2)
        return Encoded(np.array(encoding.ids, dtype=np.int32), offsets[:, 0], offsets[:, 1])

    @staticmethod
    def empty():
        return Encoded(*(np.zeros(0, np.int32) for _ in range(3)))


def _state(part):
    """A part of a tokenizer as in tokenizer.json."""
    return None if part is None else json.loads(part.__getstate__())


def _keeps_alphabet(normalizer):
    """Whether it leaves texts of the alphabet as they are."""
    if normalizer is None or normalizer["type"] == "NFC":
        return True
    return normalizer["type"] == "Sequence" and all(map(_keeps_alphabet, normalizer["normalizers"]))


def _patterns(steps):
    """The patterns that split a text, one after the other, in Python's words; None where it is split otherwise."""
    steps = steps["pretokenizers"] if steps and steps["type"] == "Sequence" else [steps]
    *splits, last = steps
    if not last or last["type"] != "ByteLevel" or last["add_prefix_space"]:
        return None
    sources = []
    for step in splits:
        pattern = step["pattern"].get("Regex") if step["type"] == "Split" else None
        if pattern is None or step["behavior"] != "Isolated" or step["invert"]:
            return None
        sources.append(pattern)
    if last["use_regex"]:
        sources.append(_BYTE_LEVEL)
    patterns = list(map(translated, sources))
    return patterns if patterns and None not in patterns else None


class _Numbers(dict):
    """Words to numbers; one that is not there gets the next number, and is among the new."""

    def __init__(self):
        super().__init__()
        self.new = []

    def __missing__(self, word):
        self.new.append(word)
        self[word] = number = len(self)
        return number


class Words:
    def __init__(self, tokenizer, patterns, added):
        self.pieces = Tokenizer(tokenizer.model)  # shares it
        self.pieces.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        *before, last = patterns
        self.before = [re.compile(f"({p})") for p in before]
        # What the pattern does not take, up to where it takes something again, is a word too.
        self.split = re.compile(f"{last}|[{END}-{EDGES[-1]}]|(?:(?!{last})[^{EDGES}])+")
        self.foreign = re.compile(f"[^{characters(ALPHABET)}{EDGES}]")
        self.edges = re.compile(f"[{EDGES}]")
        # The package looks for names that are not normalised first, in the whole text, then for the others in the rest.
        self.names = {t.content: (chr(FIRST_NAME + k), i) for k, (i, t) in enumerate(added.items())}
        self.finders = [
            one_of(t.content for t in added.values() if t.normalized == normalized) for normalized in (False, True)
        ]
        self._begin_table()

    @staticmethod
    def of(tokenizer):
        added = tokenizer.get_added_tokens_decoder()
        plain = not any(t.single_word or t.lstrip or t.rstrip or not t.content for t in added.values())
        if (
            not isinstance(tokenizer.model, models.BPE)
            or tokenizer.model.dropout
            or not plain
            or len(added) > MOST_NAMES
        ):
            return None
        normalizer = tokenizer.normalizer
        if not _keeps_alphabet(_state(normalizer)) or any(
            normalizer.normalize_str(t.content) != t.content for t in added.values() if normalizer is not None
        ):
            return None
        patterns = _patterns(_state(tokenizer.pre_tokenizer))
        if patterns is None:
            return None
        words = Words(tokenizer, patterns, added)
        return words if words._agrees(tokenizer) else None

    def _agrees(self, tokenizer):
        texts = _drawn_texts()
        # Words are compared, too: different ones may happen to have the same tokens.
        for text in texts:
            pieces = [text[start:end] for _, (start, end) in tokenizer.pre_tokenizer.pre_tokenize_str(text)]
            if self._split(text) != pieces:
                return False
        texts += [f"a{name} {name}b{name}" for name in list(self.names)[:_DRAWN_NAMES]]
        wanted = tokenizer.encode_batch(texts, add_special_tokens=False)
        got = self.encode(texts)
        self._begin_table()
        return all(
            g and g.ids.tolist() == w.ids and list(zip(g.starts.tolist(), g.ends.tolist())) == w.offsets
            for g, w in zip(got, wanted)
        )

    def _begin_table(self):
        """The number of each word, its length, and where its tokens stand in the columns: their ids, and the characters
        of the word that they hold."""
        self.numbers = _Numbers()
        self.lengths, self.begins, self.counts, self.ids, self.starts, self.ends = (
            np.zeros(0, np.int32) for _ in range(6)
        )
        names = [(len(content), [i], [(0, len(content))]) for content, (_, i) in self.names.items()]
        for character in (END, *(character for character, _ in self.names.values())):
            self.numbers[character] = len(self.numbers)
        self._learn([(1, [], []), *names])

    def _learn(self, entries):
        """Adds (length, ids, offsets) of the words that were numbered last."""
        counts = np.array([len(e[1]) for e in entries], dtype=np.int32)
        offsets = np.array([o for e in entries for o in e[2]], dtype=np.int32).reshape(-1, 2)
        begins = len(self.ids) + np.cumsum(counts) - counts
        for column, more in (
            ("lengths", [e[0] for e in entries]),
            ("begins", begins),
            ("counts", counts),
            ("ids", [i for e in entries for i in e[1]]),
            ("starts", offsets[:, 0]),
            ("ends", offsets[:, 1]),
        ):
            setattr(self, column, np.concatenate([getattr(self, column), np.array(more, dtype=np.int32)]))

    def _with_names(self, text):
        """The text with a character for each added token, or None where it is not one for the table."""
        if not text.isascii() and self.edges.search(text):
            return None
        for finder in self.finders:
            text = finder.sub(lambda m: self.names[m[0]][0], text)
        return None if self.foreign.search(text) else text

    def encode(self, texts):
        named = list(map(self._with_names, texts))
        taken = [k for k, text in enumerate(named) if text is not None]
        out = [None] * len(texts)
        for k, encoded in zip(taken, self._look_up(self._split("".join(named[k] + END for k in taken)))):
            out[k] = encoded
        return out

    def _split(self, text):
        for pattern in self.before:
            text = CUT.join(pattern.split(text))
        return self.split.findall(text)

    def _look_up(self, words):
        """An Encoded for each text, whose words END closes."""
        if len(self.numbers) > MOST_WORDS or self.lengths.sum() > MOST_CHARACTERS:
            self._begin_table()
        try:
            numbers = np.fromiter(map(self.numbers.__getitem__, words), dtype=np.int32, count=len(words))
            if new := self.numbers.new:
                self.numbers.new = []
                encodings = self.pieces.encode_batch(new, add_special_tokens=False)
                self._learn([(len(w), e.ids, e.offsets) for w, e in zip(new, encodings)])
        except BaseException:
            self._begin_table()  # some words may have a number and nothing else
            raise
        counts, lengths = self.counts[numbers], self.lengths[numbers]
        text_ends = np.flatnonzero(numbers == 0)
        word_starts = np.cumsum(lengths) - lengths
        text_starts = np.append(0, word_starts[text_ends] + 1)[:-1]
        word_starts -= np.repeat(text_starts, np.diff(text_ends, prepend=-1))
        token_ends = np.cumsum(counts)
        at = np.repeat(self.begins[numbers] - (token_ends - counts), counts) + np.arange(token_ends[-1:].sum())
        shift = np.repeat(word_starts, counts).astype(np.int32)
        columns = self.ids[at], self.starts[at] + shift, self.ends[at] + shift
        cuts = [0, *token_ends[text_ends].tolist()]
        return [Encoded(*(column[a:b] for column in columns)) for a, b in zip(cuts, cuts[1:])]


def _drawn_texts():
    """Texts of everything that could be split in more than one way, the same each time."""
    draw = random.Random(0)
    letters = "abcdeXYZ"
    pieces = (
        *(
            "'s",
            "'LL",
            "'Re",
            "n't",
            "’s",
            "'ſ",
            "\n",
            "\n\n",
            "\r\n",
            " \n ",
            "  ",
            "   ",
            "\t",
            "\xa0",
            " ",
            "0",
            "123",
        ),
        *(
            "4567",
            "½²",
            "é",
            "ß",
            "Я",
            "ω",
            "“",
            "”",
            "…",
            "—",
            "€",
            "_",
            "//",
            "#include",
            "a.b",
            "(x)",
            "Aa",
            "aA",
            "AB",
        ),
    )
    makers = (
        lambda: draw.choice(pieces),
        lambda: draw.choice(ALPHABET),
        lambda: chr(draw.randrange(32, 127)),
        lambda: " " + "".join(draw.choices(letters, k=draw.randrange(1, 9))),
        lambda: "".join(draw.choices(" \n\t\r", k=draw.randrange(1, 5))),
    )
    texts = ["".join(draw.choice(makers)() for _ in range(_DRAWN_PIECES)) for _ in range(_DRAWN_TEXTS)]
    # Every character after each kind of neighbour.
    texts += [before + before.join(ALPHABET) for before in ("", " ", "a", "1", "'", "\n", ".", "  ")]
    return texts
