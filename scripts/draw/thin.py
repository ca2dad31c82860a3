"""Long curves made short: points are (x, y), with y None where there is no finite value.

A curve of a hundred thousand steps is drawn on some hundred pixels. Leaving out every nth step would leave out the one
that stands out, so what is kept of each stretch is its least and its greatest value.
"""

import itertools


def thinned(points, most=1000):
    """At most about `most` of the points, in order: the first, the last, each stretch's extremes and its gaps."""
    if len(points) <= most:
        return points
    stretches = most // 2
    kept = {0, len(points) - 1}
    for i in range(stretches):
        stretch = range(len(points) * i // stretches, len(points) * (i + 1) // stretches)
        finite = [j for j in stretch if points[j][1] is not None]
        if finite:
            kept |= {min(finite, key=lambda j: points[j][1]), max(finite, key=lambda j: points[j][1])}
        if len(finite) < len(stretch):
            kept.add(next(j for j in stretch if points[j][1] is None))
    return [points[j] for j in sorted(kept)]


def running_mean(points, width):
    """The mean of each point and those around it, `width` in all, and fewer towards both ends; those without a value do
    not count."""
    sums = list(itertools.accumulate((y or 0.0 for _, y in points), initial=0.0))
    counts = list(itertools.accumulate((y is not None for _, y in points), initial=0))
    means = []
    for i, (x, y) in enumerate(points):
        begin, end = max(0, i - width // 2), min(len(points), i + width // 2 + 1)
        means.append((x, None if y is None else (sums[end] - sums[begin]) / (counts[end] - counts[begin])))
    return means
