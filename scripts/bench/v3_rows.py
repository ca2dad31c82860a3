"""Rows of measured runs: each printed as it is done, kept in a file, held against one GPU.

    add_options(parser, tokens="8192,16384")
    rows = Rows(parser.parse_args())
    rows.title("The cut on two GPUs")
    rows.measure(Layout("ep2", 2, {"mesh.ep": 2}), Layers(1, 3), tokens=16384)      # one line of a markdown table
    rows.leave()

A row that the file has already is not run again: a call that a deadline cut short goes on where it stopped.
"""

import dataclasses
import json
import pathlib
import subprocess
import tempfile
import time

from v3_runs import PROGRAM, Machine, Run, RunFailed, figures

COLUMNS = {
    "layout": "layout",
    "tokens": "tokens a GPU",
    "speed": "tokens/s a GPU (min - max)",
    "ratio": "times one GPU",
    "step": "step, s",
    "exchange": "exchange, s",
    "axis_s": "tensor axis, s",
    "weights": "weights, s",
    "optimizer": "optimizer, s",
    "busiest": "busiest expert",
    "copied": "copied (formula)",
    "gathered": "gathered (formula)",
    "exchanged": "exchanged (formula)",
    "axis": "tensor axis (formula)",
    "memory": "peak (planned)",
    "besides": "besides, s",
}
LEGEND = """Tokens/s: median of the counted steps of one run. Times one GPU: tokens/s of all ranks over those of the one-GPU row
of as many tokens a GPU. Exposed seconds of a step, medians, of the slowest rank: `exchange` of tokens and gathers and
sums of the `tensor axis`, waiting for other ranks included; `weights` copied or gathered that the computing stream
stood waiting for; `optimizer`: norm, update, new values. Bytes of a step, of the busiest rank; formula of the
exchange: even loads. Busiest expert: its load over the mean one's. Peak and planned: memory of the fullest rank.
Besides: seconds of the run that were no step: start, drawing and packing weights, saving at the end."""


@dataclasses.dataclass(frozen=True)
class Layout:
    name: str
    ranks: int
    keys: dict  # of the recipe

    def __str__(self):
        return f"{self.name}: " + (" ".join(f"`{key}={value}`" for key, value in self.keys.items()) or "one GPU")


def size_text(bytes):
    """Three figures and a unit: 12.5 GiB."""
    for unit in ("B", "KiB", "MiB"):
        if bytes < 1000:
            break
        bytes /= 1024
    else:
        unit = "GiB"
    return f"{bytes:.3g} {unit}"


def add_options(parser, tokens):
    """What a program takes that measures rows."""
    parser.add_argument(
        "--tokens",
        type=lambda text: [int(word) for word in text.split(",")],
        default=tokens,
        help="of a step on each rank",
    )
    parser.add_argument("--document", type=int, default=4096, help="tokens of a document")
    parser.add_argument("--steps", type=int, help="of each run, 20 if not given (rehearsed: 4)")
    parser.add_argument("--warm-up", type=int, help="of them, not counted: 3 if not given (rehearsed: 1)")
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        metavar="FILE",
        help="JSONL file for the rows; what it has is not run again: a new file for a new build",
    )
    parser.add_argument("--deadline", type=float, metavar="SECONDS", help="start no row when so much time has passed")
    parser.add_argument("--program", type=pathlib.Path, default=PROGRAM)
    parser.add_argument("--rehearse", action="store_true", help="tiny dimensions on CPU ranks")
    parser.add_argument("words", nargs="*", metavar="key.sub=value", help="recipe keys of every run")


