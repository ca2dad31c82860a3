"""Horizontal bars in groups, stacked where a bar has several parts.

svg = bar_chart([Group("rank 0", [Bar([Part(9e9, "s0 predicted")]), Bar([Part(8e9, "s0")])])], units.bytes_text)
"""

from dataclasses import dataclass

from draw import scale
from draw.chart import HALF, pixels, rule, svg, text
from draw.page import escaped

THICK, BETWEEN_BARS, BETWEEN_GROUPS = 11, 2, 11
LETTER = 6.4  # what a letter of 11 px takes at most, on average


@dataclass
class Part:
    value: float
    classes: str  # a colour, and "predicted"
    name: str = ""  # said under the pointer


@dataclass
class Bar:
    parts: list
    range: tuple = None  # (low, high), drawn as a whisker
    note: str = ""  # behind the value


@dataclass
class Group:
    name: str
    bars: list


def _bar(bar, y, along, words):
    at, parts = 0.0, []
    for part in bar.parts:
        begin, end = along.at(at), along.at(at + part.value)
        said = f"{part.name}: {words(part.value)}" if part.name else words(part.value)
        parts.append(
            f'<rect class="bar {part.classes}" x="{pixels(begin)}" y="{y}" width="{pixels(max(1, end - begin))}"'
            f' height="{THICK}"><title>{escaped(said)}</title></rect>\n'
        )
        at += part.value
    reach = along.at(at)
    if bar.range:
        low, high = map(along.at, bar.range)
        middle = y + THICK / 2
        ends = f"M{pixels(low)} {middle - 3}v6M{pixels(high)} {middle - 3}v6M{pixels(low)} {middle}H{pixels(high)}"
        said = " to ".join(map(words, bar.range))
        parts.append(f'<path class="range" d="{ends}"><title>{escaped(said)}</title></path>\n')
        reach = max(reach, high)
    note = f"  {bar.note}" if bar.note else ""
    return "".join(parts) + text(reach + 6, y + THICK - 1.5, words(at) + note, "ink")


def bar_chart(groups, words, width=HALF, label=""):
    """Values are 0 or more; `words(value)` is what is written behind a bar. Nothing where there is no bar."""
    bars = [bar for group in groups for bar in group.bars]
    if not bars:
        return ""
    left = min(width * 0.45, 12 + LETTER * max(len(group.name) for group in groups))
    sums = [sum(part.value for part in bar.parts) for bar in bars]
    behind = 14 + LETTER * max(len(words(s)) + 2 + len(bar.note) for s, bar in zip(sums, bars))
    greatest = max(sums + [bar.range[1] for bar in bars if bar.range]) or 1.0
    along = scale.Linear(0.0, greatest, left, width - behind, greatest)
    content, y = [], 2
    for group in groups:
        tall = len(group.bars) * (THICK + BETWEEN_BARS) - BETWEEN_BARS
        content.append(text(left - 10, y + tall / 2 + 4, group.name, "ink end"))
        for i, bar in enumerate(group.bars):
            content.append(_bar(bar, y + i * (THICK + BETWEEN_BARS), along, words))
        y += tall + BETWEEN_GROUPS
    foot = y - BETWEEN_GROUPS + 2
    return svg(width, foot + 2, label, "".join(content) + rule(left, 0, left, foot, "axis"))
