"""What a rank of a plan holds: a bar for each phase of the run, of the parts that are held then, against the limit.

A phase takes what is held always and, of a step's phases, which follow one another, the largest: the rule by which
trainer/plan/run_plan.cpp sums.
"""

from dataclasses import dataclass

from draw import scale, units
from draw.chart import FULL, pixels, rule, svg, text, x_axis
from draw.page import escaped, figure, table

PHASES = (("load", "loading"), ("step", "a step"), ("save", "saving"))
PLACES = (("device", "Memory of a GPU"), ("host", "Host memory of a rank"))
COLOURS = tuple(f"s{i}" for i in range(7))  # of the largest parts; s7, grey, is all others'
GIB = float(1 << 30)
TALL, BETWEEN, LEFT, BEHIND = 22, 10, 78, 190


@dataclass
class _Row:
    name: str
    parts: list

    @property
    def bytes(self):
        return sum(part.bytes for part in self.parts)


def _rows(parts):
    """The phases of a place in their order; one row where phases do not differ."""
    always = [part for part in parts if part.phase == "run"]
    rows = []
    for phase, name in PHASES:
        of_phase = [part for part in parts if part.phase == phase]
        if phase == "step" and of_phase:
            of_phase = [max(of_phase, key=lambda part: part.bytes)]
        if of_phase or phase == "step":
            rows.append(_Row(name, always + of_phase))
    return rows


def _bar(row, y, along, colours):
    at, content = 0.0, []
    for part in sorted(row.parts, key=lambda part: (part.phase != "run", -part.bytes)):
        begin, end = along.at(at), along.at(at + part.bytes / GIB)
        said = f"{part.name}: {units.bytes_text(part.bytes)}\n{part.formula}"
        content.append(
            f'<rect class="bar {colours[part.name]}" x="{pixels(begin)}" y="{y}" width="{pixels(max(0.5, end - begin))}"'
            f' height="{TALL}"><title>{escaped(said)}</title></rect>\n'
        )
        at += part.bytes / GIB
    return "".join(content), along.at(at)


def _chart(rows, limit, colours, label):
    greatest = max([limit, *(row.bytes for row in rows)]) / GIB
    along = scale.over([0.0, greatest], LEFT, FULL - BEHIND, count=8, from_zero=True)
    top = 20
    foot = top + len(rows) * (TALL + BETWEEN)
    content = [x_axis(along, "GiB", foot)]
    for i, row in enumerate(rows):
        y = top + i * (TALL + BETWEEN)
        bar, end = _bar(row, y, along, colours)
        over = limit and row.bytes > limit
        said = units.bytes_text(row.bytes) + (f", {units.bytes_text(row.bytes - limit)} too many" if over else "")
        content += [bar, text(LEFT - 10, y + TALL / 2 + 4, row.name, "ink end")]
        content.append(text(max(end, along.at(limit / GIB)) + 8, y + TALL / 2 + 4, said, "over" if over else "ink"))
    if limit:
        at = along.at(limit / GIB)
        content.append(rule(at, top - 6, at, foot, "limit"))
        content.append(text(at, top - 9, f"limit {units.bytes_text(limit)}", "ink middle"))
    return svg(FULL, foot + 26, label, "".join(content))


def memory_figures(plan):
    """Of each place that holds something: the bars, and under them their parts in words."""
    figures = []
    for place, title in PLACES:
        parts = [part for part in plan.memory if part.on_host == (place == "host")]
        if not parts:
            continue
        largest = sorted(parts, key=lambda part: -part.bytes)
        colours = {part.name: "s7" for part in parts}
        colours |= {part.name: colour for part, colour in zip(largest, COLOURS)}
        rows = _rows(parts)
        label = f"{title}: {units.bytes_text(plan.bytes[place])} of {units.bytes_text(plan.limits[place])}"
        figures.append(figure(title, _chart(rows, plan.limits[place], colours, label)) + _parts(largest, colours))
    return figures


def _parts(parts, colours):
    rows = [
        (
            f'<span class="swatch {colours[part.name]}"></span>{escaped(part.name)}',
            escaped(units.bytes_text(part.bytes)),
            escaped(dict(PHASES).get(part.phase, "always")),
            f"<small>{escaped(part.formula)}</small>",
        )
        for part in parts
    ]
    return table(["part", "bytes", "held", "what it is"], rows, numbers={1}, classes="parts")
