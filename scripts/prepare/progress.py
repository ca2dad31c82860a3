"""How far preparation is, on standard error: a line that is written over on a terminal, elsewhere one every 10 s.

with Progress("train.jsonl") as progress:
    progress.show(documents, tokens, part=0.25)
"""

import sys
import time

TERMINAL_SECONDS, LINE_SECONDS = 0.5, 10.0


def _duration(seconds):
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    return f"{seconds // 60} min" if seconds < 3600 else f"{seconds // 3600} h {seconds % 3600 // 60} min"


class Progress:
    def __init__(self, name):
        self.name = name
        self.terminal = sys.stderr.isatty()
        self.begun = self.shown = time.monotonic()
        self.open = False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.open:
            print(file=sys.stderr)

    def show(self, documents, tokens, part):
        now = time.monotonic()
        if now - self.shown < (TERMINAL_SECONDS if self.terminal else LINE_SECONDS):
            return
        self.shown = now
        text = f"{self.name}: {documents:,} documents, {tokens:,} tokens, {100 * part:.0f} %"
        if 0 < part < 1:
            text += f", {_duration((now - self.begun) * (1 - part) / part)} left"
        if self.terminal:
            print(f"\r{text:<79}", end="", file=sys.stderr, flush=True)
            self.open = True
        else:
            print(text, file=sys.stderr, flush=True)
