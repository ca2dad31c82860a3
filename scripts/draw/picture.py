"""A picture: an SVG file of its own, boxes, lines and words put one behind the other. No fonts or files but it, a white
ground that reads on light pages and dark ones.

picture = Picture("Who holds what")
picture.box((16, 40, 160, 90), PAPER, stroke=LINE)
picture.text(24, 60, "rank 0", bold=True)
print(picture.finish())

Places are in pixels, y downwards; a box is (x, y, width, height).
"""

import math

from draw.chart import pixels
from draw.page import escaped

# What a picture begins with: a file that does may be replaced (trainer/main.cpp).
HEAD = "<svg"

WIDTH = 740  # of every picture: what a page shows without scaling
MARGIN = 16
INSIDE = WIDTH - 2 * MARGIN

# Those of docs/sweep.svg.
DOWN, UP, FETCH = "#8fb8de", "#f2b97f", "#1f2933"
TEXT, SOFT, LINE = "#1f2933", "#5b6770", "#d5dbe1"
GROUND, PAPER, PALE = "#ffffff", "#f4f6f8", "#e7ebee"
# Of groups, shards and parts: told apart by most colour-blind eyes for the first four, dark text reads on all of them.
COLOURS = ("#8fb8de", "#f2b97f", "#a9d3a1", "#dda6c8", "#e6d98c", "#b9b4e4", "#93d1cc", "#cdb79e")

HEAD_OF_ARROW = 6

# Of an em, in Helvetica: classes of letters by width, each as wide as its widest.
LETTERS = (
    ("ijl|'.,:;! ", 0.28),
    ("ft()[]-/I", 0.34),
    ("mM%@W", 0.9),
    ("w=+<>ABCDEFGHIJKLMNOPQRSTUVWXYZ", 0.75),
)
OTHER_LETTER = 0.56


def colour(index):
    """They come back after len(COLOURS)."""
    return COLOURS[index % len(COLOURS)]


# The first two, and where they are missing those that are as wide.
FONTS = "Helvetica, Arial, Liberation Sans, DejaVu Sans Condensed, sans-serif"


def text_width(words, size=12, bold=False):
    """Not less than the words take in Helvetica or Arial."""
    ems = sum(next((width for letters, width in LETTERS if c in letters), OTHER_LETTER) for c in words)
    return ems * size * (1.08 if bold else 1.0)


def _attributes(**values):
    """Those that have a value: numbers as pixels, `text_anchor` as text-anchor."""
    return "".join(
        f' {name.replace("_", "-")}="{value if isinstance(value, str) else pixels(value)}"'
        for name, value in values.items()
        if value is not None
    )


class Picture:
    def __init__(self, title):
        self._title = title
        self._body = []
        self._bottom = 0

    def box(self, box, fill, stroke=None, radius=None):
        x, y, width, height = box
        drawn = _attributes(x=x, y=y, width=width, height=height, rx=radius, fill=fill, stroke=stroke)
        self._put(f"rect{drawn}/", y + height)

    def line(self, x1, y1, x2, y2, stroke=LINE, dashed=False):
        drawn = _attributes(stroke=stroke, stroke_dasharray="3 3" if dashed else None)
        self._put(f'path d="M{pixels(x1)} {pixels(y1)}L{pixels(x2)} {pixels(y2)}"{drawn}/', max(y1, y2))

    def arrow(self, x1, y1, x2, y2, stroke=SOFT):
        """A line with a head at its end."""
        length = math.hypot(x2 - x1, y2 - y1)
        dx, dy = (x2 - x1) / length * HEAD_OF_ARROW, (y2 - y1) / length * HEAD_OF_ARROW
        x, y = x2 - dx, y2 - dy  # where the head begins
        self.line(x1, y1, x, y, stroke)
        corners = ((x2, y2), (x - dy / 2, y + dx / 2), (x + dy / 2, y - dx / 2))
        path = "L".join(f"{pixels(x)} {pixels(y)}" for x, y in corners)
        self._put(f'path d="M{path}Z"{_attributes(fill=stroke)}/', y2)

    def text(self, x, y, words, fill=TEXT, bold=False, size=12, anchor=None):
        """`y` is the foot of the letters; `anchor`: "middle" or "end" of the words is at x. It is for the caller to see
        that they have room (text_width)."""
        drawn = _attributes(
            x=x,
            y=y,
            fill=fill,
            font_size=None if size == 12 else size,
            font_weight="bold" if bold else None,
            text_anchor=anchor,
        )
        self._put(f"text{drawn}>{escaped(words)}</text", y + size / 4)

    def legend(self, x, y, keys, gap=16, stroke=None):
        """What colours stand for, in a row from (x, y) on; `keys`: (fill, words)."""
        for fill, words in keys:
            self.box((x, y, 14, 11), fill, stroke=stroke)
            self.text(x + 20, y + 10, words, fill=SOFT)
            x += 20 + text_width(words) + gap

    def chip(self, box, fill, words, ink=TEXT):
        """A filled rounded box with words in its middle."""
        x, y, width, height = box
        size = 11
        self.box(box, fill, radius=3)
        self.text(x + width / 2, y + height / 2 + size * 0.36, words, fill=ink, size=size, anchor="middle")

    def finish(self):
        """The whole picture, as high as what was drawn and a margin."""
        height = math.ceil(self._bottom + MARGIN)
        size = _attributes(width=WIDTH, height=height)
        return (
            f'{HEAD} xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}"{size}'
            f' font-family="{FONTS}" font-size="12">\n'
            f"  <title>{escaped(self._title)}</title>\n"
            f'  <rect{size} rx="6" fill="{GROUND}"/>\n'
            f"{''.join(self._body)}</svg>\n"
        )

    def _put(self, element, bottom):
        self._body.append(f"  <{element}>\n")
        self._bottom = max(self._bottom, bottom)
