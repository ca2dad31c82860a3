"""Samples of a token cache in readable form, with the trained tokens marked.

for text in samples(cache_file, tokenizer, 3, colour=sys.stdout.isatty()):
    print(text)

What only looks like a special token is marked: {as text: <|im_end|>} stands for the ordinary characters.
"""

import re
from itertools import groupby

from safetensors import safe_open

from prepare.sample import IGNORED


class _Decoder:
    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder() if tokenizer else {}
        names = {t.content for t in added.values() if not t.content.isspace()}
        self.controls = {i for i, t in added.items() if t.content in names}
        longest_first = sorted(names, key=len, reverse=True)
        self.pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def _plain(self, tokens):
        return self.tokenizer.decode(tokens, skip_special_tokens=False)

    def __call__(self, tokens):
        if self.tokenizer is None:
            return " ".join(map(str, tokens))
        text = self._plain(tokens)
        if len(self.pattern.findall(text)) <= sum(t in self.controls for t in tokens):
            return text
        # Some of what looks like special tokens is none: those are decoded apart from the text between them.
        out = []
        for is_control, run in groupby(tokens, key=lambda t: t in self.controls):
            piece = self._plain(list(run))
            out.append(piece if is_control else self.pattern.sub(lambda m: f"{{as text: {m[0]}}}", piece))
        return "".join(out)


def samples(path, tokenizer, count, colour):
    """Yields the first `count` documents: trained tokens green on a terminal, in [[...]] elsewhere. Without a
    tokenizer: ids."""
    opening, closing = ("\x1b[32m", "\x1b[0m") if colour else ("[[", "]]")
    decode = _Decoder(tokenizer)
    with safe_open(path, framework="numpy") as f:
        offsets = f.get_slice("offsets")[: count + 1]
        all_tokens, all_labels = f.get_slice("tokens"), f.get_slice("labels")
        for d, (begin, end) in enumerate(zip(offsets, offsets[1:])):
            begin, end = int(begin), int(end)
            pairs = zip(all_tokens[begin:end].tolist(), all_labels[begin:end].tolist())
            text, trained_count = [], 0
            for trained, run in groupby(pairs, key=lambda p: p[1] != IGNORED):
                tokens = [t for t, _ in run]
                trained_count += len(tokens) * trained
                text.append(opening + decode(tokens) + closing if trained else decode(tokens))
            yield f"--- document {d}: {end - begin} tokens, {trained_count} trained ---\n" + (
                "" if tokenizer else " "
            ).join(text)
