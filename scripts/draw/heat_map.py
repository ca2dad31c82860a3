"""A table of numbers as colours: rows one below the other, columns along an axis.

svg = heat_map(["layer 0", "layer 1"], [(1, 4), (5, 8)], [[1.2, 1.1], [2.4, None]], BOUNDS, x="step", unit="times")
legend = heat_legend(BOUNDS)

A cell's colour says between which two bounds its value lies, so that maps with the same bounds compare.
"""

import bisect

from draw.chart import FULL, LEFT, RIGHT, pixels, steps_axis, svg, text, x_axis
from draw.page import escaped
from draw.units import number_text

LEVELS = 12  # colours of page.css: h0 to h11
MOST_COLUMNS = 180


def gathered(xs, rows, most=MOST_COLUMNS):
    """Neighbouring columns joined until there are at most `most`: their (first, last) x, and rows of means. `rows` are
    columns' values by row, None where there is none."""
    count = min(len(xs), most)
    cuts = [len(xs) * i // count for i in range(count + 1)] if count else [0]
    columns = [(xs[begin], xs[end - 1]) for begin, end in zip(cuts, cuts[1:])]

    def mean(values):
        known = [v for v in values if v is not None]
        return sum(known) / len(known) if known else None

    return columns, [[mean(row[begin:end]) for begin, end in zip(cuts, cuts[1:])] for row in rows]


def heat_map(rows, columns, values, bounds, x, unit, width=FULL, ends=None, label=""):
    """`rows`: names. `columns`: (first, last) x of each. `values[row][column]`, None for none. `bounds`: ascending, one
    fewer than LEVELS at most. `ends`: of the axis."""
    if not rows or not columns:
        return ""
    height = max(4, min(22, 300 // len(rows)))
    first, last = ends or (columns[0][0], columns[-1][1])
    along = steps_axis(first - 0.5, last + 0.5, LEFT, width - RIGHT)
    top, foot = 4, 4 + height * len(rows)
    edges = [along.at(begin - 0.5) for begin, _ in columns] + [along.at(columns[-1][1] + 0.5)]
    # One path a colour: a rectangle a cell would make the page ten times as long.
    paths = [[] for _ in range(LEVELS)]
    for r, row in enumerate(values):
        for c, value in enumerate(row):
            if value is not None:
                level = min(bisect.bisect_right(bounds, value), LEVELS - 1)
                # A little wider than the cell, or the page would shine through between two.
                wide = edges[c + 1] - edges[c] + (0.3 if c + 1 < len(row) else 0)
                paths[level].append(f"M{pixels(edges[c])} {top + r * height}h{pixels(wide)}v{height}h-{pixels(wide)}z")
    cells = "".join(f'<path class="h{level}" d="{"".join(path)}"/>\n' for level, path in enumerate(paths) if path)
    every = next(n for n in (1, 2, 5, 10, 20, 50, 100, 1000) if n * height >= 14 or n == 1000)
    names = "".join(
        text(LEFT - 8, top + (r + 0.5) * height + 4, name, "end") for r, name in enumerate(rows) if r % every == 0
    )
    hover = {
        "xs": [round(e, 2) for e in edges],
        "top": top,
        "height": height,
        "rows": [f"{label} {name}".strip() for name in rows],
        "columns": [f"{x} {a}" if a == b else f"{x}s {a} to {b}" for a, b in columns],
        "unit": unit,
        "values": [[None if v is None else float(f"{v:.4g}") for v in row] for row in values],
    }
    return svg(width, foot + 26, label, cells + names + x_axis(along, x, foot), hover)


def heat_legend(bounds):
    """The colours with the bounds between them, in a line of text's height."""
    wide, colours = 30, len(bounds) + 1
    parts = [f'<rect class="h{i}" x="{i * wide}" y="0" width="{wide}" height="9"/>' for i in range(colours)]
    parts += [text((i + 1) * wide, 20, number_text(bound), "middle") for i, bound in enumerate(bounds)]
    return (
        f'<svg class="colours" viewBox="0 0 {colours * wide} 22" style="width: {colours * wide}px; margin-left: auto"'
        f' aria-label="{escaped("colours and their bounds")}">{"".join(parts)}</svg>'
    )
