"""What a drawing of a pipeline's step takes from its plan (plan_file.Pipeline): when a stage is busy, when it stands
idle, what is sent, and the turns at the beginning, for which a drawing of the whole step has no room.

for begin_s, end_s in idle_times(stage, pipeline.step_s): ...
"""

from dataclasses import dataclass

ONSET_WAYS_UP = 2  # of the first stage, until which the beginning reaches
MOST_OF_STEP = 0.8


@dataclass(frozen=True)
class Sent:
    stage: int
    to: int
    begin_s: float
    arrives_s: float


def idle_times(stage, step_s):
    """(begin, end) of the times in which a stage has no group, until the step is over."""
    now = 0.0
    for one in stage.passes:
        if one.begin_s > now:
            yield now, one.begin_s
        now = max(now, one.end_s)
    if step_s > now:
        yield now, step_s


def idle_share(stage, step_s):
    return sum(end - begin for begin, end in idle_times(stage, step_s)) / step_s


def sent(pipeline):
    """What the stages send each other, down and up."""
    for place, stage in enumerate(pipeline.stages):
        for one in stage.passes:
            to = place - 1 if one.up else place + 1
            if one.arrives_s > 0 and 0 <= to < len(pipeline.stages):
                yield Sent(place, to, one.end_s, max(one.end_s, one.arrives_s))


def onset_s(pipeline):
    """The end of the beginning; None where that is most of the step, which shows it then."""
    ways_up = [one.end_s for one in pipeline.stages[0].passes if one.up]
    end_s = ways_up[:ONSET_WAYS_UP][-1] if ways_up else pipeline.step_s
    return end_s if end_s < MOST_OF_STEP * pipeline.step_s else None


def bubble_text(pipeline):
    """ "18 % of the time, (P - 1) / (G + P - 1) of 8 stages and 32 groups"."""
    share = 100 * pipeline.bubble
    words = f"{share:.0f}" if share >= 9.5 else f"{share:.1f}"
    groups = "1 group" if pipeline.groups == 1 else f"{pipeline.groups:,} groups"
    return f"{words} % of the time, (P - 1) / (G + P - 1) of {len(pipeline.stages)} stages and {groups}"


def percent(share):
    return f"{100 * share:.0f} %"
