"""A whole file through all stages, in blocks of lines.

encoder = Encoder(model, rules)                                    # once, for all files
result = prepare_file(reader, encoder, name, num_workers, sink)    # Result: counts and notes; or a UserError

sink(tokens, labels, lengths, weights or None) takes the documents of each block, in the file's order.
"""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from prepare.conversation import render_sample
from prepare.errors import MAX_PROBLEMS, Problems, UserError, printable
from prepare.fit import variable_problem
from prepare.formats import CHAT_FORMATS, FORMAT_HELP, IGNORED, BadLine, convert, detect, needed_keys
from prepare.progress import Progress
from prepare.template import ChatTemplate, limits
from prepare.tokenise import Tokeniser
from prepare.workers import in_order

WORDS_BYTES = 1 << 20  # of a file from which on it is worth while to look into how the tokenizer splits text


@dataclass
class Result:
    format: str = ""
    documents: int = 0
    tokens: int = 0
    target_tokens: int = 0
    vocab_size: int = 0
    notes: list = field(default_factory=list)


def first_format(reader):
    """The format of the file's first line that can be read."""
    problems = Problems(reader.path, reader.unit)
    for block in reader.blocks():
        for number, value in block.objects(problems):
            name = detect(value)
            if name is None:
                raise UserError(
                    f"{reader.path}: {reader.unit} {number}: its format is not known; its keys are"
                    f" {printable(', '.join(list(value)[:12]), 200) or 'none'}\n"
                    f"  fix: write {FORMAT_HELP}"
                )
            return name
    problems.raise_if_any()


def _arrays(samples):
    """Samples that are tokenised already."""
    lengths = np.array([len(s.tokens) for s in samples])
    tokens = np.concatenate([np.array(s.tokens, dtype=np.int32) for s in samples])
    labels = np.concatenate([np.array(s.labels, dtype=np.int32) for s in samples])
    labels[(np.cumsum(lengths) - lengths)[lengths > 0]] = IGNORED
    return tokens, labels, lengths, None


class Encoder:
    """What turns samples into arrays, for all files of a call: the tokenizer is read, and looked through, once. model is
    None where the data is tokenised already."""

    def __init__(self, model, rules):
        self.model, self.rules = model, rules
        self.tokeniser = Tokeniser(model, rules) if model else None


class _Findings:
    """Stands for Problems in a process of its own: what it is told is told to them later."""

    def __init__(self):
        self.calls = []

    def add(self, *arguments, **named):
        if len(self.calls) < MAX_PROBLEMS:
            self.calls.append((arguments, named))


@dataclass
class _Part:
    """What became of a block."""

    arrays: tuple
    targets: int
    highest: int  # token or label
    problems: list
    counts: Counter
    unused: Counter


class _Blocks:
    """Turns blocks into arrays; what it learns of them leaves with each part, so that any process may do it."""

    def __init__(self, encoder, name, templates):
        self.tokeniser, self.rules = encoder.tokeniser, encoder.rules
        self.name, self.templates = name, templates

    def __call__(self, block):
        self.problems, self.counts, self.unused = _Findings(), Counter(), Counter()
        before = self._tally()
        kept, arrays = self._encode(list(self._samples(block)))
        tokens, labels, lengths, _ = arrays
        seen, ends = np.append(0, np.cumsum(labels != IGNORED)), np.cumsum(lengths)
        targets = seen[ends] - seen[ends - lengths]
        for d in np.flatnonzero(targets == 0).tolist():
            if kept[d] is not None:
                self.problems.add(
                    "nothing to train on: every label is masked",
                    "give each sample an assistant message, a completion or a label; or remove it",
                    kept[d].line,
                    kept[d].id,
                )
        highest = max(int(tokens.max(initial=-1)), int(labels.max(initial=-1)))
        self.counts += Counter(self._tally()) - Counter(before)
        return _Part(arrays, int(targets.sum()), highest, self.problems.calls, self.counts, self.unused)

    def _tally(self):
        """What the tokeniser counts."""
        if self.tokeniser is None:
            return {}
        return {k: getattr(self.tokeniser, k) for k in ("kept_as_text", "turns", "turns_without_end", "without_bos")}

    def _samples(self, block):
        for number, value in block.objects(self.problems):
            seen = detect(value)
            if seen != self.name:
                self.problems.add(
                    f"not in the file's format, {self.name}",
                    "keep one format a file",
                    number,
                    value.get("id"),
                    seen or "keys " + (", ".join(list(value)[:6]) or "none"),
                )
                continue
            try:
                sample = convert(self.name, value, number, self.templates is not None, self.rules)
                self.unused.update(sample.unused)
                yield sample
            except BadLine as e:
                self.problems.add(e.args[0], e.args[1], number, value.get("id"), e.args[2])

    def _text(self, sample):
        if sample.text is not None:
            return sample.text
        rendered = render_sample(
            self.templates[sample.tools is not None], sample, self.rules, self.tokeniser.may_be_special
        )
        self.counts["dropped"] += rendered.dropped  # messages of which the template leaves nothing
        # messages whose thoughts it takes out of a text that goes on
        self.counts["thoughts_left_out"] += rendered.thoughts_left_out
        return rendered.text

    def _bad(self, sample, error):
        self.problems.add(error.args[0], error.args[1], sample.line, sample.id, error.args[2])

    def _encode(self, samples):
        """(samples that came through, (tokens, labels, lengths, weights or None))."""
        if not samples:
            return [], (np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, np.int64), None)
        if samples[0].tokens is not None:
            return samples, _arrays(samples)
        kept, texts = [], []
        with limits():
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


