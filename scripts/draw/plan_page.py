"""The page of a plan, or of several beside each other: what is planned, what it holds, how long it takes, its costs.

    moetune plan --model deepseek-v3 --on 2xH200 --json > plan.json
    python scripts/draw plan plan.json > page.html

Memory is drawn by plan_memory.py, time by plan_time.py and plan_stages.py; here stands what is in words, costs, and the
comparison.
"""

import argparse

from draw import units
from draw.bars import Bar, Group, Part, bar_chart
from draw.errors import UserError
from draw.page import details, escaped, figure, grid, legend, notes, page, section, table
from draw.plan_file import cost_order, read_plans
from draw.plan_memory import memory_figures
from draw.plan_stages import stage_figures
from draw.plan_time import parts_figure, step_figure, timelines


class _Arguments(argparse.ArgumentParser):
    def error(self, message):
        raise UserError(message)


def draw(arguments):
    parser = _Arguments(prog="draw plan", add_help=False)
    parser.add_argument("plan", help="what moetune plan --json printed")
    return plan_page(read_plans(parser.parse_args(arguments).plan))


def plan_page(plans):
    if len(plans) == 1:
        (plan,) = plans
        return page(f"{plan.model} on {plan.machines}", _figures([plan]), *_of(plan), subtitle=escaped(_subtitle(plan)))
    models = list(dict.fromkeys(plan.model for plan in plans))
    ordered = cost_order(plans)
    folded = [details(f"{plan.machines}, {plan.mesh_text}", "".join(_of(plan))) for plan in ordered]
    common = {f"{_what(plan)} · {plan.data}" for plan in plans}
    subtitle = common.pop() if len(common) == 1 else f"{len(plans)} plans"
    parts = (_figures(ordered), _comparison(ordered), section("Each plan", *folded))
    return page(" and ".join(models[:3]) + ": where to train", *parts, subtitle=escaped(subtitle))


def _what(plan):
    counted = (
        f"{units.count_text(plan.parameters)} parameters, {units.count_text(plan.active_parameters)} active a token"
    )
    return f"{plan.model_type} · {counted} · {plan.method}"


def _subtitle(plan):
    hosts = f", {plan.gpus_per_host} a host, network {plan.network}" if plan.gpus > plan.gpus_per_host else ""
    return f"{_what(plan)} · mesh {plan.mesh_text}{hosts} · {plan.data}"


# Figures at the top


def hours_text(hours):
    return units.seconds_text(3600.0 * hours)


def range_text(low, high, words):
    """ "12.6 to 17.4 s": the unit once where it is the same."""
    low, high = words(low), words(high)
    same = low.count(" ") == 1 and high.count(" ") == 1 and low.split()[1] == high.split()[1]
    return f"{low.split()[0] if same else low} to {high}"


def dollars_text(dollars):
    if dollars is None:
        return "–"
    return f"${dollars:,.2f}" if dollars < 10 else f"${dollars:,.0f}"


def _cell(value, small=""):
    return escaped(value) + (f"<small>{escaped(small)}</small>" if small else "")


def _figures_of(plan):
    """(figure, what is said below it)."""
    step, hours = plan.step_s, plan.hours
    device = "device" if plan.limits["device"] else "host"
    million = plan.dollars_per_million_tokens
    return [
        (units.bytes_text(plan.bytes[device]), f"of {units.bytes_text(plan.limits[device])}{_fit(plan)}"),
        (units.seconds_text(step.expected), range_text(step.low, step.high, units.seconds_text)),
        (f"{plan.tokens_per_s:,.0f}", f"{plan.tokens_per_s_per_gpu:,.0f} a rank"),
        (hours_text(hours.expected), range_text(hours.low, hours.high, hours_text)),
        (f"{plan.steps:,}", f"of {plan.sequences_a_step:,} x {plan.max_tokens:,} tokens"),
        (dollars_text(plan.dollars), f"{dollars_text(million)} a M tokens" if million is not None else "no price"),
    ]


def _fit(plan):
    if plan.fits:
        return ""
    elsewhere = plan.limits["device"] and plan.bytes["device"] <= plan.limits["device"]
    return "; its host memory does not fit" if elsewhere else ": does not fit"


def _figures(plans):
    head = ["memory a rank", "step", "tokens/s", "run", "steps", "cost"]
    rows = [[_cell(*pair) for pair in _figures_of(plan)] for plan in plans]
    if len(plans) > 1:
        head = ["machine", *head]
        rows = [[_cell(plan.machines, plan.mesh_text), *row] for plan, row in zip(plans, rows)]
    return table(head, rows, classes="figures")


# One plan


def _of(plan):
    """The sections of a plan."""
    return (
        _does_not_fit(plan),
        section("Memory", *memory_figures(plan)),
        section("Time of a step", *stage_figures(plan), *timelines(plan), parts_figure(plan)),
        section("Run and cost", grid(step_figure(plan), _run_figure(plan)), _run_table(plan)),
        section("Rates", *_rates(plan)),
    )


def _does_not_fit(plan):
    if plan.fits:
        return ""
    lacks = [
        f"{place} memory lacks {units.bytes_text(plan.bytes[place] - plan.limits[place])}"
        for place in ("device", "host")
        if plan.bytes[place] > plan.limits[place] > 0
    ]
    said = f"It does not fit: {' and '.join(lacks)}." if lacks else "It does not fit."
    changes = [f"It would fit with {change}" for change in plan.changes_to_fit]
    return notes([said, *(changes or ["No small change was found with which it would."])])


