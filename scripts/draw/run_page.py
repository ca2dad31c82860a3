"""The page of a run, or of two beside each other: what was trained, how it went, what it took, what happened.

    python scripts/draw run runs/a runs/b --holder runs/b "process 17 on host gpu3, since ..." > page.html

Curves are drawn by run_curves.py, costs by run_costs.py; here stands what is in words, and the events.
"""

import argparse
import itertools
import os
import statistics

from draw import units
from draw.chart import FULL, RIGHT, steps_axis
from draw.errors import UserError
from draw.lanes import Lane, Mark, lanes
from draw.page import details, escaped, figure, grid, notes, page, section, table
from draw.recipe_text import without_head
from draw.run_costs import memory_figures, time_figures
from draw.run_curves import loads, training
from draw.run_folder import Run

LANES = (
    ("starts", ("start", "resume"), "s0"),
    ("evaluations", ("eval",), "s1"),
    ("saves", ("save",), "s2"),
    ("ends", ("end",), "s7"),
    ("trouble", ("trouble",), "s3"),
)


class _Arguments(argparse.ArgumentParser):
    def error(self, message):
        raise UserError(message)


def draw(arguments):
    parser = _Arguments(prog="draw run", add_help=False)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--holder", nargs=2, action="append", default=[], help="a run, and the process that writes it")
    options = parser.parse_args(arguments)
    if len(options.runs) > 2:
        raise UserError(f"{len(options.runs)} runs given; a page shows one, or two beside each other")
    if len({os.path.realpath(folder) for folder in options.runs}) < len(options.runs):
        raise UserError(f"{options.runs[0]}: is beside itself; name two runs, or one")
    holders = dict(options.holder)
    runs = [Run(folder, holders.get(folder, "")) for folder in options.runs]
    for run, name in zip(runs, told_apart([run.folder for run in runs])):
        run.name = name
    return run_page(runs)


def told_apart(folders):
    """Names of folders: one as it is given, of two as many of the last parts of both paths as tell them apart."""
    paths = [os.path.normpath(folder) for folder in folders]
    if len(paths) < 2:
        return paths
    parts = [path.split(os.sep) for path in paths]
    count = next((n for n in range(1, max(map(len, parts))) if parts[0][-n:] != parts[1][-n:]), max(map(len, parts)))
    return [os.sep.join(part[-count:]) for part in parts]


def run_page(runs):
    two = len(runs) > 1
    title = " and ".join(run.name for run in runs)
    said = [f"{run.name}: {note}" if two else note for run in runs for note in run.notes]
    parts = (_figures(runs), notes(said), training(runs), loads(runs), _costs(runs), _events(runs), _recipes(runs))
    return page(title, *parts, subtitle=escaped(_subtitle(runs)))


def _subtitle(runs):
    """What the runs train and where, as far as they have it in common."""
    facts = []
    for key, words in (("model", "{}"), ("device", "on {}"), ("mesh", "mesh {}")):
        values = {str(run.start.get(key)) for run in runs if key in run.start}
        if len(values) == 1:
            facts.append(words.format(values.pop()))
    counted = {(run.amount("parameters"), run.amount("trained_parameters")) for run in runs}
    if len(counted) == 1 and None not in (numbers := counted.pop()):
        held, trained = map(units.count_text, numbers)
        facts.insert(1, f"{held} parameters, {trained} trained")
    facts += [f"{run.name}: {run.holder}" if len(runs) > 1 else run.holder for run in runs if run.holder]
    return " · ".join(facts)


# The figures at the top


def _figures(runs):
    head = [
        "state",
        "steps",
        "last loss",
        "held-out loss",
        "tokens",
        "tokens/s",
        "step",
        "peak memory",
        "time in steps",
    ]
    rows = []
    for i, run in enumerate(runs):
        cells = [_cell(*pair) for pair in _figures_of(run)]
        if len(runs) > 1:
            cells.insert(0, f'<span class="swatch s{i}"></span>' + _cell(run.name, run.folder))
        rows.append(cells)
    if len(runs) > 1:
        head.insert(0, "run")
    return table(head, rows, classes="figures")


def _cell(value, small=""):
    return escaped(value) + (f"<small>{escaped(small)}</small>" if small else "")


