"""Texts with spans to tokens and labels.

    tokeniser = Tokeniser(model, rules)
    tokens, labels, lengths, weights = tokeniser.encode(texts, on_bad=lambda i, error: ...)

A text is tokenised as a whole by the model's own tokenizer, so merges across the border of template and content come
out as they do in transformers, and the mask is laid over by character offsets. A token that holds a character of
trained content is trained; so is the first special token behind an assistant's content, with the white space between.

weights are None where every target counts alike, otherwise the weight of each token's loss (float32; it means nothing
where the label is -100).

Special-token text inside content ("<|im_end|>" typed by a user) is ordinary text unless the user says otherwise:
    as_text   such a text goes through a second tokenizer, equal to the first but for the names of its added tokens,
              which are sentinels there. The template's special tokens are renamed in the text, those in content are
              left, and so stay text.
    reject    an error
    allow     they become special tokens
    auto      as_text; but a text, prompt or completion with tokens that the chat template writes is an error: it was
              most likely rendered already
White-space-only added tokens (runs of blanks, in some vocabularies) are text anyway. <think> tags are tokens of the
model in an assistant's content, in texts, prompts and completions, whatever the user says.
"""

import contextlib
import json
import re
from dataclasses import replace

import numpy as np
from tokenizers import AddedToken, Tokenizer, processors

from prepare.errors import UserError, is_panic, printable
from prepare.literals import one_of
from prepare.sample import IGNORED, BadLine, Text
from prepare.spans import NONCHARACTERS
from prepare.template import OUTPUT_BYTES, TooSlow, limited_time
from prepare.words import Encoded, Words

MAX_VOCAB = 1 << 24
REASONING_TAGS = ("<think>", "</think>")
_ALLOW = "data.special_tokens_in_content: allow"
TOKENIZER_FIX = "the file is damaged, or made for another version of tokenizers: download it again"
_SENTINEL = "\ufdea{}\ufdeb"


def _renamed(text, spans, names, pattern, tags):
    """Text and spans with the added tokens of the template (and reasoning tags) replaced by their sentinels."""
    out, moved, at = "", [], 0
    for span in spans:
        out += pattern.sub(lambda m: names[m[0]], text[at : span.start])
        if not span.content:
            start, at = len(out), span.end
            out += pattern.sub(lambda m: names[m[0]], text[span.start : span.end])
            moved.append(replace(span, start=start, end=len(out)))
            continue
        start = len(out)
        content = text[span.start : span.end]
        out += tags.sub(lambda m: names[m[0]], content) if tags and span.reasoning_tags else content
        moved.append(replace(span, start=start, end=len(out)))
        at = span.end
    return out + pattern.sub(lambda m: names[m[0]], text[at:]), moved


@contextlib.contextmanager
def _refusing():
    """What the tokenizers package fails with, panics of its Rust part too, becomes the line's mistake."""
    try:
        yield
    except BadLine:
        raise
    except BaseException as e:
        if not is_panic(e) and not isinstance(e, Exception):
            raise
        raise BadLine("tokenizer.json fails on this text", TOKENIZER_FIX, printable(str(e), 200)) from None


def _encode_one(tokenizer, text, add_special_tokens):
    """Ids of a text that every tokenizer should take."""
    try:
        with _refusing():
            return tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
    except BadLine as e:
        raise UserError(f"tokenizer.json fails on {text!r}: {e.args[2]}\n  fix: {TOKENIZER_FIX}") from None


class _AsText:
    """The tokenizer whose added tokens answer to sentinels only."""

    def __init__(self, tokenizer_text, added):
        spec = json.loads(tokenizer_text)
        spec["added_tokens"], spec["post_processor"] = [], None
        self.tokenizer = Tokenizer.from_str(json.dumps(spec))
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.names, self.ids = {}, {}  # content -> sentinel; id here -> id in the model
        for i, token in enumerate(added.values()):
            self.names[token.content] = token.content if token.content.isspace() else _SENTINEL.format(i)
        flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
        self.tokenizer.add_tokens(
            [AddedToken(self.names[t.content], **{f: getattr(t, f) for f in flags}) for t in added.values()]
        )
        for token_id, token in added.items():
            self.ids[self.tokenizer.token_to_id(self.names[token.content])] = token_id
        self.pattern = one_of(n for n in self.names if not n.isspace())
        tags = [t for t in REASONING_TAGS if t in self.names]
        self.tags = re.compile("|".join(tags)) if tags else None
        self.controls = {i for i, t in added.items() if not t.content.isspace()}

    def encode(self, document):
        """An Encoded, and the renamed document."""
        if NONCHARACTERS.search(document.text):
            raise BadLine(
                "content holds U+FDD0..U+FDEF",
                "Unicode reserves these for internal use, and so does moetune: remove them",
            )
        text, spans = _renamed(document.text, document.spans, self.names, self.pattern, self.tags)
        encoding = self.tokenizer.encode(text, add_special_tokens=False)
        if any(i in self.controls and i not in self.ids for i in encoding.ids):
            raise BadLine(
                "special-token text that this vocabulary cannot spell as text",
                f"remove it from the content, or use {_ALLOW}",
            )
        encoded = Encoded.of(encoding)
        encoded.ids = np.array([self.ids.get(i, i) for i in encoding.ids], dtype=np.int32)
        return encoded, replace(document, text=text, spans=spans)