def _shares_of_run(plan):
    return (
        ("steps", plan.steps * plan.step_s.expected, "s0"),
        ("loading", plan.load_s, "s1"),
        ("evaluations", plan.evaluation_s, "s2"),
        ("saving", plan.save_s, "s3"),
    )


def _run_figure(plan):
    shares = _shares_of_run(plan)
    parts = [Part(seconds, colour, name) for name, seconds, colour in shares if seconds > 0]
    low, high = 3600.0 * plan.hours.low, 3600.0 * plan.hours.high
    bar = Bar(parts, (low, high) if low <= high else None)
    keys = legend([(f"{colour} bar", name) for name, seconds, colour in shares if seconds > 0])
    words = f"{hours_text(plan.hours.low)} at best, {hours_text(plan.hours.high)} at worst."
    return figure("The run", bar_chart([Group("run", [bar])], units.seconds_text, label="The run"), keys, words)


def _run_table(plan):
    rows = [
        (escaped(name), escaped(units.seconds_text(seconds)), escaped(_share_said(name, plan)))
        for name, seconds, _ in _shares_of_run(plan)
        if seconds > 0
    ]
    whole = range_text(plan.hours.low, plan.hours.high, hours_text)
    rows.append(("run", escaped(hours_text(plan.hours.expected)), escaped(whole)))
    if plan.price is not None:
        gpu_hours = plan.hours.expected * plan.gpus
        said = f"{units.number_text(gpu_hours)} GPU-hours at ${plan.price:,.2f}: {plan.price_source}"
        rows.append(("cost", escaped(dollars_text(plan.dollars)), f"<small>{escaped(said)}</small>"))
    return table(["part", "time", ""], rows, numbers={1}, classes="run")


def _share_said(name, plan):
    return {
        "steps": f"{plan.steps:,} of {units.seconds_text(plan.step_s.expected)}: {plan.data}",
        "loading": "reading and packing weights, start, one step that is tried",
        "evaluations": "of held-out documents",
        "saving": "checkpoints",
    }[name]


# What figures of moetune bench count (docs/benchmarks/README.md), by the first letters of their names.
_UNITS = {
    "optimizer.": "numbers/s",
    "nf4.dequantise_bytes": "B/s",
    "nf4.": "numbers/s",
    "dense.": "FLOP/s",
    "grouped.": "FLOP/s",
    "attention.": "FLOP/s",
    "small_blocks": "blocks/s",
    "all_gather.small": "collectives/s",
    "": "B/s",
}


def _rate_text(rate):
    unit = next(unit for first, unit in _UNITS.items() if rate.name.startswith(first))
    if unit in ("numbers/s", "blocks/s", "collectives/s"):
        return f"{units.count_text(rate.value)} {unit}"
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if rate.value >= size:
            return f"{units.three_figures(rate.value / size)} {letter}{unit}"
    return f"{units.three_figures(rate.value)} {unit}"


def _rates(plan):
    said = (
        "Measured on the machine that is planned for."
        if plan.calibrated
        else "Not measured on the machine that is planned for; moetune bench does it, and receipts of runs correct it."
    )
    if plan.computing != 1:
        said += f" Computing takes {plan.computing:.3f} times the sum of its parts, as receipts say."
    rows = [
        (f"<code>{escaped(rate.name)}</code>", escaped(_rate_text(rate)), f"<small>{escaped(rate.source)}</small>")
        for rate in plan.rates
    ]
    return f"<p>{escaped(said)}</p>\n", details(f"{len(rows)} rates", table(["figure", "rate", "from"], rows, {1}))


# Several plans


def _comparison(plans):
    charts = [
        _bars(plans, "Cost of the run", lambda plan: plan.dollars, dollars_text, _scaled(lambda plan: plan.dollars)),
        _bars(
            plans,
            "Hours of the run",
            lambda plan: plan.hours.expected,
            hours_text,
            lambda plan: (plan.hours.low, plan.hours.high),
        ),
        _bars(plans, "A million tokens", lambda plan: plan.dollars_per_million_tokens, dollars_text),
        _bars(
            plans, "Tokens a second of a rank", lambda plan: plan.tokens_per_s_per_gpu, lambda value: f"{value:,.0f}"
        ),
    ]
    note = notes([f"{plan.machines} does not fit." for plan in plans if not plan.fits])
    return note + section("Beside each other", grid(*charts))


def _scaled(of):
    """The bounds of what grows with the hours."""

    def bounds(plan):
        hours = plan.hours
        return (
            (of(plan) * hours.low / hours.expected, of(plan) * hours.high / hours.expected) if hours.expected else None
        )

    return bounds


def _bars(plans, title, of, words, bounds=None):
    groups = []
    for plan in plans:
        value = of(plan)
        if value is None:
            continue
        colour = "s0" if plan.fits else "s7 predicted"
        note = "" if plan.fits else "does not fit"
        within = bounds(plan) if bounds else None
        within = within if within and within[0] <= within[1] else None
        groups.append(Group(plan.machines, [Bar([Part(value, colour)], within, note)]))
    svg = bar_chart(groups, words, label=title)
    return figure(title, svg) if svg else ""
