"""Which stage of a planned pipeline has which group of documents when: the whole step, and its beginning, where groups
have room for their numbers and what is sent is drawn."""

from draw import scale, units
from draw.chart import FULL, RIGHT
from draw.lanes import Lane, Link, Span, lanes
from draw.page import figure, legend
from draw.pipeline import bubble_text, idle_share, idle_times, onset_s, percent, sent

LEFT = 150
SEAM = 0.5  # pixels between two groups
KINDS = (
    ("s5", "waits for the optimizer"),
    ("s0", "a group's way down"),
    ("s1", "its way up, the last with the sums of gradients"),
    ("s7 predicted", "idle"),
)
WAIT, DOWN, UP, IDLE = (colour for colour, _ in KINDS)


def stage_figures(plan):
    """None for one stage."""
    pipeline = plan.pipeline
    if pipeline is None:
        return []
    note = (
        f"The bubble is {bubble_text(pipeline)}. Beside it a stage is idle while a slower one computes or one waits for"
        f" its optimizer. With each stage at its own pace the step takes {units.seconds_text(pipeline.step_s)}."
    )
    drawn = [_figure(pipeline, pipeline.step_s, "Which stage has which group", note)]
    onset = onset_s(pipeline)
    if onset is not None:
        said = "Numbers are groups, lines what stages send each other: activations down, gradients up."
        drawn.append(_figure(pipeline, onset, "The same at the beginning", said, links=True))
    return drawn


def _figure(pipeline, high, title, note, links=False):
    unit = units.seconds(min(pipeline.step_s, 3599.0))
    along = scale.Linear(0.0, high / unit.size, LEFT, FULL - RIGHT, scale.round_step(high / unit.size, 10))
    seam_s = SEAM * high / (FULL - RIGHT - LEFT)
    rows, colours = [], set()
    for place, stage in enumerate(pipeline.stages):
        spans = [span for span in _spans(stage, pipeline.step_s, seam_s, unit) if span.begin * unit.size < high]
        for span in spans:
            span.end = min(span.end, high / unit.size)
            span.label = span.label if links else ""
        colours |= {span.classes for span in spans}
        rows.append(Lane(f"stage {place}, idle {percent(idle_share(stage, pipeline.step_s))}", spans))
    lines = [
        Link(one.stage, one.to, one.begin_s / unit.size, one.arrives_s / unit.size)
        for one in sent(pipeline)
        if links and one.arrives_s <= high
    ]
    keys = legend([(f"{colour} bar", words) for colour, words in KINDS if colour in colours])
    return figure(title, lanes(rows, along, x=unit.name, label=title, links=lines), keys, note)


def _spans(stage, step_s, seam_s, unit):
    """Boxes of a stage, those of its passes with their group's number."""

    def span(begin, end, colour, said, label=""):
        words = f"{said}: {unit.text(end - begin)}, from {unit.text(begin)} on"
        return Span(begin / unit.size, max(begin, end - seam_s) / unit.size, colour, words, label)

    for begin, end in idle_times(stage, step_s):
        yield span(begin, end, IDLE, "idle")
    for one in stage.passes:
        works = one.begin_s + one.update_wait_s
        if one.update_wait_s > 0:
            yield span(one.begin_s, works, WAIT, "waits for the optimizer")
        way = "up" if one.up else "down"
        yield span(works, one.end_s, UP if one.up else DOWN, f"group {one.group:,} {way}", f"{one.group:,}")
