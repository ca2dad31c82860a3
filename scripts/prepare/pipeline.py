"""A whole file through all stages, in chunks of lines.

result = prepare_file(path, model, name, rules)     # Result: chunks for cache.write, counts and notes; or a UserError
"""

import sys
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from prepare.conversation import render_sample
from prepare.errors import Problems, UserError, printable
from prepare.fit import variable_problem
from prepare.formats import CHAT_FORMATS, FORMAT_HELP, IGNORED, BadLine, convert, detect
from prepare.jsonl import read_objects
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
    chunks: list = field(default_factory=list)  # (tokens, labels, lengths, weights or None)
    notes: list = field(default_factory=list)


def first_format(path):
    """The format of the file's first line that can be read."""
    problems = Problems(path)
    for line, value in read_objects(path, problems):
        name = detect(value)
        if name is None:
            raise UserError(
                f"{path}: line {line}: its format is not known; its keys are {printable(', '.join(list(value)[:12]), 200) or 'none'}\n"
                f"  fix: write {FORMAT_HELP}"
            )
        return name
    problems.raise_if_any()


def _samples(path, name, has_template, rules, problems, unused):
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
            sample = convert(name, value, line, has_template, rules)
            unused.update(sample.unused)
            yield sample
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
    return tokens, labels, lengths, None


class _Chunks:
    """Turns samples into arrays, with what one stage must tell the next."""

    def __init__(self, model, templates, rules, problems):
        self.templates, self.rules, self.problems = templates, rules, problems
        self.tokeniser = Tokeniser(model, rules) if model else None
        self.dropped = 0  # messages of which the template leaves nothing
        self.thoughts_left_out = 0  # messages whose thoughts it takes out of a text that goes on

    def _text(self, sample):
        if sample.text is not None:
            return sample.text
        rendered = render_sample(
            self.templates[sample.tools is not None], sample, self.rules, self.tokeniser.may_be_special
        )
        self.dropped += rendered.dropped
        self.thoughts_left_out += rendered.thoughts_left_out
        return rendered.text

    def _bad(self, sample, error):
        self.problems.add(error.args[0], error.args[1], sample.line, sample.id, error.args[2])

    def encode(self, samples):
        """(samples that came through, (tokens, labels, lengths, weights or None))."""
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


def _templates(model, name, rules):
    """The chat templates for lines without and with tools, or None where the format, or the model, has none."""
    if name not in (*CHAT_FORMATS, "alpaca") or model.template is None:
        return None
    templates = [ChatTemplate(s, model.bos, model.eos) for s in (model.template, model.tool_template) if s is not None]
    for variable in rules.chat_kwargs:
        unread = [variable_problem(t, variable) for t in templates]
        if all(unread):
            raise UserError(
                f"data.chat_template_kwargs: {unread[0]}\n  fix: take it out, or compare its spelling with the template"
            )
    return templates[0], templates[-1]


def prepare_file(path, model, name, rules):
    """All documents of a file in the named format. model may be None for a pre-tokenised file."""
    problems, result, unused = Problems(path), Result(name), Counter()
    templates = _templates(model, name, rules)
    chunks = _Chunks(model, templates, rules, problems)
    samples = _samples(path, name, templates is not None, rules, problems, unused)
    highest = -1
    for chunk in _chunked(samples):
        kept, (tokens, labels, lengths, weights) = chunks.encode(chunk)
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
        result.chunks.append((tokens, labels, lengths, weights))
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
    result.notes = _notes(chunks, unused)
    return result


def _notes(chunks, unused):
    notes, tokeniser = [], chunks.tokeniser
    for key, count in unused.most_common():
        notes.append(f'nothing reads the key "{printable(key, 40)}" of {count:,} lines')
    if tokeniser and tokeniser.without_bos:
        notes.append(
            'tokenizer_config.json asks for bos ("add_bos_token": true), tokenizer.json does not put it, as in'
            f" transformers 5: {tokeniser.without_bos:,} documents begin without it (data.add_bos: true puts it, false"
            " says that this is right)"
        )
    if tokeniser and tokeniser.kept_as_text:
        notes.append(
            f"special-token text stayed ordinary text in {tokeniser.kept_as_text:,} documents"
            " (data.special_tokens_in_content: as_text)"
        )
    if tokeniser and tokeniser.turns_without_end:
        notes.append(
            f"{tokeniser.turns_without_end:,} of {tokeniser.turns:,} trained turns are not followed by a special token"
            " in the chat template: the model will not learn to stop there"
        )
    if chunks.dropped:
        notes.append(f"the chat template leaves nothing of {chunks.dropped:,} messages")
    if chunks.thoughts_left_out:
        notes.append(
            f"the chat template takes the thoughts out of {chunks.thoughts_left_out:,} messages: they are neither seen"
            " nor learnt"
        )
    return notes
