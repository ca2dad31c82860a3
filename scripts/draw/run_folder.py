"""A run folder, read: log.jsonl, recipe.yaml and receipt.json, of a run that goes on, has ended, or was killed.

run = Run("runs/a")
run.points("loss")       # [(step, value or None)]
run.events               # [Event] in the order of the log
run.notes                # what could not be read

Files may be cut off, damaged or of another version: what is no number is None, what is no line is counted. Only a folder
without a log is a UserError.
"""

import json
import math
import os
import stat
from array import array
from dataclasses import dataclass

from draw import recipe_text
from draw.errors import UserError
from draw.units import number_text, seconds_text

# What is kept of a step, by its name in the log.
COLUMNS = (
    "loss",
    "mtp_loss",
    "balance_loss",
    "grad_norm",
    "lr",
    "tokens",
    "tokens_per_s",
    "step_s",
    "memory_bytes",
    "exchange_s",
    "tensor_axis_s",
    "weights_wait_s",
    "stage_wait_s",
    "optimizer_wait_s",
)
LARGEST_TEXT = 4 << 20  # bytes of recipe.yaml and receipt.json
MOST_LAYERS = 1000
RECEIPT = "moetune-receipt-1"


@dataclass
class Event:
    step: int
    kind: str  # start, resume, eval, save, end, trouble
    text: str


def number(value):
    """As a float; None for what is none, is not finite, or so large that nothing measured is."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e30:
        return None
    return float(value) if abs(value) > 1e-30 else 0.0


def whole(value):
    """As a count of steps, bytes or tokens; None for what is none."""
    known = number(value)
    return int(value) if known is not None and 0 <= known < 1e18 else None


def word(value, otherwise="?"):
    return value if isinstance(value, str) and value else otherwise


def _opened(path):
    """None where there is no such file. A link or a pipe in a run folder is none of the program's."""
    try:
        kind = os.lstat(path).st_mode
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(kind):
        raise UserError(f"{path}: is no regular file")
    return open(path, "rb")


def _object(line):
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


