"""Lanes over a common axis: what lasts as bars, what happens as marks.

svg = lanes([Lane("saves", marks=[Mark(100, "s2", "step 100: saved in 0.1 s")])], steps_axis(0, 600, 120, 1120), x="step")

What a span is called stands in it where there is room.
"""

from dataclasses import dataclass, field

from draw.chart import FULL, pixels, rule, svg, text, x_axis
from draw.page import escaped

TALL, THICK = 24, 14  # of a lane, of its bars
LETTER = 6.2  # what a letter of 11 px takes at most, on average


@dataclass
class Span:
    begin: float
    end: float
    classes: str
    name: str = ""  # said under the pointer
    label: str = ""  # written into it


@dataclass
class Mark:
    at: float
    classes: str  # a colour, and "ring" for an open one
    name: str = ""


@dataclass
class Link:
    """From a lane to a neighbour, which has what was sent at `arrives`."""

    row: int
    to: int
    begin: float
    arrives: float


@dataclass
class Lane:
    name: str
    spans: list = field(default_factory=list)
    marks: list = field(default_factory=list)


def _middle(row):
    return 4 + TALL * (row + 0.5)


def _link(link, along):
    """From the edge of one bar to that of the other."""
    way = 1 if link.to > link.row else -1
    begin, end = _middle(link.row) + way * THICK / 2, _middle(link.to) - way * THICK / 2
    path = f"M{pixels(along.at(link.begin))} {pixels(begin)}L{pixels(along.at(link.arrives))} {pixels(end)}"
    return f'<path class="link" d="{path}"/>\n'


def lanes(rows, along, x, width=FULL, label="", links=()):
    """`along`: the axis, a scale whose begin leaves room for the names."""
    content = []
    foot = 4 + TALL * len(rows)
    for i, lane in enumerate(rows):
        middle = _middle(i)
        content.append(text(along.begin - 12, middle + 4, lane.name, "ink end"))
        content.append(rule(along.begin, middle, along.end, middle))
        for span in lane.spans:
            begin, end = along.at(span.begin), along.at(span.end)
            content.append(
                f'<rect class="bar {span.classes}" x="{pixels(begin)}" y="{pixels(middle - THICK / 2)}"'
                f' width="{pixels(max(1, end - begin))}" height="{THICK}"><title>{escaped(span.name)}</title></rect>\n'
            )
            if span.label and LETTER * len(span.label) + 6 <= end - begin:
                content.append(text((begin + end) / 2, middle + 4, span.label, "middle within"))
        for mark in lane.marks:
            kind = "ring" if "ring" in mark.classes else "mark"
            content.append(
                f'<circle class="{kind} {mark.classes}" cx="{pixels(along.at(mark.at))}" cy="{pixels(middle)}" r="5">'
                f"<title>{escaped(mark.name)}</title></circle>\n"
            )
    content += [_link(link, along) for link in links]
    return svg(width, foot + 26, label, "".join(content) + x_axis(along, x, foot))
