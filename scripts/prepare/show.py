"""Samples of a token cache in readable form, with the trained tokens marked.

for text in samples(cache_file, tokenizer, 3, colour=sys.stdout.isatty()):
    print(text)
"""

from itertools import groupby

from safetensors import safe_open

from prepare.formats import IGNORED


def _decode(tokens, tokenizer):
    return tokenizer.decode(tokens, skip_special_tokens=False) if tokenizer else " ".join(map(str, tokens))


def samples(path, tokenizer, count, colour):
    """Yields the first `count` documents: trained tokens green on a terminal, in [[...]] elsewhere. Without a
    tokenizer: ids."""
    opening, closing = ("\x1b[32m", "\x1b[0m") if colour else ("[[", "]]")
    with safe_open(path, framework="numpy") as f:
        offsets = f.get_tensor("offsets")[: count + 1]
        all_tokens, all_labels = f.get_slice("tokens"), f.get_slice("labels")
        for d, (begin, end) in enumerate(zip(offsets, offsets[1:])):
            begin, end = int(begin), int(end)
            pairs = zip(all_tokens[begin:end].tolist(), all_labels[begin:end].tolist())
            text, trained_count = [], 0
            for trained, run in groupby(pairs, key=lambda p: p[1] != IGNORED):
                tokens = [t for t, _ in run]
                trained_count += len(tokens) * trained
                text.append(opening + _decode(tokens, tokenizer) + closing if trained else _decode(tokens, tokenizer))
            yield f"--- document {d}: {end - begin} tokens, {trained_count} trained ---\n" + (
                "" if tokenizer else " "
            ).join(text)
