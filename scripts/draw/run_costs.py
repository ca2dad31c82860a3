"""What a run was predicted to take beside what it took: of the receipt where there is one, of the log otherwise.

A receipt (receipt.json, run_folder.py) says by part and by rank what the log has in one number. What is missing or no
number in it is left out.
"""

import statistics

from draw import units
from draw.bars import Bar, Group, Part, bar_chart
from draw.page import figure, legend
from draw.run_folder import number

# Times of a step in the log, which may overlap each other and what computes.
WAITS = (
    ("exchange_s", "token exchange"),
    ("tensor_axis_s", "tensor axis"),
    ("weights_wait_s", "waiting for weights"),
    ("stage_wait_s", "waiting for stages"),
    ("optimizer_wait_s", "waiting for the optimizer"),
)
MOST_RANKS = 16
LETTERS = 34


def _entry(receipt, key):
    value = receipt.get(key)
    return value if isinstance(value, dict) else {}


def _list(section, key):
    value = section.get(key)
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _short(name):
    """As much of a name as a chart has room for."""
    name = str(name)
    return name if len(name) <= LETTERS else name[: LETTERS - 1] + "…"


def _pair(colour, predicted, measured):
    """A bar of each that is known."""
    bars = []
    if predicted is not None and predicted >= 0:
        bars.append(Bar([Part(predicted, f"{colour} predicted", "predicted")]))
    if measured is not None and measured >= 0:
        bars.append(Bar([Part(measured, colour, "measured")]))
    return bars


def _legend(runs):
    if len(runs) == 1:
        return legend([("s0 bar predicted", "predicted"), ("s0 bar", "measured")])
    keys = []
    for i, run in enumerate(runs):
        keys += [(f"s{i} bar predicted", f"{run.name}: predicted"), (f"s{i} bar", "measured")]
    return legend(keys)


def _chart(title, groups, words, keys="", note=""):
    svg = bar_chart([group for group in groups if group.bars], words, label=title)
    return figure(title, svg, keys, note) if svg else ""


def memory_figures(runs):
    """The whole first, then what the receipts say of its parts and ranks."""
    memories = [(_entry(run.receipt, "memory"), f"s{i}", _whose(run, runs)) for i, run in enumerate(runs)]
    figures = [_memory(runs)] + [_memory_parts(*m) for m in memories] + [_memory_ranks(*m) for m in memories]
    return [f for f in figures if f]


def _whose(run, runs):
    return f": {run.name}" if len(runs) > 1 else ""


def _memory(runs):
    """The fullest rank."""
    groups = []
    for i, run in enumerate(runs):
        memory = _entry(run.receipt, "memory")
        predicted, measured = number(memory.get("predicted_bytes")), number(memory.get("measured_bytes"))
        if predicted is None and measured is None:
            predicted, measured = run.amount("planned_bytes"), run.peak_bytes
        groups.append(Group(_short(run.name) if len(runs) > 1 else "fullest rank", _pair(f"s{i}", predicted, measured)))
    note = ""
    if any(run.on_cpu and not run.receipt for run in runs):
        before = [run.amount("host_peak_bytes") for run in runs if run.on_cpu]
        note = "Predicted is what the run holds, measured the whole process with its libraries"
        note += f", which had {units.bytes_text(before[0])} before its first step." if before and before[0] else "."
    return _chart("Memory of the fullest rank", groups, units.bytes_text, _legend(runs), note)


def _memory_parts(memory, colour, whose):
    parts = []
    for part in _list(memory, "parts"):
        size = number(part.get("bytes"))
        if size is not None and size > 0:
            phase = part.get("phase")
            note = f"({phase})" if isinstance(phase, str) and phase else ""
            parts.append(
                (size, Group(_short(part.get("name", "?")), [Bar([Part(size, f"{colour} predicted")], note=note)]))
            )
    groups = [group for _, group in sorted(parts, key=lambda p: -p[0])]
    return _chart(f"Parts of the prediction{whose}", groups, units.bytes_text) if groups else ""


