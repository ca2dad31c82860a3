"""What charts are made of: scales, units, thinning; and charts whose places are worked out by hand."""

import re
import unittest
import xml.etree.ElementTree as xml

import synthetic  # noqa: F401  (puts scripts/ on the path)

from draw import scale, units
from draw.bars import Bar, Group, Part, bar_chart
from draw.chart import Series, line_chart, steps_axis
from draw.heat_map import gathered, heat_map
from draw.lanes import Lane, Mark, Span, lanes
from draw.thin import running_mean, thinned


class ScaleTest(unittest.TestCase):
    def test_round_values(self):
        for values, written in (
            ([0, 10], ["0", "2", "4", "6", "8", "10"]),
            ([0.31, 0.74], ["0.3", "0.4", "0.5", "0.6", "0.7", "0.8"]),
            ([0, 0.0015], ["0", "0.0005", "0.0010", "0.0015"]),
            ([1000, 1900], ["1,000", "1,200", "1,400", "1,600", "1,800", "2,000"]),
        ):
            self.assertEqual([text for _, text in scale.over(values, 0, 1).ticks()], written)

    def test_ends_hold_the_values(self):
        for values in ([3, 3], [0, 0], [-5, 2], [1e-9, 2e-9], [1e12, 3e12], [0.1 + 0.2, 0.3]):
            for from_zero in (False, True):
                made = scale.over(values, 200, 0, from_zero=from_zero)
                for value in values:
                    self.assertTrue(-1e-6 <= made.at(value) <= 200 + 1e-6, (values, value))
                self.assertGreaterEqual(len(made.ticks()), 2, values)

    def test_log(self):
        made = scale.over([1, 100], 0, 2, log=True)
        self.assertAlmostEqual(made.at(10), 1.0)
        self.assertEqual([text for _, text in made.ticks()], ["1", "2", "5", "10", "20", "50", "100"])
        self.assertEqual([text for _, text in scale.over([2, 8], 0, 2, log=True).ticks()], ["2", "3", "4", "6", "8"])
        self.assertLessEqual(len(scale.over([1e-30, 1e30], 0, 2, log=True).ticks()), 8)

    def test_steps_are_whole(self):
        for last in (1, 2, 3, 7, 12, 600, 12345):
            values = [value for value, _ in steps_axis(0, last, 0, 1000).ticks()]
            self.assertTrue(all(value == round(value) for value in values), values)
        self.assertEqual([value for value, _ in steps_axis(4, 4, 0, 1000).ticks()], [4])


class UnitsTest(unittest.TestCase):
    def test_words(self):
        for call, value, text in (
            (units.bytes_text, 812, "812 B"),
            (units.bytes_text, 1536, "1.50 KiB"),
            (units.bytes_text, 13 << 30, "13.0 GiB"),
            (units.bytes_text, 113 << 30, "113 GiB"),
            (units.bytes_text, 1023 << 20, "1023 MiB"),
            (units.bytes_text, (1 << 20) - 300, "1.00 MiB"),
            (units.count_text, 999_700, "1.00 M"),
            (units.count_text, 950, "950"),
            (units.count_text, 671e9, "671 B"),
            (units.seconds_text, 0.0742, "74.2 ms"),
            (units.seconds_text, 288.2, "4 min 48 s"),
            (units.seconds_text, 97200, "1 d 03 h"),
            (units.number_text, 4.675189, "4.675"),
            (units.number_text, 25900.4, "25,900"),
            (units.number_text, 3e-5, "3e-05"),
            (units.number_text, 2.0, "2"),
            (units.number_text, None, "–"),
        ):
            self.assertEqual(call(value), text)


class ThinTest(unittest.TestCase):
    def test_extremes_gaps_and_ends_stay(self):
        points = [(i, float(i % 10)) for i in range(100_000)]
        points[31_415], points[27_182], points[50_000] = (31_415, 99.0), (27_182, -99.0), (50_000, None)
        kept = thinned(points, 1000)
        self.assertLessEqual(len(kept), 1010)
        self.assertEqual(kept, sorted(kept, key=lambda p: p[0]))
        for i in (0, 27_182, 31_415, 50_000, 99_999):
            self.assertIn(points[i], kept)
        self.assertEqual(thinned(points[:50]), points[:50])

    def test_running_mean(self):
        self.assertEqual(
            running_mean([(i, float(i)) for i in range(5)], 3), [(0, 0.5), (1, 1), (2, 2), (3, 3), (4, 3.5)]
        )
        self.assertEqual(running_mean([(0, 2.0), (1, None), (2, 4.0)], 3), [(0, 2), (1, None), (2, 4)])


class ChartTest(unittest.TestCase):
    def test_places(self):
        drawn = xml.fromstring(
            line_chart([Series("a", [(0, 0.0), (5, 10.0), (10, 5.0)], "s0")], x="step", width=482, height=234)
        )
        path = next(p for p in drawn.iter("path") if p.get("class") == "line s0").get("d")
        # The plot is 400 wide and 200 high, from (58, 8).
        self.assertEqual(re.findall(r"[\d.]+", path), ["58", "208", "258", "8", "458", "108"])

    def test_nothing_to_draw(self):
        self.assertEqual(line_chart([], x="step"), "")
        self.assertEqual(line_chart([Series("a", [(1, None)], "s0")], x="step"), "")
        self.assertEqual(heat_map([], [], [], (1,), "step", ""), "")
        self.assertEqual(bar_chart([Group("a", [])], units.seconds_text), "")

    def test_heat_map(self):
        columns, values = gathered([1, 2, 3, 4], [[1.0, 3.0, 5.0, None], [None, None, 2.0, 4.0]], most=2)
        self.assertEqual((columns, values), ([(1, 2), (3, 4)], [[2.0, 5.0], [None, 3.0]]))
        drawn = xml.fromstring(heat_map(["0", "1"], columns, values, (2, 4), x="step", unit=""))
        cells = {p.get("class"): p.get("d").count("z") for p in drawn.iter("path") if p.get("class").startswith("h")}
        self.assertEqual(cells, {"h1": 2, "h2": 1})

    def test_bars(self):
        parts = [Part(3.0, "s0", "base"), Part(1.0, "s1", "head")]
        drawn = xml.fromstring(
            bar_chart([Group("a", [Bar(parts), Bar([Part(2.0, "s0")], range=(1, 4))])], units.seconds_text)
        )
        widths = [float(bar.get("width")) for bar in drawn.iter("rect")]
        self.assertAlmostEqual(widths[0] / widths[1], 3, delta=0.01)
        self.assertAlmostEqual(widths[0] + widths[1], 2 * widths[2], delta=0.2)
        self.assertEqual([t.text for t in drawn.iter("text")], ["a", "4.00 s", "2.00 s"])

    def test_lanes(self):
        rows = [Lane("a", spans=[Span(0, 5, "s0", "first")]), Lane("b", marks=[Mark(10, "s1 ring", "second")])]
        drawn = xml.fromstring(lanes(rows, steps_axis(0, 10, 100, 1100), x="step"))
        (bar,), (mark,) = drawn.iter("rect"), drawn.iter("circle")
        self.assertEqual((bar.get("x"), bar.get("width"), mark.get("cx")), ("100", "500", "1100"))
        self.assertGreater(float(mark.get("cy")), float(bar.get("y")) + 14)


if __name__ == "__main__":
    unittest.main()