class Run:
    def __init__(self, folder, holder=""):
        """`holder`: the process that writes there now, in words, or empty."""
        self.folder, self.holder = folder, holder
        self.name = folder  # as a page calls it
        self.notes, self.events = [], []
        self.steps = array("q")
        self.columns = {name: array("d") for name in COLUMNS}
        self.loads = []  # of each step: array of busiest over mean expert by MoE layer, or None
        self.evals = []  # (step, loss or None)
        self.start, self.end = {}, None  # the last such lines; no end where the log goes on behind it, or stops
        self.num_starts = 0
        try:
            self._read_log()
            self.recipe_text = self._text("recipe.yaml")
            self.receipt = self._read_receipt()
        except OSError as error:
            raise UserError(f"{folder}: cannot be read: {error.strerror}") from None
        self.recipe = recipe_text.values_of(self.recipe_text)

    # What was read, in numbers and words

    def points(self, column):
        return [(s, None if math.isnan(v) else v) for s, v in zip(self.steps, self.columns[column])]

    def values(self, column):
        return [v for v in self.columns[column] if not math.isnan(v)]

    def amount(self, key):
        """A count of the last start, None where there is none."""
        return whole(self.start.get(key))

    @property
    def state(self):
        if self.holder:
            return "running"
        if self.end is None:
            return "not ended: killed, or stopped" if self.num_starts else "not begun"
        signal = whole(self.end.get("stopped_by_signal")) or 0
        return f"stopped by signal {signal}" if signal else "finished"

    @property
    def peak_bytes(self):
        peaks = self.values("memory_bytes") + [number((self.end or {}).get("peak_bytes")) or 0.0]
        return max(peaks) or None

    @property
    def on_cpu(self):
        return word(self.start.get("device")).startswith("cpu")

    # Reading

    def _text(self, name):
        file = _opened(os.path.join(self.folder, name))
        if file is None:
            return ""
        with file:
            data = file.read(LARGEST_TEXT + 1)
        if len(data) > LARGEST_TEXT:
            self.notes.append(f"{name} has more than {LARGEST_TEXT >> 20} MiB and was not read")
            return ""
        return data.decode("utf-8", "replace")

    def _read_receipt(self):
        text = self._text("receipt.json")
        if not text:
            return {}
        receipt = _object(text)
        if receipt is None or receipt.get("format") != RECEIPT:
            self.notes.append(f"receipt.json is not of the format {RECEIPT} and is not drawn")
            return {}
        return receipt

    def _read_log(self):
        if not os.path.isdir(self.folder):
            raise UserError(f"{self.folder}: is no folder; name the folder of a run (run.dir of its recipe)")
        path = os.path.join(self.folder, "log.jsonl")
        file = _opened(path)
        if file is None:
            raise UserError(f"{self.folder}: has no log.jsonl, so it is no folder of a run, or of one not yet begun")
        damaged = []
        with file:
            for count, line in enumerate(file, 1):
                entry = _object(line)
                if entry is not None and self._take(entry):
                    continue
                if not line.endswith(b"\n"):
                    goes_on = "is being written" if self.holder else "was cut off"
                    self.notes.append(f"log.jsonl: the last line {goes_on} and is left out")
                elif line.strip():
                    damaged.append(count)
        if damaged:
            first = ", ".join(map(str, damaged[:5])) + (", ..." if len(damaged) > 5 else "")
            lines = "a damaged line is" if len(damaged) == 1 else f"{len(damaged)} damaged lines are"
            self.notes.append(f"log.jsonl: {lines} left out (line {first})")
        self._note_trouble()

    def _take(self, entry):
        """Whether the line says something that can be used."""
        kind, step = entry.get("kind"), whole(entry.get("step"))
        if not isinstance(kind, str) or step is None:
            return False
        take = {
            "start": self._take_start,
            "step": self._take_step,
            "eval": self._take_eval,
            "save": self._take_save,
            "end": self._take_end,
        }.get(kind)
        if take:
            take(step, entry)
        else:
            said = entry.get("message", entry.get("text"))
            self.events.append(Event(step, "trouble", f"{kind}: {word(said, json.dumps(entry)[:300])}"))
        return True

    def _take_start(self, step, entry):
        self.start, self.end = entry, None
        self.num_starts += 1
        if step == 0 and self.num_starts == 1:
            load = number(entry.get("load_s"))
            loaded = f"; weights loaded in {seconds_text(load)}" if load else ""
            steps = whole(entry.get("steps"))
            self.events.append(Event(step, "start", f"started, {number_text(steps)} steps{loaded}"))
            return
        changed = entry.get("changed")
        changes = [f"{key} {_change(change)}" for key, change in changed.items()] if isinstance(changed, dict) else []
        said = "; changed: " + ", ".join(changes) if changes else "; nothing changed"
        self.events.append(Event(step, "resume", f"resumed from step {step}{said}"))

    def _take_step(self, step, entry):
        self.end = None
        while self.steps and self.steps[-1] >= step:  # ran again
            for column in (self.steps, self.loads, *self.columns.values()):
                column.pop()
        self.steps.append(step)
        for name, column in self.columns.items():
            value = number(entry.get(name))
            column.append(math.nan if value is None else value)
        loads = entry.get("expert_max_over_mean_of_layers")
        known = [number(v) for v in loads[:MOST_LAYERS]] if isinstance(loads, list) else []
        self.loads.append(array("d", (math.nan if v is None else v for v in known)) if known else None)

    def _take_eval(self, step, entry):
        loss, targets = number(entry.get("loss")), whole(entry.get("target_tokens"))
        self.evals = [e for e in self.evals if e[0] < step] + [(step, loss)]
        over = f" over {number_text(float(targets))} target tokens" if targets else ""
        best = ", the best so far" if entry.get("best") is True else ""
        self.events.append(Event(step, "eval", f"held-out loss {number_text(loss)}{over}{best}"))

    def _take_save(self, step, entry):
        stood, by = seconds_text(number(entry.get("save_s"))), whole(entry.get("whole_step"))
        beside = by is not None and by > step
        how = (
            f"saved beside training, whole by step {by:,}; it stood still for {stood}"
            if beside
            else f"saved in {stood}"
        )
        self.events.append(Event(step, "save", how))

    def _take_end(self, step, entry):
        self.end = entry
        signal = whole(entry.get("stopped_by_signal")) or 0
        how = f"stopped by signal {signal}, saved" if signal else "done"
        elapsed = number(entry.get("elapsed_s"))
        self.events.append(Event(step, "end", how + (f", {seconds_text(elapsed)} after this start" if elapsed else "")))

    def _note_trouble(self):
        bad = [s for s, v in zip(self.steps, self.columns["loss"]) if math.isnan(v)]
        if bad:
            where = ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")
            plural = "s" if len(bad) > 1 else ""
            self.notes.append(f"the loss of {len(bad)} step{plural} is not finite: {where}")
            self.events.append(Event(bad[0], "trouble", f"loss not finite, at {len(bad)} step{plural} in all"))
        self.events.sort(key=lambda event: event.step)
        self.evals = [e for e in self.evals if e[1] is not None]


def _change(change):
    if isinstance(change, list) and len(change) == 2:
        return f"{word(change[0], str(change[0]))} → {word(change[1], str(change[1]))}"
    return json.dumps(change)[:100]