def prepare_file(reader, encoder, name, num_workers, sink):
    """All documents of a file in the named format. The encoder has no model for a pre-tokenised file."""
    model, path = encoder.model, reader.path
    problems, result = Problems(path, reader.unit), Result(name)
    process = _Blocks(encoder, name, _templates(model, name, encoder.rules))
    if encoder.tokeniser and reader.size >= WORDS_BYTES:
        encoder.tokeniser.remember_words()
    counts, unused, highest = Counter(), Counter(), -1
    with Progress(path) as progress:
        for part in in_order(process, reader.blocks(), num_workers):
            for arguments, named in part.problems:
                problems.add(*arguments, **named)
            counts += part.counts
            unused += part.unused
            highest = max(highest, part.highest)
            tokens, _, lengths, _ = part.arrays
            result.documents += len(lengths)
            result.tokens += len(tokens)
            result.target_tokens += part.targets
            if not problems.count:
                sink(*part.arrays)
            progress.show(result.documents, result.tokens, reader.done())
    problems.raise_if_any()
    result.vocab_size = encoder.tokeniser.vocab_size if model else highest + 1
    limit = model and (model.model_vocab or (result.vocab_size if name == "input_ids/labels" else None))
    if limit and highest >= limit:
        raise UserError(
            f"{path}: token {highest} lies beyond the vocabulary of {limit} in {model.folder}\n"
            "  fix: tokenizer.json, config.json and the data must belong to one model"
        )
    result.notes = _notes(counts, unused) + [
        f'data.ignore_keys: "{printable(key, 40)}" is not ignored: lines of this format consist of it'
        for key in sorted(encoder.rules.ignore_keys & needed_keys(name))
    ]
    return result


def _notes(counts, unused):
    notes = []
    for key, count in unused.most_common():
        notes.append(f'nothing reads the key "{printable(key, 40)}" of {count:,} lines')
    if counts["without_bos"]:
        notes.append(
            'tokenizer_config.json asks for bos ("add_bos_token": true), tokenizer.json does not put it, as in'
            f" transformers 5: {counts['without_bos']:,} documents begin without it (data.add_bos: true puts it, false"
            " says that this is right)"
        )
    if counts["kept_as_text"]:
        notes.append(
            f"special-token text stayed ordinary text in {counts['kept_as_text']:,} documents"
            " (data.special_tokens_in_content: as_text)"
        )
    if counts["turns_without_end"]:
        notes.append(
            f"{counts['turns_without_end']:,} of {counts['turns']:,} trained turns are not followed by a special token"
            " in the chat template: the model will not learn to stop there"
        )
    if counts["dropped"]:
        notes.append(f"the chat template leaves nothing of {counts['dropped']:,} messages")
    if counts["thoughts_left_out"]:
        notes.append(
            f"the chat template takes the thoughts out of {counts['thoughts_left_out']:,} messages: they are neither seen"
            " nor learnt"
        )
    return notes
