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


def _scaled(value, base, names):
    """Three figures, in the largest unit of which there is one; what would print as `base` is one of the next."""
    value, unit = float(value), 0
    while abs(value) >= base - 0.5 and unit + 1 < len(names):
        value, unit = value / base, unit + 1
    decimals = 0 if unit == 0 or abs(value) >= 99.95 else 1 if abs(value) >= 9.995 else 2
    return f"{value:.{decimals}f}{names[unit]}"


def bytes_text(value):
    """As the program says it: "812 B", "1.50 KiB", "1023 MiB"."""
    return _scaled(value, 1024, (" B", " KiB", " MiB", " GiB", " TiB", " PiB"))


def count_text(value, gap=" "):
    """ "8", "950", "8.90 k", "1.80 M"; the program leaves no gap."""
    return _scaled(value, 1000, ("", *(f"{gap}{name}" for name in "kMBT")))


def seconds_text(value):
    """ "74.2 ms", "1.31 s", "4 min 48 s", "3 h 05 min", "2 d 03 h"."""
    if value is None or not math.isfinite(value):
        return "–"
    whole = round(value)
    for size, of, name, rest in ((86400, 3600, "d", "h"), (3600, 60, "h", "min"), (60, 1, "min", "s")):
        if whole >= size:
            return f"{whole // size} {name} {whole % size // of:02d} {rest}"
    return seconds(value).text(value)
