"""A whole file through all stages, in chunks of lines.

result = prepare_file(path, model, options)     # Result: chunks for cache.write, counts and notes; or a UserError
"""

import sys
from dataclasses import dataclass, field

import numpy as np

from prepare.errors import Problems, UserError
from prepare.formats import FORMAT_HELP, IGNORED, BadLine, convert, detect
from prepare.jsonl import read_objects
from prepare.spans import render_with_spans
from prepare.template import ChatTemplate, limited_memory
from prepare.tokenise import Tokeniser

CHUNK_DOCUMENTS, CHUNK_SIZE = (
    4096,
    4 << 20,
)  # at most, of documents and of characters: a chunk's offsets are Python objects


@dataclass
class Result:
    format: str = ""
    documents: int = 0
    tokens: int = 0
    target_tokens: int = 0
    vocab_size: int = 0
    chunks: list = field(default_factory=list)  # (tokens, labels, lengths)
    notes: list = field(default_factory=list)


def first_format(path):
    """The format of the file's first line that can be read."""
    problems = Problems(path)
    for line, value in read_objects(path, problems):
        name = detect(value)
        if name is None:
            raise UserError(
                f"{path}: line {line}: its format is not known; its keys are {', '.join(list(value)[:12]) or 'none'}\n"
                f"  fix: write {FORMAT_HELP}"
            )
        return name
    problems.raise_if_any()


def _samples(path, name, has_template, train_on, problems):
    for line, value in read_objects(path, problems):
        seen = detect(value)
        if seen != name:
            problems.add(
                f"not in the file's format, {name}",
                "keep one format a file",
                line,
                value.get("id"),
                seen or "keys " + (", ".join(list(value)[:6]) or "none"),
            )
            continue
        try:
            yield convert(name, value, line, has_template, train_on)
        except BadLine as e:
            problems.add(e.args[0], e.args[1], line, value.get("id"), e.args[2])


def _chunked(samples):
    chunk, size = [], 0
    for sample in samples:
        chunk.append(sample)
        size += sample.size
        if len(chunk) >= CHUNK_DOCUMENTS or size >= CHUNK_SIZE:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _arrays(samples):
    """Samples that are tokenised already."""
    lengths = np.array([len(s.tokens) for s in samples])
    tokens = np.concatenate([np.array(s.tokens, dtype=np.int32) for s in samples])
    labels = np.concatenate([np.array(s.labels, dtype=np.int32) for s in samples])
    labels[(np.cumsum(lengths) - lengths)[lengths > 0]] = IGNORED
    return tokens, labels, lengths


class _Chunks:
    """Turns samples into arrays, with what one stage must tell the next."""

    def __init__(self, model, template, special, train_all, problems):
        self.template, self.problems = template, problems
        self.tokeniser = Tokeniser(model, special, train_all) if model else None
        self.dropped = 0  # messages of which the template leaves nothing

    def _text(self, sample):
        if sample.text is not None:
            return sample.text
        text, dropped = render_with_spans(self.template, sample, self.tokeniser.may_be_special)
        self.dropped += dropped
        return text

    def _bad(self, sample, error):
        self.problems.add(error.args[0], error.args[1], sample.line, sample.id, error.args[2])

    def encode(self, samples):
        """(samples that came through, (tokens, labels, lengths))."""
        if samples[0].tokens is not None:
            return samples, _arrays(samples)
        kept, texts = [], []
        with limited_memory():
            for sample in samples:
                try:
                    texts.append(self._text(sample))
                    kept.append(sample)
                except BadLine as e:
                    self._bad(sample, e)
        bad = set()

        def on_bad(i, error):
            self._bad(kept[i], error)
            bad.add(i)

        arrays = self.tokeniser.encode(texts, on_bad)
        return [None if i in bad else s for i, s in enumerate(kept)], arrays


def prepare_file(path, model, name, special, train_on):
    """All documents of a file in the named format. model may be None for a pre-tokenised file."""
    problems, result = Problems(path), Result(name)
    template = None
    if name in ("messages", "sharegpt", "alpaca") and model.template is not None:
        template = ChatTemplate(model.template, model.bos, model.eos)
    chunks = _Chunks(model, template, special, train_on == "all", problems)
    samples = _samples(path, name, template is not None, train_on, problems)
    highest = -1
    for chunk in _chunked(samples):
        kept, (tokens, labels, lengths) = chunks.encode(chunk)
        seen, ends = np.append(0, np.cumsum(labels != IGNORED)), np.cumsum(lengths)
        targets = seen[ends] - seen[ends - lengths]
        for d in np.flatnonzero(targets == 0).tolist():
            if kept[d] is not None:
                problems.add(
                    "nothing to train on: every label is masked",
                    "give each sample an assistant message, a completion or a label; or remove it",
                    kept[d].line,
                    kept[d].id,
                )
        result.documents += len(lengths)
        result.tokens += len(tokens)
        result.target_tokens += int(targets.sum())
        highest = max(highest, int(tokens.max(initial=-1)), int(labels.max(initial=-1)))
        result.chunks.append((tokens, labels, lengths))
        if sys.stderr.isatty():
            print(f"\r{result.documents:,} documents, {result.tokens:,} tokens", end="", file=sys.stderr)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    problems.raise_if_any()
    result.vocab_size = chunks.tokeniser.vocab_size if model else highest + 1
    limits = (
        [n for n in (model.model_vocab, chunks.tokeniser.vocab_size if name == "input_ids/labels" else None) if n]
        if model
        else []
    )
    if limits and highest >= min(limits):
        raise UserError(
            f"{path}: token {highest} lies beyond the vocabulary of {min(limits)} in {model.folder}\n"
            "  fix: tokenizer.json, config.json and the data must belong to one model"
        )
    result.notes = _notes(chunks)
    return result


def _notes(chunks):
    notes, tokeniser = [], chunks.tokeniser
    if tokeniser and tokeniser.kept_as_text:
        notes.append(
            f"special-token text stayed ordinary text in {tokeniser.kept_as_text:,} documents (--special-tokens"
            " as_text)"
        )
    if tokeniser and tokeniser.turns_without_end:
        notes.append(
            f"{tokeniser.turns_without_end:,} of {tokeniser.turns:,} trained turns are not followed by a special token"
            " in the chat template: the model will not learn to stop there"
        )
    if chunks.dropped:
        notes.append(f"the chat template leaves nothing of {chunks.dropped:,} messages")
    return notes
