"""Samples of a token cache in readable form, with the trained tokens marked.

for text in samples(cache_file, tokenizer, 3, colour=sys.stdout.isatty()):
    print(text)

What only looks like a special token is marked: {as text: <|im_end|>} stands for the ordinary characters.
"""

import re
from itertools import groupby

from safetensors import safe_open

from prepare.sample import IGNORED


class _Writer:
    """Documents as text; opening and closing stand around what is trained."""

    def __init__(self, tokenizer, opening, closing):
        self.tokenizer, self.opening, self.closing = tokenizer, opening, closing
        added = tokenizer.get_added_tokens_decoder() if tokenizer else {}
        names = {t.content for t in added.values() if not t.content.isspace()}
        self.controls = {i for i, t in added.items() if t.content in names}
        longest_first = sorted(names, key=len, reverse=True)
        self.pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def _decode(self, tokens):
        return self.tokenizer.decode(tokens, skip_special_tokens=False)

    def _runs(self, tokens, labels, key):
        """[(key, text)] of runs of tokens that key(token, label) makes one."""
        runs = groupby(zip(tokens, labels), key=lambda pair: key(*pair))
        return [(k, self._decode([t for t, _ in run])) for k, run in runs]

    def write(self, tokens, labels):
        if self.tokenizer is None:
            runs = groupby(zip(tokens, labels), key=lambda pair: pair[1] != IGNORED)
            return " ".join(self._around(k, " ".join(str(t) for t, _ in run)) for k, run in runs)
        pieces = self._runs(tokens, labels, lambda t, l: l != IGNORED)
        controls = sum(t in self.controls for t in tokens)
        if len(self.pattern.findall("".join(text for _, text in pieces))) > controls:
            # Some of what looks like special tokens is none: it is sought in the text between those that are.
            runs = self._runs(tokens, labels, lambda t, l: (t in self.controls, l != IGNORED))
            pieces = []
            for is_control, group in groupby(runs, key=lambda run: run[0][0]):
                group = [(trained, text) for (_, trained), text in group]
                pieces += group if is_control else self._marked(group)
        joined = ((k, "".join(text for _, text in group)) for k, group in groupby(pieces, key=lambda p: p[0]))
        return "".join(self._around(trained, text) for trained, text in joined)

    def _around(self, trained, text):
        return self.opening + text + self.closing if trained else text

    def _marked(self, pieces):
        """Pieces with {as text: ...} around special-token text, which may begin in one piece and end in another."""
        marks = []
        for found in self.pattern.finditer("".join(text for _, text in pieces)):
            marks += [(found.start(), "{as text: "), (found.end(), "}")]
        out, begin = [], 0
        for trained, text in pieces:
            end, written, at = begin + len(text), "", begin
            while marks and (marks[0][0] < end or (marks[0][0] == end and marks[0][1] == "}")):
                position, mark = marks.pop(0)
                written, at = written + text[at - begin : position - begin] + mark, position
            out.append((trained, written + text[at - begin :]))
            begin = end
        return out


def samples(path, tokenizer, count, colour):
    """Yields the first `count` documents: trained tokens green on a terminal, in [[...]] elsewhere. Without a
    tokenizer: ids."""
    writer = _Writer(tokenizer, *(("\x1b[32m", "\x1b[0m") if colour else ("[[", "]]")))
    with safe_open(path, framework="numpy") as f:
        offsets = f.get_slice("offsets")[: count + 1]
        all_tokens, all_labels = f.get_slice("tokens"), f.get_slice("labels")
        for d, (begin, end) in enumerate(zip(offsets, offsets[1:])):
            begin, end = int(begin), int(end)
            tokens, labels = all_tokens[begin:end].tolist(), all_labels[begin:end].tolist()
            trained = sum(label != IGNORED for label in labels)
            yield f"--- document {d}: {end - begin} tokens, {trained} trained ---\n" + writer.write(tokens, labels)