class Tokeniser:
    def __init__(self, model, rules):
        self.model, self.special, self.train_all = model, rules.special, rules.train_all
        tokenizer = model.tokenizer
        self.eos = tokenizer.token_to_id(model.eos) if model.eos else None
        self.bos = tokenizer.token_to_id(model.bos) if model.bos else None
        self.prefix = self._prefix(tokenizer, rules.add_bos)
        self.bos_everywhere = rules.add_bos == "true"
        self.lacks_bos = rules.add_bos == "auto" and model.asks_for_bos and self.bos not in self.prefix
        self.without_bos = 0  # texts that begin without the bos that tokenizer_config.json asks for
        # The post-processor adds nothing to ids here, but some trim white space off the offsets that the mask is made
        # from.
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
        self.tokenizer, self.words = tokenizer, None
        self.added = tokenizer.get_added_tokens_decoder()
        self.vocab_size = (
            max(max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1), *self.added, -1) + 1
        )
        if self.vocab_size > MAX_VOCAB:
            raise UserError(
                f"{self.model.folder}/tokenizer.json: an id of {self.vocab_size - 1}; {MAX_VOCAB - 1} is the highest"
                f" that is taken\n  fix: {TOKENIZER_FIX}"
            )
        self.is_control = np.zeros(self.vocab_size, dtype=bool)
        for i, token in self.added.items():
            self.is_control[i] = not token.content.isspace()
        self.is_special = np.zeros(self.vocab_size, dtype=bool)  # control tokens that are no words of an answer
        for i, token in self.added.items():
            self.is_special[i] = token.special and not token.content.isspace()
        self.tag_ids = {i for i, t in self.added.items() if t.content in REASONING_TAGS}
        self.as_text = None
        self.kept_as_text = 0  # texts in which special-token text was kept as text
        self.turns = self.turns_without_end = 0
        self._special_text = None
        templates = (model.template or "") + (model.tool_template or "")
        self.frame = {t.content for t in self.added.values() if t.content in templates} | {model.bos, model.eos}

    def remember_words(self):
        """Makes much text faster; little of it is done in the time that this takes."""
        if self.words is None:
            with contextlib.suppress(BadLine, TooSlow), limited_time(), _refusing():
                self.words = Words.of(self.tokenizer)

    def _prefix(self, tokenizer, add_bos):
        """What goes in front of a text: what tokenizer.json puts there, with or without bos as the user says."""
        framed, bare = _encode_one(tokenizer, "a", True), _encode_one(tokenizer, "a", False)
        prefix = next((framed[:i] for i in range(len(framed)) if framed[i : i + len(bare)] == bare), [])
        if add_bos == "true" and self.bos is None:
            raise UserError(
                f'{self.model.folder}/tokenizer_config.json: no "bos_token" that the tokenizer knows'
                f" ({self.model.bos!r}), and data.add_bos is true\n  fix: name it, or use data.add_bos: false"
            )
        if add_bos == "true" and self.bos not in prefix:
            return [self.bos, *prefix]
        return [t for t in prefix if t != self.bos] if add_bos == "false" else prefix

    def may_be_special(self, text):
        """Whether a string holds the text of an added token."""
        if self._special_text is None:
            self._special_text = one_of(t.content for t in self.added.values() if not t.content.isspace())
        return self.special != "allow" and self._special_text.search(text) is not None

    def _specials_in_content(self, document, encoded):
        """The contents of added tokens that came out of (or reach into) content."""
        found = []
        for k in np.flatnonzero(self.is_control[encoded.ids]).tolist():
            i, start, end = int(encoded.ids[k]), int(encoded.starts[k]), int(encoded.ends[k])
            piece = document.text[start:end]  # a token may swallow white space around it; that harms nobody
            start, end = start + len(piece) - len(piece.lstrip()), end - len(piece) + len(piece.rstrip())
            if any(
                s.content and s.start < end and start < s.end and not (s.reasoning_tags and i in self.tag_ids)
                for s in document.spans
            ):
                found.append(self.added[i].content)
        return found

    def encode(self, documents, on_bad):
        """Tokens, labels (int32) of the documents one behind the other, their lengths, and weights or None;
        on_bad(index, BadLine) takes those that fail."""
        if any(d.framed for d in documents) and self.eos is None:
            raise UserError(
                f'{self.model.folder}/tokenizer_config.json: no "eos_token" that the tokenizer knows'
                f" ({self.model.eos!r})\n  fix: name it; texts and completions end with it"
            )
        if not documents:
            return np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, np.int64), None
        documents = [self._bounded(d, text, on_bad) for d, text in enumerate(documents)]
        encoded = self._encode_all(documents, on_bad)
        if self.special != "allow":
            for d in self._with_control_in_content(documents, encoded):
                try:
                    found = self._specials_in_content(documents[d], encoded[d])
                    if found and self.special == "reject":
                        raise BadLine(
                            "special-token text in content",
                            f"remove it, or use {_ALLOW} (it becomes the token) or as_text (it stays text)",
                            ", ".join(dict.fromkeys(found[:5])),
                        )
                    own = [f for f in dict.fromkeys(found) if f in self.frame]
                    if own and self.special == "auto" and documents[d].raw:
                        raise BadLine(
                            "a text that was rendered already: it holds the model's own special tokens",
                            f"{_ALLOW} makes them tokens; as_text says that they are to stay ordinary characters",
                            ", ".join(own[:5]),
                        )
                    if found:
                        with _refusing():
                            self.as_text = self.as_text or _AsText(self.model.tokenizer_text, self.added)
                            encoded[d], documents[d] = self.as_text.encode(documents[d])
                        self.kept_as_text += 1
                except BadLine as e:
                    on_bad(d, e)
                    encoded[d], documents[d] = Encoded.empty(), Text("", [])
        return self._label(documents, encoded)

    @staticmethod
    def _bounded(number, document, on_bad):
        if len(document.text) <= OUTPUT_BYTES and len(document.text.encode()) <= OUTPUT_BYTES:
            return document
        on_bad(
            number,
            BadLine(
                f"a document of more than {OUTPUT_BYTES >> 20} MiB of text",
                "split it: what lies beyond data.max_tokens is cut off anyway",
            ),
        )
        return Text("", [])

    def _encode_all(self, documents, on_bad):
        """An Encoded of each document; one on which the tokenizer fails becomes an empty text."""
        texts = [d.text for d in documents]
        out = [None] * len(texts)
        if self.words:
            # The package's patterns end after so many steps, Python's do not: what takes too long here is left to it.
            try:
                with contextlib.suppress(BadLine), limited_time(), _refusing():
                    out = self.words.encode(texts)
            except TooSlow:
                self.words = None
        rest = [d for d, encoded in enumerate(out) if encoded is None]
        with contextlib.suppress(BadLine), _refusing():
            for d, encoding in zip(
                rest, self.tokenizer.encode_batch([texts[d] for d in rest], add_special_tokens=False)
            ):
                out[d] = Encoded.of(encoding)
            return out
        for d in rest:
            try:
                with _refusing():
                    out[d] = Encoded.of(self.tokenizer.encode(texts[d], add_special_tokens=False))
            except BadLine as e:
                on_bad(d, e)
                documents[d], out[d] = Text("", []), Encoded.empty()
        return out

    @staticmethod
    def _flat(documents, encoded):
        """Tokens' starts and ends and the spans, over all documents as if they were one text."""
        lengths = np.array([len(e.ids) for e in encoded], dtype=np.int64)
        base = np.cumsum([0] + [len(d.text) + 1 for d in documents])
        shift = np.repeat(base[:-1], lengths)
        starts = np.concatenate([e.starts for e in encoded]) + shift
        ends = np.concatenate([e.ends for e in encoded]) + shift
        spans = [(b + s.start, b + s.end, s.content) for b, d in zip(base.tolist(), documents) for s in d.spans]
        spans = np.array(spans, dtype=np.int64).reshape(-1, 3)
        return lengths, starts, ends, spans

    def _with_control_in_content(self, documents, encoded):
        """Documents in which a control token touches a span (some only with swallowed white space)."""
        lengths, starts, ends, spans = self._flat(documents, encoded)
        spans = spans[spans[:, 2] > 0]
        if not len(spans) or not len(starts):
            return []
        tokens = np.flatnonzero(self.is_control[np.concatenate([e.ids for e in encoded])])
        nearest = np.minimum(np.searchsorted(spans[:, 1], starts[tokens], side="right"), len(spans) - 1)
        touching = tokens[(spans[nearest, 0] < ends[tokens]) & (starts[tokens] < spans[nearest, 1])]
        return np.unique(np.searchsorted(np.cumsum(lengths), touching, side="right")).tolist()

    def _label(self, documents, encoded):
        lengths, starts, ends, spans = self._flat(documents, encoded)
        tokens = np.concatenate([e.ids for e in encoded])
        usual = np.array([d.weight if self.train_all else 0.0 for d in documents], dtype=np.float32)
        weights = np.repeat(usual, lengths)
        first = np.searchsorted(ends, spans[:, 0], side="right").tolist()
        behind = np.searchsorted(starts, spans[:, 1], side="left").tolist()
        flags = [s for d in documents for s in d.spans]
        # The greatest last: a token on the border of two spans is trained if one is.
        counting = [k for k, span in enumerate(flags) if span.weight or self.train_all]  # the others change nothing
        for k in sorted(counting, key=lambda k: flags[k].weight):
            weights[first[k] : behind[k]] = flags[k].weight
        control = self.is_control[tokens]
        token_end = np.cumsum(lengths).tolist()
        k = 0
        for d, document in enumerate(documents):
            for i, span in enumerate(document.spans):
                if span.ends_turn and not (not span.content and self.is_special[tokens[behind[k] - 1]]):
                    limit = document.spans[i + 1].start if i + 1 < len(document.spans) else len(document.text)
                    end = self._end_of_turn(
                        control, document, encoded[d], token_end[d] - int(lengths[d]), behind[k], limit
                    )
                    weights[behind[k] : end] = span.weight
                k += 1
        if self.bos_everywhere or any(d.framed for d in documents):
            tokens, weights, lengths = self._frame(documents, tokens, weights, lengths)
        nonempty = lengths > 0
        weights[(np.cumsum(lengths) - lengths)[nonempty]] = 0
        labels = np.where(weights > 0, tokens, IGNORED).astype(np.int32)
        plain = not np.any((weights != 0) & (weights != 1))
        return tokens, labels, lengths, None if plain else weights

    def _end_of_turn(self, control, document, encoded, token_start, behind, limit):
        """Behind the special token that ends a turn, if nothing but white space stands before it; otherwise
        `behind`."""
        self.turns += 1
        for j in range(behind - token_start, len(encoded.ids)):
            start, end = int(encoded.starts[j]), int(encoded.ends[j])
            if start >= limit and limit < len(document.text):
                break
            if control[token_start + j]:
                return token_start + j + 1
            if document.text[start:end].strip():
                break
        self.turns_without_end += 1
        return behind

    def _frame(self, documents, tokens, weights, lengths):
        """bos in front of texts (of every document, if the user says so), a trained eos behind them."""
        out_tokens, out_weights, out_lengths, end = [], [], [], 0
        for d, length in zip(documents, lengths.tolist()):
            own, begin = tokens[end : end + length], end
            end += length
            prefix = self.prefix if d.framed else [self.bos] if self.bos_everywhere and length else []
            if own[: len(prefix)].tolist() == prefix or (self.bos_everywhere and own[:1].tolist() == [self.bos]):
                prefix = []
            suffix = [self.eos] if d.framed and own[-1:].tolist() != [self.eos] else []
            out_tokens += [np.array(prefix, dtype=np.int32), own, np.array(suffix, dtype=np.int32)]
            out_weights += [np.zeros(len(prefix), np.float32), weights[begin:end], np.full(len(suffix), d.weight)]
            out_lengths.append(len(prefix) + length + len(suffix))
            self.without_bos += d.framed and self.lacks_bos and own[:1].tolist() != [self.bos]
        tokens, weights = np.concatenate(out_tokens), np.concatenate(out_weights).astype(np.float32)
        return tokens, weights, np.array(out_lengths, dtype=np.int64)
