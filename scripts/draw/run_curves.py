"""The curves of a run by step, and the loads of its experts; of two runs over each other.

A run has one colour throughout; of a single run held-out loss has the second.
"""

import math

from draw import units
from draw.chart import FULL, Series, line_chart
from draw.heat_map import gathered, heat_legend, heat_map
from draw.page import figure, grid, legend, section
from draw.thin import running_mean

# Busiest over mean expert: 1 is balance.
LOAD_BOUNDS = (1.1, 1.2, 1.3, 1.4, 1.6, 1.8, 2, 2.5, 3, 4, 6)
NOISY_FROM = 80  # steps from which on a curve gets its running mean


def training(runs):
    if not any(run.steps for run in runs):
        return section("Training", "<p>No step has been done yet.</p>")
    return section("Training", _loss(runs), grid(*_curves(runs)))


def loads(runs):
    figures = [_loads_of(run, runs) for run in runs]
    return section("Expert loads", *figures) if any(figures) else ""


def _runs_keys(runs):
    return [(f"s{i}", run.name) for i, run in enumerate(runs)]


def _name(run, runs, what):
    """A curve's name: whose it is where there are two."""
    return what if len(runs) == 1 else f"{run.name}: {what}"


def _ends(runs):
    """Of the axis that all charts of the page have; an evaluation before the first step stands at 0."""
    steps = [s for run in runs for s in (*run.steps[:1], *run.steps[-1:], *(s for s, _ in run.evals))]
    return (0 if min(steps) == 1 else min(steps)), max(steps)


def _resumes(runs):
    """Where a single run went on; of two the lines would not say whose they are."""
    first, last = _ends(runs)
    if len(runs) > 1:
        return []
    return [(e.step, e.text) for e in runs[0].events if e.kind == "resume" and first <= e.step <= last]


def _with_mean(points, name, classes):
    """A noisy curve, faint, below its running mean; one of few steps as it is."""
    if len(points) < NOISY_FROM:
        return [Series(name, points, classes)]
    width = len(points) // 40 | 1
    return [
        Series(name, points, f"{classes} faint"),
        Series(f"{name}, mean of {width} steps", running_mean(points, width), classes),
    ]


def _keys(series, runs):
    """Every curve of a single run; of two the runs, and what kinds of curves there are."""
    if len(series) < 2:
        return ""
    if len(runs) == 1:
        return legend([(s.classes, s.name) for s in series])
    kinds = {"faint": "each step, faint", "dots": "held-out", "dashed": "predicted"}
    found = [(kind, what) for kind, what in kinds.items() if any(kind in s.classes.split() for s in series)]
    return legend(_runs_keys(runs) + [(f"s7 {kind}", what) for kind, what in found])


def _figure(title, series, runs, note="", **chart):
    svg = line_chart(series, x="step", label=title, ends=_ends(runs), events=_resumes(runs), **chart)
    return figure(title, svg, _keys(series, runs), note) if svg else ""


def _loss(runs):
    series = []
    for i, run in enumerate(runs):
        series += _with_mean(run.points("loss"), _name(run, runs, "training"), f"s{i}")
    for i, run in enumerate(runs):
        if run.evals:
            series.append(Series(_name(run, runs, "held-out"), run.evals, f"s{i if len(runs) > 1 else 1} dots"))
    return _figure("Loss, nats per target token", series, runs, width=FULL, height=300, log=_spread(runs, "loss") > 3)


def _spread(runs, column):
    """Greatest over least value; 0 where one of them is not above 0."""
    values = [v for run in runs for v in run.values(column)]
    return max(values) / min(values) if values and min(values) > 0 else 0.0


def _curves(runs):
    """The charts below that of the loss, those without a value left out."""

    def of(title, column, what="", mean=True, unit=None, **chart):
        series = []
        for i, run in enumerate(runs):
            points, name = run.points(column), _name(run, runs, what or "each step")
            if any(y is not None for _, y in points):
                series += _with_mean(points, name, f"s{i}") if mean else [Series(name, points, f"s{i}")]
        greatest = max((abs(y) for s in series for _, y in s.finite), default=0.0)
        unit = unit(greatest) if unit else units.Unit("")
        if unit.name:
            title = f"{title}, {unit.name}"
        return _figure(title, series, runs, unit=unit, **chart)

    spread = _spread(runs, "grad_norm") > 30
    clips = {run.recipe["train.clip"].text for run in runs if "train.clip" in run.recipe}
    clip = f"Before clipping, which begins at {clips.pop()}." if len(clips) == 1 else "Before clipping."
    return (
        of("Learning rate", "lr", mean=False, from_zero=True),
        of("Gradient norm", "grad_norm", log=spread, from_zero=not spread, note=clip),
        of("Speed", "tokens_per_s", unit=lambda most: units.counts(most, "tokens/s"), from_zero=True),
        _memory_curve(runs),
        of("Loss of the MTP module", "mtp_loss", unit=lambda _: units.Unit("nats")),
        of("Balance loss", "balance_loss"),
    )


def _memory_curve(runs):
    """Measured by step, with the plan as a line where the two count the same: on a GPU."""
    series = []
    for i, run in enumerate(runs):
        points, planned = run.points("memory_bytes"), run.amount("planned_bytes")
        series.append(Series(_name(run, runs, "peak so far"), points, f"s{i}"))
        if planned and points and not run.on_cpu:
            line = [(points[0][0], planned), (points[-1][0], planned)]
            series.append(Series(_name(run, runs, "predicted"), line, f"s{i} dashed"))
    unit = units.bytes_(max((y for s in series for _, y in s.finite), default=0.0))
    where = "Of the fullest rank's device."
    if any(run.on_cpu for run in runs):
        where = "Of the fullest rank's whole process."
    title = f"Memory, {unit.name}"
    return _figure(title, series, runs, where, unit=unit, from_zero=True)


def _loads_of(run, runs):
    """The map of one run, over the steps of both."""
    layers = max((len(row) for row in run.loads if row), default=0)
    rows = [
        [row[i] if row and i < len(row) and math.isfinite(row[i]) else None for row in run.loads] for i in range(layers)
    ]
    known = [(value, step, i) for i, row in enumerate(rows) for step, value in zip(run.steps, row) if value is not None]
    if not known:
        return ""
    columns, values = gathered(list(run.steps), rows)
    names = [str(i) for i in range(layers)]
    ends = min(r.steps[0] for r in runs if r.steps), max(r.steps[-1] for r in runs if r.steps)
    svg = heat_map(names, columns, values, LOAD_BOUNDS, x="step", unit="times the mean", ends=ends, label="MoE layer")
    most, step, layer = max(known)
    longest = max(end - begin + 1 for begin, end in columns)
    cell = f"the mean of {longest} steps at most" if longest > 1 else "a step"
    return figure(
        "Busiest expert over the mean expert, by MoE layer" + (f": {run.name}" if len(runs) > 1 else ""),
        svg,
        heat_legend(LOAD_BOUNDS),
        f"1 is balance. Most: {units.number_text(most)} in MoE layer {layer} at step {step:,}. A cell is {cell}.",
    )
