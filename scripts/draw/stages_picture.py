"""A step of a pipeline, as a picture: which stage has which group of documents when, and the bubble; below, its first
turns with the numbers of the groups and what the stages send each other.

    moetune plan RECIPE --on 128xH100 --json > plan.json
    python scripts/draw stages plan.json > stages.svg
"""

from draw.errors import UserError
from draw.picture import DOWN, FETCH, MARGIN, PALE, SOFT, TEXT, UP, WIDTH, Picture, text_width
from draw.pipeline import bubble_text, idle_share, idle_times, onset_s, percent, sent
from draw.plan_file import read_plans
from draw.units import seconds_text

LEFT = 64
ROW, THICK, GAP = 22, 14, 0.4
IDLE, WAIT = PALE, "#c9b79a"
MOST_STAGES = 32


def draw(arguments):
    if len(arguments) != 1:
        raise UserError(f"a picture is drawn of one file that holds a plan; {len(arguments)} are given")
    plans = read_plans(arguments[0])
    if len(plans) > 1:
        raise UserError(f"{arguments[0]}: holds {len(plans)} plans; a picture is drawn of one")
    return stages_picture(plans[0])


def stages_picture(plan):
    """UserError where there is one stage."""
    pipeline = plan.pipeline
    if pipeline is None:
        raise UserError("the plan has one stage (mesh.pp: 1); stages are drawn of a pipeline")
    picture = Picture(f"A step of {plan.model} in {len(pipeline.stages)} stages")
    said = f"{plan.model} in {len(pipeline.stages)} stages on {plan.machines}: who has which group when"
    picture.text(MARGIN, 26, said, bold=True, size=14)
    picture.text(MARGIN, 44, f"The bubble: {bubble_text(pipeline)}", fill=SOFT)
    keys = (
        (DOWN, "way down"),
        (UP, "way up, the last with the sums of gradients"),
        (WAIT, "waits for the optimizer"),
        (IDLE, "idle"),
    )
    picture.legend(MARGIN, 56, keys, gap=26)
    y = 70
    y = _panel(picture, pipeline, y + 14, pipeline.step_s, f"A step as planned, {seconds_text(pipeline.step_s)}")
    onset = onset_s(pipeline)
    if onset is not None:
        title = f"Its first {seconds_text(onset)}, with the groups' numbers and what is sent on"
        _panel(picture, pipeline, y + 18, onset, title, links=True)
    return picture.finish()


def _panel(picture, pipeline, top, high, title, links=False):
    """A row a stage, from the step's begin to `high`; behind it what share of the whole step the stage is idle."""
    picture.text(MARGIN, top + 14, title)
    right = WIDTH - MARGIN - 44
    if not links:
        picture.text(WIDTH - MARGIN, top + 14, "idle", fill=SOFT, size=11, anchor="end")
        picture_right = right
    else:
        picture_right = WIDTH - MARGIN

    def at(time_s):
        return LEFT + time_s / high * (picture_right - LEFT)

    shown = pipeline.stages[:MOST_STAGES]
    for place, stage in enumerate(shown):
        y = top + 22 + place * ROW
        picture.text(MARGIN, y + 11, f"stage {place}", size=11)
        if not links:
            picture.text(WIDTH - MARGIN, y + 11, percent(idle_share(stage, pipeline.step_s)), size=11, anchor="end")
        for begin, end in idle_times(stage, pipeline.step_s):
            _bar(picture, at, high, (begin, end), y, IDLE, "idle" if links else "", SOFT)
        for one in stage.passes:
            works = one.begin_s + one.update_wait_s
            _bar(picture, at, high, (one.begin_s, works), y, WAIT)
            label = f"{one.group}" if links else ""
            _bar(picture, at, high, (works, one.end_s), y, UP if one.up else DOWN, label)
    for one in sent(pipeline):
        if links and one.arrives_s <= high and max(one.stage, one.to) < len(shown):
            way = 1 if one.to > one.stage else -1
            begin = top + 22 + one.stage * ROW + (THICK if way > 0 else 0)
            picture.line(at(one.begin_s), begin, at(one.arrives_s), begin + way * (ROW - THICK), FETCH)
    bottom = top + 22 + len(shown) * ROW
    more = len(pipeline.stages) - len(shown)
    if more:
        picture.text(MARGIN, bottom + 10, f"... and {more} stages more", fill=SOFT, size=11)
        bottom += 16
    return bottom


def _bar(picture, at, high, times, y, fill, label="", ink=TEXT):
    begin, end = at(min(times[0], high)), at(min(times[1], high))
    width = end - begin - GAP
    if width < 0.05:
        return
    picture.box((begin, y, width, THICK), fill)
    if label and text_width(label, 10) + 2 <= width:
        picture.text(begin + width / 2, y + 10.5, label, fill=ink, size=10, anchor="middle")