def _figures_of(run):
    """(figure, what is said below it)."""
    loss, times, speeds = run.values("loss"), run.values("step_s"), run.values("tokens_per_s")
    done = run.steps[-1] if run.steps else 0
    planned = run.amount("steps")
    best = min(run.evals, key=lambda e: e[1], default=None)
    left = ""
    if run.holder and times and planned and planned > done:
        left = f"about {units.seconds_text((planned - done) * statistics.median(times))} left"
    evaluated = units.number_text(run.evals[-1][1]) if run.evals else "–"
    predicted = run.amount("planned_bytes")
    return [
        (run.state, ""),
        (f"{done:,}", f"of {planned:,}" if planned is not None else ""),
        (units.number_text(loss[-1]) if loss else "–", f"first {units.number_text(loss[0])}" if loss else ""),
        (evaluated, f"best {units.number_text(best[1])} at step {best[0]:,}" if best else "not evaluated"),
        (units.count_text(sum(run.values("tokens"))), "trained on"),
        (units.number_text(statistics.median(speeds)) if speeds else "–", "median"),
        (units.seconds_text(statistics.median(times)) if times else "–", "median"),
        (
            units.bytes_text(run.peak_bytes) if run.peak_bytes else "–",
            f"predicted {units.bytes_text(predicted)}" if predicted and not run.on_cpu else "",
        ),
        (units.seconds_text(sum(times)), left),
    ]


# Costs, events, recipes


def _costs(runs):
    pairs = itertools.zip_longest(memory_figures(runs), time_figures(runs), fillvalue="")
    figures = grid(*(f for pair in pairs for f in pair))
    return section("Memory and time, predicted and measured", figures) if figures else ""


def _events(runs):
    figures, last = [], max([1] + [e.step for run in runs for e in run.events])
    last = max([last] + [run.steps[-1] for run in runs if run.steps])
    along = steps_axis(0, last, 104, FULL - RIGHT)
    for run in runs:
        rows = []
        for name, kinds, colour in LANES:
            marks = [
                Mark(e.step, f"{colour} ring" if e.kind == "resume" else colour, f"step {e.step}: {e.text}")
                for e in run.events
                if e.kind in kinds
            ]
            if marks:
                rows.append(Lane(name, marks=marks))
        if not rows:
            continue
        main = [e for e in run.events if e.kind not in ("eval", "save")]
        others = [e for e in run.events if e.kind in ("eval", "save")]
        content = figure(run.name, lanes(rows, along, x="step", label="events")) if len(runs) > 1 else ""
        content = content or f"<figure>{lanes(rows, along, x='step', label='events')}</figure>\n"
        content += _event_table(main)
        if others:
            content += details(f"{len(others)} evaluations and saves", _event_table(others), len(others) <= 8)
        figures.append(content)
    return section("Events", *figures) if figures else ""


def _event_table(events):
    return table(["step", "what"], [(f"{e.step:,}", escaped(e.text)) for e in events], numbers={0}, classes="events")


def _recipes(runs):
    if not any(run.recipe_text for run in runs):
        return ""
    if len(runs) == 1:
        run = runs[0]
        chosen = [
            (f"<code>{escaped(key)}</code>", f"<code>{escaped(v.text)}</code>", f"<small>{escaped(v.origin)}</small>")
            for key, v in run.recipe.items()
            if not v.is_default
        ]
        shown = table(["key", "value", "from"], chosen, classes="recipe") if chosen else ""
        said = "<p>What is not a default:</p>\n" if chosen else ""
        return section("Recipe in force", said + shown, _whole_recipe(run, "All values"))
    keys = list(dict.fromkeys(key for run in runs for key in run.recipe))
    rows = []
    for key in keys:
        values = [run.recipe[key].text if key in run.recipe else "–" for run in runs]
        if len(set(values)) > 1:
            rows.append([f"<code>{escaped(key)}</code>"] + [f"<code>{escaped(value)}</code>" for value in values])
    shown = (
        table(["key", *(run.name for run in runs)], rows, classes="recipe") if rows else "<p>They do not differ.</p>"
    )
    return section("Recipes: where they differ", shown, *(_whole_recipe(run, f"All of {run.name}") for run in runs))


def _whole_recipe(run, summary):
    text = without_head(run.recipe_text)
    return details(summary, f"<pre>{escaped(text)}</pre>") if text else ""