class Rows:
    def __init__(self, options):
        """`options`: those of add_options; the deadline counts from now."""
        self.machine, self.document, self.words, self.out = (
            Machine(options.program, options.rehearse),
            options.document,
            options.words,
            options.out,
        )
        self.steps, self.warm_up = (
            options.steps or (4 if options.rehearse else 20),
            options.warm_up if options.warm_up is not None else 1 if options.rehearse else 3,
        )
        self.end = time.monotonic() + options.deadline if options.deadline is not None else None
        self.rows = (
            [json.loads(line) for line in self.out.read_text().splitlines()] if self.out and self.out.exists() else []
        )
        self.failed, self.left_out = [], []
        print(self.machine.text(), flush=True)

    def too_late(self):
        return self.end is not None and time.monotonic() > self.end

    def title(self, text):
        print(f"\n## {text}\n\n| {' | '.join(COLUMNS.values())} |\n|{'---|' * len(COLUMNS)}", flush=True)

    def measure(self, layout, layers, tokens, values=None):
        """The figures of a run of this layout: measured now, or earlier and read from the file. None where there is no
        time or it fails."""
        asked = {
            "layout": layout.name,
            "layers": str(layers),
            "tokens": tokens,
            "ranks": layout.ranks,
            "document": self.document,
            "steps": self.steps,
            "warm_up": self.warm_up,
            "keys": layout.keys | (values or {}),
            "words": self.words,
            "machine": self.machine.text(),
        }
        row = next((row for row in self.rows if all(row[key] == value for key, value in asked.items())), None)
        if row is None:
            if self.too_late():
                self.leave_out(f"{layout.name} with {self.machine.tokens(tokens):,} tokens a GPU")
                return None
            try:
                row = asked | self._run(layout, layers, tokens, values)
            except RunFailed as failure:
                self.fail(f"{layout} with {self.machine.tokens(tokens):,} tokens a GPU: {failure}")
                return None
            self.rows.append(row)
            if self.out:
                with open(self.out, "a") as file:
                    file.write(json.dumps(row) + "\n")
        print(f"| {' | '.join(self._cells(layout, row))} |", flush=True)
        return row

    def _run(self, layout, layers, tokens, values):
        with tempfile.TemporaryDirectory() as folder:
            values = {"train.steps": self.steps} | layout.keys | (values or {})
            run = Run(folder, self.machine, layers, layout.ranks, tokens, self.document, values, self.words)
            run.finish()
            return figures(run, self.warm_up)

    def check(self, command):
        """Runs something that proves itself by its exit code, its output seen as it comes."""
        print("\n    " + " ".join(command), flush=True)
        code = subprocess.run(command, env=self.machine.environment(), stderr=subprocess.STDOUT).returncode
        if code != 0:
            self.fail(f"exit code {code}: {' '.join(command)}")

    def fail(self, what):
        self.failed.append(what)
        print(f"FAILED {what}", flush=True)

    def leave_out(self, what):
        self.left_out.append(what)

    def leave(self):
        """What the columns mean, what failed or is missing; ends the program, with 1 where something failed."""
        print(f"\n{LEGEND}\n" if self.rows else "")
        if self.left_out:
            print(f"Out of time, not started: {'; '.join(self.left_out)}.")
        print(f"FAILED, as said above: {len(self.failed)}." if self.failed else "Nothing failed.")
        raise SystemExit(1 if self.failed else 0)

    def one_gpu(self, row):
        """The row of one GPU which is otherwise the same; None where there is none."""
        same = ("layers", "tokens", "document", "words", "machine")
        return next(
            (other for other in self.rows if other["ranks"] == 1 and all(other[key] == row[key] for key in same)), None
        )

    def times_one_gpu(self, row):
        """Speed of all ranks over that of one GPU; None where that was not measured."""
        alone = self.one_gpu(row)
        return row["tokens_per_s"] * row["ranks"] / alone["tokens_per_s"] if alone else None

    def _cells(self, layout, row):
        ratio = self.times_one_gpu(row)

        def moved(key):
            return (
                f"{size_text(row[key])} ({size_text(row['planned_' + key])})"
                if row[key] or row["planned_" + key]
                else "-"
            )

        cells = {
            "layout": str(layout),
            "tokens": f"{self.machine.tokens(row['tokens']):,}",
            "speed": f"{row['tokens_per_s']:,.0f} ({row['tokens_per_s_min']:,.0f} - {row['tokens_per_s_max']:,.0f})",
            "ratio": f"{ratio:.2f}" if ratio else "-",
            "step": f"{row['step_s']:.3f}",
            "exchange": f"{row['exchange_s']:.3f}",
            "axis_s": f"{row['tensor_axis_s']:.3f}",
            "weights": f"{row['weights_wait_s']:.3f}",
            "optimizer": f"{row['optimizer_wait_s']:.3f}",
            "busiest": f"{row['expert_max_over_mean']:.2f}",
            "copied": moved("weights_copied_bytes"),
            "gathered": moved("weights_gathered_bytes"),
            "exchanged": moved("exchange_sent_bytes"),
            "axis": moved("tensor_axis_sent_bytes"),
            "memory": f"{size_text(row['peak_bytes'])} ({size_text(row['planned_bytes'])})",
            "besides": f"{row['besides_s']:.0f}",
        }
        assert cells.keys() == COLUMNS.keys()
        return cells.values()
