"""Amounts as a person reads them.

bytes_text(13 << 30)       # "13.0 GiB", as the program says it (parallel/base/units.h)
unit = seconds(0.074)      # of an axis that reaches so far: Unit("ms", 0.001)
unit.text(0.0653)          # "65.3 ms"
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Unit:
    """What an axis counts in; `size` is one of it in what values are given in."""

    name: str
    size: float = 1.0

    def text(self, value):
        return f"{three_figures(value / self.size)} {self.name}".rstrip()


def three_figures(value):
    """ "1.50", "12.3", "812", "25,900": what lies below says nothing that was measured."""
    return f"{value:,.{2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0}f}"


def _fitting(greatest, units):
    """The largest unit of which there is at least one."""
    return next((unit for unit in units if greatest >= unit.size), units[-1])


def bytes_(greatest):
    names = ("PiB", "TiB", "GiB", "MiB", "KiB", "B")
    return _fitting(greatest, [Unit(name, 1024.0 ** (len(names) - 1 - i)) for i, name in enumerate(names)])


def seconds(greatest):
    return _fitting(greatest, [Unit("h", 3600.0), Unit("s"), Unit("ms", 1e-3), Unit("µs", 1e-6)])


def counts(greatest, what):
    """Plain below a hundred thousand, where an axis has room for all digits."""
    if greatest < 1e5:
        return Unit(what)
    return _fitting(
        greatest, [Unit(f"billion {what}", 1e9), Unit(f"million {what}", 1e6), Unit(f"thousand {what}", 1e3)]
    )


def number_text(value):
    """Four figures where they say something: "4.675", "25,900", "0.0015", "3e-05"."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    if abs(value) >= 1e15 or abs(value) < 1e-4:
        return f"{value:.3g}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    decimals = max(0, 3 - math.floor(math.log10(abs(value))))
    text = f"{value:.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def bytes_text(value):
    unit = bytes_(abs(value))
    return f"{value:.0f} B" if unit.name == "B" else unit.text(value)


def count_text(value):
    """ "8", "950", "8.90 k", "1.80 M": three figures."""
    for size, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{three_figures(value / size)} {name}"
    return f"{value:.0f}"


def seconds_text(value):
    """ "74.2 ms", "1.31 s", "4 min 48 s", "3 h 05 min", "2 d 03 h"."""
    if value is None or not math.isfinite(value):
        return "–"
    whole = round(value)
    for size, of, name, rest in ((86400, 3600, "d", "h"), (3600, 60, "h", "min"), (60, 1, "min", "s")):
        if whole >= size:
            return f"{whole // size} {name} {whole % size // of:02d} {rest}"
    return seconds(value).text(value)
