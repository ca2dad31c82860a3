"""Axes: from values to places on the page, and the round values that are written beside them.

scale = over([0.3, 4.1], begin=200, end=0)    # linear, or logarithmic where log=True
scale.at(2.0)                                 # pixels
for value, text in scale.ticks(): ...
"""

import math


def round_step(span, count):
    """The 1, 2, 2.5 or 5 times a power of ten that cuts the span into about `count` parts."""
    rough = span / max(1, count)
    power = 10.0 ** math.floor(math.log10(rough))
    return next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)


def tick_text(value, step):
    if value == 0:
        return "0"
    if step < 1e-5 or abs(value) >= 1e7:
        return f"{value:.3g}"
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    decimals += abs(step * 10**decimals - round(step * 10**decimals)) > 1e-6  # 2.5
    return f"{value:,.{decimals}f}"


class Linear:
    def __init__(self, low, high, begin, end, step):
        """`step`: from one written value to the next."""
        self.low, self.high, self.begin, self.end, self.step = low, high, begin, end, step

    def at(self, value):
        return self.begin + (value - self.low) / (self.high - self.low) * (self.end - self.begin)

    def ticks(self):
        first = math.ceil(self.low / self.step - 1e-9)
        last = math.floor(self.high / self.step + 1e-9)
        return [(i * self.step, tick_text(i * self.step, self.step)) for i in range(first, last + 1)]


class Log:
    """Of values above 0."""

    def __init__(self, low, high, begin, end):
        self.low, self.high, self.begin, self.end = low, high, begin, end

    def at(self, value):
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.begin + share * (self.end - self.begin)

    def ticks(self):
        """Powers of ten, with few of them some of what lies between two, with very many not each."""
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        spread = math.log10(self.high / self.low)
        factors = (1, 1.5, 2, 3, 4, 6, 8) if spread < 1.2 else (1, 2, 5) if spread < 2.5 else (1,)
        stride = max(1, (last - first) // 6)
        values = [factor * 10.0**power for power in range(first, last + 1, stride) for factor in factors]
        return [(v, f"{v:g}") for v in values if self.low * 0.999 <= v <= self.high * 1.001]


def over(values, begin, end, count=5, from_zero=False, log=False):
    """A scale whose ends hold all values (finite ones, at least one), a little apart or on a round number."""
    low, high = min(values), max(values)
    if log:
        return Log(low / 1.15, high * 1.15, begin, end)
    if from_zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        room = 0.05 * abs(high) or 1.0
        low, high = (low, high + room) if from_zero else (low - room, high + room)
    step = round_step(high - low, count)
    return Linear(math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step, begin, end, step)
