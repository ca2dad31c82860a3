"""How long a planned step takes: by part, busy and exposed, and what each lane does when.

The lanes are those of trainer/plan/step_time.h. A step follows others like it: what runs past its end, AdamW above all,
lies under the beginning of the next, and is drawn there.
"""

import re

from draw import scale, units
from draw.bars import Bar, Group, Part, bar_chart
from draw.chart import FULL, RIGHT
from draw.lanes import Lane, Span, lanes
from draw.page import figure, legend
from draw.plan_file import LANES

LEFT = 78
JOINED, SEAM = 0.8, 0.5  # pixels: what is no gap between two spans of one kind; what is left between two of two kinds
AROUND_TURN = 3  # operations of the computing lane on either side of the head

# What operations are called (to_string of StepOp, Simulation), their colour and their name in the legend.
KINDS = (
    (re.compile(r"down |embed"), "s0", "way down"),
    (re.compile(r"head"), "s2", "head"),
    (re.compile(r"up "), "s1", "way up"),
    (re.compile(r"maps |experts "), "s4", "weights on their way"),
    (re.compile(r"reduce "), "s6", "gradients' sums"),
    (re.compile(r"update "), "s5", "optimizer"),
    (re.compile(r""), "s7", "other"),
)


def _kind(name):
    return next(i for i, (pattern, _, _) in enumerate(KINDS) if pattern.match(name))


def step_figure(plan):
    step = plan.step_s
    bar = Bar([Part(step.expected, "s0", "expected")], (step.low, step.high) if step.low <= step.high else None)
    words = f"{units.seconds_text(step.low)} at best, {units.seconds_text(step.high)} at worst."
    return figure("A step", bar_chart([Group("step", [bar])], units.seconds_text, label="A step"), note=words)


def parts_figure(plan):
    """Solid is what a step is longer for; the rest of a part runs beside something else."""
    groups = []
    for part in sorted(plan.parts, key=lambda part: (-part.exposed_s, -part.busy_s)):
        bars = [Part(part.exposed_s, "s0", "exposed")]
        hidden = part.busy_s - part.exposed_s
        if hidden > 0:
            bars.append(Part(hidden, "s0 predicted", "beside something else"))
        groups.append(Group(part.name, [Bar(bars, note=_exposure(part, plan.step_s.expected))]))
    keys = legend([("s0 bar", "exposed: the step is longer for it"), ("s0 bar predicted", "beside something else")])
    svg = bar_chart(groups, units.seconds_text, width=FULL, label="Parts of a step's time")
    return figure("Parts of a step's time", svg, keys) if svg else ""


def _exposure(part, step_s):
    share = f"{part.exposed_s / step_s:.1%} of the step"
    if part.exposed_s <= 0:
        return "(hidden)"
    if part.exposed_s >= 0.999 * part.busy_s:
        return f"({share})"
    return f"({units.seconds_text(part.exposed_s)} exposed, {share})"


def _within(spans, step_s):
    """Spans of one step, what passes its end put under the beginning."""
    for span in spans:
        begin, end = span.begin_s, span.end_s
        if begin < step_s < end:
            yield span.name, begin, step_s
            begin = step_s
        if begin >= step_s:
            begin, end = begin - step_s, min(step_s, end - step_s)
        if end > begin:
            yield span.name, begin, end


def _joined(spans, gap_s, alike):
    """Spans behind each other without a gap that could be seen, as one: (first name, last name, begin, end). `alike`:
    what of their names must be equal."""
    joined = []
    for name, begin, end in sorted(spans, key=lambda span: span[1]):
        last = joined[-1] if joined else None
        if last and alike(last[1]) == alike(name) and begin - last[3] <= gap_s:
            joined[-1] = (last[0], name, last[2], max(last[3], end))
        else:
            joined.append((name, name, begin, end))
    return joined


def _short(name):
    return name.replace("layer ", "").replace("of ", "").replace(", kept", "").replace(" turn", "")


def _drawn(spans, low, high, unit, seam_s):
    drawn = []
    for first, last, begin, end in spans:
        if end <= low or begin >= high:
            continue
        said = first if first == last else f"{first} to {last}"
        said += f": {unit.text(end - begin)}, from {unit.text(begin)} on"
        colour = KINDS[_kind(first)][1]
        label = _short(first) if first == last else KINDS[_kind(first)][2]
        begin, end = max(begin, low), min(end, high)
        drawn.append(Span(begin / unit.size, max(begin, end - seam_s) / unit.size, colour, said, label))
    return drawn


def _window(spans, step_s):
    """Begin and end of some operations around the head, none where there is none."""
    computing = sorted((span for span in spans if span.lane == "compute"), key=lambda span: span.begin_s)
    operations = []  # [name, begin, end]: waits cut one into several spans
    for span in computing:
        if operations and operations[-1][0] == span.name:
            operations[-1][2] = span.end_s
        else:
            operations.append([span.name, span.begin_s, span.end_s])
    heads = [i for i, (name, _, _) in enumerate(operations) if name.startswith("head")]
    if not heads:
        return None
    first, last = max(0, heads[0] - AROUND_TURN), min(len(operations) - 1, heads[-1] + AROUND_TURN)
    low, high = operations[first][1], min(step_s, operations[last][2])
    return (low, high) if high > low else None


def _timeline(plan, low, high, title, note=""):
    unit = units.seconds(min(plan.step_s.expected, 3599.0))
    pixel_s = (high - low) / (FULL - RIGHT - LEFT)
    along = scale.Linear(
        low / unit.size,
        high / unit.size,
        LEFT,
        FULL - RIGHT,
        scale.round_step((high - low) / unit.size, 10),
    )
    rows, kinds = [], set()
    whole = high - low >= plan.step_s.expected
    for lane in LANES:
        spans = list(_within((span for span in plan.spans if span.lane == lane), plan.step_s.expected))
        if spans:
            joined = _joined(spans, JOINED * pixel_s, _kind if whole else str)
            rows.append(Lane(lane, _drawn(joined, low, high, unit, SEAM * pixel_s)))
            kinds |= {_kind(name) for name, _, begin, end in joined if begin < high and end > low}
    keys = legend([(f"{KINDS[kind][1]} bar", KINDS[kind][2]) for kind in sorted(kinds)])
    return figure(title, lanes(rows, along, x=unit.name, label=title), keys, note)


def timelines(plan):
    """The whole step, and the window around its turn, where the way down becomes the way up."""
    if not plan.spans:
        return []
    step_s = plan.step_s.expected
    drawn = [
        _timeline(
            plan,
            0.0,
            step_s,
            "What each lane does in a step",
            "What runs past the end of a step, as AdamW does, lies under the beginning of the next and is drawn there.",
        )
    ]
    window = _window(plan.spans, step_s)
    if window and window[1] - window[0] < 0.9 * step_s:
        drawn.append(_timeline(plan, *window, "The same around the turn"))
    return drawn
