"""Curves over a common axis, as SVG.

svg = line_chart(
    [Series("training", points, "s0"), Series("held-out", few, "s1 dots")], x="step", unit=Unit("nats"), width=HALF
)

Points are (x, y) in order of x; y None, where there is no finite value, interrupts the curve and is marked by a cross at
the foot. Long curves are thinned (thin.py). All charts have their plot between the same margins, so that those of one
width lie over each other.
"""

import json
from dataclasses import dataclass, field

from draw import scale, thin
from draw.page import escaped
from draw.units import Unit, number_text

FULL, HALF = 1136, 554  # widths of a chart alone and of one of two in a row (page.css)
LEFT, RIGHT = 58, 24  # margins of the plot


@dataclass
class Series:
    name: str
    points: list
    classes: str  # a colour, and "faint", "dashed" or "dots"
    finite: list = field(init=False)

    def __post_init__(self):
        self.points = thin.thinned(self.points)
        self.finite = [point for point in self.points if point[1] is not None]


def pixels(value):
    """With one decimal, which is what a page can show."""
    return f"{value:.1f}".removesuffix(".0")


def svg(width, height, label, content, hover=None):
    """`hover`: what page.js shows under the pointer. A full one is scrolled where the window is narrow, not shrunk."""
    kind = ' class="full"' if width > HALF else ""
    data = f' data-hover="{escaped(json.dumps(hover, separators=(",", ":")))}"' if hover else ""
    return f'<svg{kind} viewBox="0 0 {width} {height:g}" role="img" aria-label="{escaped(label)}"{data}>\n{content}</svg>\n'


def text(x, y, content, classes=""):
    return f'<text x="{pixels(x)}" y="{pixels(y)}" class="{classes}">{escaped(content)}</text>\n'


def rule(x1, y1, x2, y2, classes="rule"):
    return f'<path class="{classes}" d="M{pixels(x1)} {pixels(y1)}L{pixels(x2)} {pixels(y2)}"/>\n'


def x_axis(along, name, y):
    """The line below a plot with its values, and its name before them."""
    parts = [rule(along.begin, y, along.end, y, "axis"), text(along.begin - 8, y + 17, name, "end")]
    for value, written in along.ticks():
        at = along.at(value)
        parts += [rule(at, y, at, y + 4, "axis"), text(at, y + 17, written, "middle")]
    return "".join(parts)


def steps_axis(first, last, begin, end):
    """Of numbers that are counted, from the first to the last; a single one stands in the middle."""
    room = 0.5 if first == last else 0.0
    step = max(1.0, scale.round_step(last - first + 2 * room, (end - begin) / 80))
    return scale.Linear(first - room, last + room, begin, end, step if step.is_integer() else 2 * step)


def _curve(series, along, height_of):
    """The path of the points, and circles where the class asks for them or a line would show nothing."""
    path, pen = [], "M"
    for x, y in series.points:
        if y is None:
            pen = "M"
            continue
        path.append(f"{pen}{pixels(along.at(x))} {pixels(height_of(y))}")
        pen = "L"
    line = f'<path class="line {series.classes}" d="{"".join(path)}"/>\n'
    if len(series.finite) > 60 or (len(series.finite) > 1 and "dots" not in series.classes):
        return line
    circles = (
        f'<circle class="dot {series.classes}" cx="{pixels(along.at(x))}" cy="{pixels(height_of(y))}" r="4"/>\n'
        for x, y in series.finite
    )
    return line + "".join(circles)


def _crosses(series, along, foot):
    """Where there is no finite value: crosses at the foot."""
    marks = [pixels(along.at(x)) for x, y in series.points if y is None]
    path = "".join(f"M{x} {foot - 8:g}m-3 -3l6 6m0 -6l-6 6" for x in marks)
    return f'<path class="line {series.classes}" d="{path}"><title>not finite</title></path>\n' if path else ""


def _hover(series, name, along, unit):
    def rounded(value):
        return None if value is None else float(f"{value:.5g}")

    curves = [
        {"name": s.name, "xs": [x for x, _ in s.points], "ys": [rounded(y and y / unit.size) for _, y in s.points]}
        for s in series
    ]
    ends = {"low": along.low, "high": along.high, "left": along.begin, "right": along.end}
    return {"x": name, **ends, "unit": unit.name, "series": curves}


def line_chart(
    series, x, unit=Unit(""), width=HALF, height=210, from_zero=False, log=False, events=(), ends=None, label=""
):
    """Nothing where no point has a value. `unit`: what the upward axis counts in. `log` is obeyed where all values are
    above 0. `events`: (x, text), dashed lines. `ends`: of the axis, where they are not the first and last x."""
    series = [s for s in series if s.points]
    values = [y / unit.size for s in series for _, y in s.finite]
    if not values:
        return ""
    first, last = ends or (min(s.points[0][0] for s in series), max(s.points[-1][0] for s in series))
    top, foot = 8, height - 26
    along = steps_axis(first, last, LEFT, width - RIGHT)
    up = scale.over(
        values, foot, top, count=max(3, round(height / 45)), from_zero=from_zero, log=log and min(values) > 0
    )
    parts = []
    for value, written in up.ticks():
        parts.append(rule(LEFT, up.at(value), width - RIGHT, up.at(value)))
        parts.append(text(LEFT - 8, up.at(value) + 4, written, "end"))
    parts.append(x_axis(along, x, foot))
    for at, what in events:
        line = rule(along.at(at), top, along.at(at), foot, "event")
        parts.append(f"<g><title>{escaped(what)}</title>{line}</g>\n")
    for s in series:
        parts.append(_curve(s, along, lambda y: up.at(y / unit.size)) + _crosses(s, along, foot))
    parts.append(f'<line class="cursor" y1="{top}" y2="{foot}"/>\n')
    said = f"{label}: {number_text(min(values))} to {number_text(max(values))} {unit.name}"
    return svg(width, height, said, "".join(parts), _hover(series, x, along, unit))