def _memory_ranks(memory, colour, whose):
    ranks = _list(memory, "ranks")
    if len(ranks) < 2:
        return ""
    groups = [
        Group(
            f"rank {r.get('rank', '?')}",
            _pair(colour, number(r.get("predicted_bytes")), number(r.get("measured_bytes"))),
        )
        for r in ranks[:MOST_RANKS]
    ]
    note = f"The first {MOST_RANKS} of {len(ranks)} ranks." if len(ranks) > MOST_RANKS else ""
    keys = legend([(f"{colour} bar predicted", "predicted"), (f"{colour} bar", "measured")])
    return _chart(f"Memory by rank{whose}", groups, units.bytes_text, keys, note)


def time_figures(runs):
    times = [(_entry(run.receipt, "time"), f"s{i}", _whose(run, runs)) for i, run in enumerate(runs)]
    figures = [_step_time(runs)] + [_time_parts(*t) for t in times] + [_waits(runs)]
    return [f for f in figures if f]


def _step_time(runs):
    """A step's time, predicted with its bounds where there is a receipt, measured with the least and the most."""
    groups, predicted_any = [], False
    for i, run in enumerate(runs):
        time = _entry(run.receipt, "time")
        predicted, measured = _entry(time, "predicted_step_s"), _entry(time, "measured_step_s")
        times = run.values("step_s")
        bars = []
        expected = number(predicted.get("expected"))
        if expected is not None:
            predicted_any = True
            bounds = number(predicted.get("low")), number(predicted.get("high"))
            note = "" if time.get("calibrated") else "(not calibrated)"
            bars.append(Bar([Part(expected, f"s{i} predicted", "predicted")], _range(bounds), note))
        median = number(measured.get("median"))
        bounds = number(measured.get("min")), number(measured.get("max"))
        if median is None and times:
            median, bounds = statistics.median(times), (min(times), max(times))
        if median is not None:
            bars.append(Bar([Part(median, f"s{i}", "measured, median")], _range(bounds)))
        groups.append(Group(_short(run.name) if len(runs) > 1 else "step", bars))
    keys = _legend(runs) if predicted_any else ""
    note = "Whiskers reach from the least to the most; measured is the median."
    return _chart("Time of a step", groups, units.seconds_text, keys, note)


def _range(bounds):
    low, high = bounds
    return (low, high) if low is not None and high is not None and 0 <= low <= high else None


def _time_parts(time, colour, whose):
    parts = []
    for part in _list(time, "parts"):
        predicted, exposed, measured = (number(part.get(k)) for k in ("predicted_s", "exposed_s", "measured_s"))
        bars = _pair(colour, predicted, measured)
        if bars and exposed is not None and predicted is not None and exposed < predicted:
            bars[0].note = f"({units.seconds_text(exposed)} exposed)" if exposed > 0 else "(hidden)"
        if bars and (predicted or measured):
            parts.append((max(predicted or 0.0, measured or 0.0), Group(_short(part.get("name", "?")), bars)))
    groups = [group for _, group in sorted(parts, key=lambda p: -p[0])]
    keys = legend([(f"{colour} bar predicted", "predicted"), (f"{colour} bar", "measured")])
    return _chart(f"Parts of a step's time{whose}", groups, units.seconds_text, keys) if groups else ""


def _waits(runs):
    """Of a median step, as the log has it."""
    groups = []
    for column, name in WAITS:
        bars = []
        for i, run in enumerate(runs):
            times, steps = run.values(column), run.values("step_s")
            if not times or not steps or max(times) == 0:
                continue
            median, step = statistics.median(times), statistics.median(steps)
            bars.append(Bar([Part(median, f"s{i}", run.name)], note=f"({median / step:.0%})" if step > 0 else ""))
        groups.append(Group(name, bars))
    keys = legend([(f"s{i} bar", run.name) for i, run in enumerate(runs)]) if len(runs) > 1 else ""
    note = "Medians over the steps, and their share of a median step. They overlap with what computes."
    return (
        _chart("Exchanges and waits in a step", groups, units.seconds_text, keys, note)
        if any(g.bars for g in groups)
        else ""
    )
