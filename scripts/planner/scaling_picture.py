"""Efficiency over GPUs, weak beside strong, as a picture for a page of its own colours (docs/pictures/)."""

from draw.chart import pixels
from draw.page import escaped
from draw.picture import FONTS
from draw.scale import Linear

WIDTH, HEIGHT, TOP, FOOT = 740, 330, 66, 262
PANELS = ((58, 356), (420, 718))
COLOURS = ("#2b6cb0", "#d9730d", "#2f8f5b")
INK, SOFT, LINE = "#1f2933", "#5b6770", "#d5dbe1"
GREATEST = 1.2  # efficiency at the top


def _text(x, y, content, colour=SOFT, anchor="start", more=""):
    return f'  <text x="{pixels(x)}" y="{pixels(y)}" fill="{colour}" text-anchor="{anchor}"{more}>{escaped(content)}</text>\n'


def _panel(begin, end, title, sizes_of, first, last):
    steps = (last // first).bit_length() - 1  # doublings
    along = Linear(0, steps, begin, end, 1)
    up = Linear(0.0, GREATEST, FOOT, TOP, 0.2)
    parts = [_text(begin, TOP - 14, title, INK, more=' font-weight="bold"')]
    for value, _ in up.ticks():
        y = up.at(value)
        parts.append(f'  <path d="M{begin} {pixels(y)}H{end}" stroke="{SOFT if abs(value - 1) < 1e-9 else LINE}"/>\n')
        parts.append(_text(begin - 8, y + 4, f"{value:.0%}", anchor="end"))
    for step in range(steps + 1):
        gpus = first << step
        if step % 3 == 0:
            parts.append(_text(along.at(step), FOOT + 18, f"{gpus:,}", anchor="middle"))
        parts.append(f'  <path d="M{pixels(along.at(step))} {FOOT}v4" stroke="{SOFT}"/>\n')
    parts.append(_text((begin + end) / 2, FOOT + 36, "H100", anchor="middle"))
    for colour, (recipe, sizes) in zip(COLOURS, sizes_of.items()):
        points = [(along.at((size.gpus // first).bit_length() - 1), up.at(size.efficiency)) for size in sizes]
        path = "L".join(f"{pixels(x)} {pixels(y)}" for x, y in points)
        parts.append(f'  <path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>\n')
        for (x, y), size in zip(points, sizes):
            said = f"{recipe.name}, {size.gpus:,} GPUs: {size.efficiency:.0%}, {size.planned.layout.text(size.gpus)}"
            parts.append(
                f'  <circle cx="{pixels(x)}" cy="{pixels(y)}" r="3.5" fill="{colour}"><title>{escaped(said)}</title></circle>\n'
            )
    return "".join(parts)


def picture(weak_of, strong_of):
    """{recipe: sizes} of both."""
    every = [size.gpus for sizes_of in (weak_of, strong_of) for sizes in sizes_of.values() for size in sizes]
    first, last = min(every), max(every)
    title = "Tokens a second of a GPU, over those with the fewest GPUs, as planned"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
        f' font-family="{FONTS}" font-size="12">\n  <title>{title}</title>\n'
        f'  <rect width="{WIDTH}" height="{HEIGHT}" rx="6" fill="#ffffff"/>\n',
        _text(16, 26, title, INK, more=' font-size="14" font-weight="bold"'),
        _panel(*PANELS[0], "weak: the same tokens a GPU", weak_of, first, last),
        _panel(*PANELS[1], "strong: the recipe's batch", strong_of, first, last),
    ]
    at = PANELS[0][0]
    for colour, recipe in zip(COLOURS, weak_of):
        parts.append(f'  <rect x="{at}" y="{HEIGHT - 20}" width="12" height="4" fill="{colour}"/>\n')
        parts.append(_text(at + 18, HEIGHT - 14, recipe.name))
        at += 40 + 7 * len(recipe.name)
    return "".join(parts) + "</svg>\n"
