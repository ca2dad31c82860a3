"""Pages of plans: their numbers are those of the file, counted here anew; a damaged file is one clear error."""

import copy
import json
import random
import re
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

from sound_page import sound_tree, words_of
from synthetic import in_stages, plan

from draw import plan_page
from draw.errors import UserError

DRAW = Path(__file__).resolve().parents[2] / "scripts" / "draw"


def _leaves(value, path=()):
    """Places of everything in a file: (keys and indexes)."""
    yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from _leaves(inner, (*path, key))


def _changed(whole, path, value):
    if not path:
        return value
    changed = copy.deepcopy(whole)
    at = changed
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return changed


class PlanPageTest(unittest.TestCase):
    def setUp(self):
        self.folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)

    def page(self, content):
        path = self.folder / "plan.json"
        path.write_text(json.dumps(content))
        text = plan_page.draw([str(path)])
        self.tree = sound_tree(self, text)
        self.text = words_of(self.tree)
        return text

    def charts(self, label):
        return [s for s in self.tree.iter("svg") if s.get("aria-label", "").startswith(label)]

    def widths(self, chart):
        """{what is said under the pointer, up to the colon: width of the bars}"""
        widths = {}
        for bar in chart.iter("rect"):
            name = bar.find("title").text.split(":")[0]
            widths[name] = widths.get(name, 0.0) + float(bar.get("width"))
        return widths

    def test_one(self):
        whole = plan()
        self.page(whole)
        for said in (
            "A-Model on 2 x H200",
            "a_type · 30.0 B parameters, 3.00 B active a token · adapters of 12.3 M parameters train",
            "mesh dp 1 ep 2 tp 1 · 7200 documents of 4000 tokens",
            "65.0 GiB of 80.0 GiB",
            "2.00 s 1.50 to 3.00 s",
            "8,000 4,000 a rank",
            "1 h 07 min",
            "52 min 30 s to 1 h 37 min",
            "1,800 of 4 x 4,096 tokens",
            "$12 $0.43 a M tokens",
            "2.25 GPU-hours at $5.56: a table, https://prices.example",
            "Not measured on the machine that is planned for",
            "4.25 TB/s moetune bench, <here>",
            "small_blocks 2.21 k blocks/s",
            "all_gather 320 GB/s",
            "all_gather.small 41.5 k collectives/s",
            "641 TFLOP/s",
            "3.50 B numbers/s",
        ):
            self.assertIn(said, self.text)
        self.assertNotIn("does not fit", self.text)
        self.assertNotIn("evaluations", self.text)

    def test_memory(self):
        """A phase holds what is held always and the largest of a step's phases, to scale against the limit."""
        self.page(plan())
        (chart,) = self.charts("Memory of a GPU")
        self.assertEqual(chart.get("aria-label"), "Memory of a GPU: 65.0 GiB of 80.0 GiB")
        words = " ".join(t.text for t in chart.iter("text"))
        for said in ("loading", "a step", "61.0 GiB", "65.0 GiB", "limit 80.0 GiB"):
            self.assertIn(said, words)
        widths = self.widths(chart)
        self.assertNotIn("head", widths)  # the block's way up is larger
        self.assertAlmostEqual(widths["frozen experts"] / widths["one block, way up"], 2 * 60 / 5, delta=0.1)
        (host,) = self.charts("Host memory of a rank")
        self.assertIn("limit 100 GiB", " ".join(t.text for t in host.iter("text")))
        self.assertIn("<1024> rows", self.text)

    def test_does_not_fit(self):
        self.page(plan(host_limit=6 << 30))
        self.assertIn("It does not fit: host memory lacks 2.00 GiB.", self.text)
        self.assertIn("It would fit with train.batch=2", self.text)
        self.assertIn("It would fit with --host-memory 10", self.text)
        self.assertIn("8.00 GiB, 2.00 GiB too many", self.text)
        without = plan(host_limit=6 << 30)
        without["changes_to_fit"] = []
        self.page(without)
        self.assertIn("No small change was found with which it would.", self.text)

    def test_time(self):
        whole = plan()
        self.page(whole)
        (chart,) = self.charts("Parts of a step's time")
        words = " ".join(t.text for t in chart.iter("text"))
        for part in whole["time"]["parts"]:
            self.assertIn(part["name"], words)
        self.assertIn("1.25 s (62.5% of the step)", re.sub(r" +", " ", words))
        self.assertIn("400 ms (250 ms exposed, 12.5% of the step)", re.sub(r" +", " ", words))
        self.assertIn("200 ms (hidden)", re.sub(r" +", " ", words))
        solid = sum(float(b.get("width")) for b in chart.iter("rect") if "predicted" not in b.get("class"))
        faint = sum(float(b.get("width")) for b in chart.iter("rect") if "predicted" in b.get("class"))
        self.assertAlmostEqual(solid / faint, 2.0 / 0.35, delta=0.1)

    def test_lanes(self):
        """Each lane is busy as long as its spans, and what passes the end of a step lies under its beginning."""
        whole = plan()
        self.page(whole)
        (chart,) = self.charts("What each lane does in a step")
        axis = max(float(r.get("d").split("L")[1].split()[0]) for r in chart.iter("path") if r.get("class") == "axis")
        pixel_s = whole["time"]["step_s"]["expected"] / (axis - 78)
        by_lane = {}
        for bar in chart.iter("rect"):
            by_lane.setdefault(bar.get("y"), []).append((float(bar.get("x")), float(bar.get("width"))))
        for lane, bars in zip(("compute", "copy", "network", "host"), (by_lane[y] for y in sorted(by_lane, key=float))):
            busy = sum(end - begin for of, _, begin, end in whole["time"]["spans"] if of == lane)
            self.assertAlmostEqual(sum(width for _, width in bars) * pixel_s, busy, delta=0.02, msg=lane)
        self.assertEqual(min(x for x, _ in by_lane[max(by_lane, key=float)]), 78.0)
        self.assertIn("way down", " ".join(t.text for t in chart.iter("text")))
        (around,) = self.charts("The same around the turn")
        names = {t.text for t in around.iter("text")}
        self.assertTrue({"down 5", "down 7", "head", "up 7", "up 5"} <= names, names)
        self.assertNotIn("down 4", names)

    def test_stages(self):
        """A row a stage: its boxes are as long as its passes, what is left is idle, and both fill the step."""
        self.page(plan())
        self.assertEqual(self.charts("Which stage has which group"), [])
        whole = in_stages(plan(), stages=4, groups=12, wait_s=0.5)
        self.page(whole)
        (chart,) = self.charts("Which stage has which group")
        pipeline = whole["time"]["pipeline"]
        self.assertAlmostEqual(pipeline["step_s"], 0.5 + 15 * 0.3)
        self.assertIn("The bubble is 20 % of the time, (P - 1) / (G + P - 1) of 4 stages and 12 groups.", self.text)
        rows = {}
        for bar in chart.iter("rect"):
            rows.setdefault(float(bar.get("y")), []).append(bar)
        self.assertEqual(len(rows), 4)
        axis = max(float(r.get("d").split("L")[1].split()[0]) for r in chart.iter("path") if r.get("class") == "axis")
        pixel_s = pipeline["step_s"] / (axis - 150)
        for place, (_, bars) in enumerate(sorted(rows.items())):
            lengths = {}
            for bar in bars:
                kind = bar.get("class")
                lengths[kind] = lengths.get(kind, 0.0) + float(bar.get("width")) * pixel_s
            self.assertAlmostEqual(lengths["bar s0"], 12 * 0.1, delta=0.06)
            self.assertAlmostEqual(lengths["bar s1"], 12 * 0.2, delta=0.06)
            self.assertAlmostEqual(lengths["bar s7 predicted"], 3 * 0.3 + (0.5 if place else 0.0), delta=0.06)
            self.assertAlmostEqual(lengths.get("bar s5", 0.0), 0.0 if place else 0.5, delta=0.01)
        said = " ".join(t.text for t in chart.iter("text"))
        self.assertIn("stage 0, idle 18 %", said)  # 0.9 of 5 s
        self.assertIn("stage 3, idle 28 %", said)
        (onset,) = self.charts("The same at the beginning")
        links = [path for path in onset.iter("path") if path.get("class") == "link"]
        until = sorted(end for _, way, _, end, *_ in pipeline["stages"][0]["passes"] if way == "up")[1]
        arrivals = [one[5] for stage in pipeline["stages"] for one in stage["passes"] if 0 < one[5] <= until]
        self.assertEqual(len(links), len(arrivals))

    def test_run(self):
        whole = plan()
        self.page(whole)
        (chart,) = self.charts("The run")
        widths = self.widths(chart)
        self.assertEqual(set(widths), {"steps", "loading", "saving"})
        self.assertAlmostEqual(widths["steps"] / widths["loading"], 1800 * 2.0 / 400, delta=0.1)
        run = whole["run"]
        self.assertAlmostEqual(run["steps"] * 2.0 + run["load_s"] + run["save_s"], 3600 * run["hours"])

    def test_several(self):
        plans = [
            plan(gpus=8, dollars=40.0),
            plan(gpus=4, machine="h100", dollars=9.0),
            plan(gpus=1, dollars=5.0, host_limit=1),
        ]
        self.page({"plans": plans})
        table = next(t for t in self.tree.iter("table") if t.get("class") == "figures")
        rows = [["|".join(cell.itertext()) for cell in row] for row in table.find("tbody")]
        self.assertEqual([row[0].split("|")[0] for row in rows], ["4 x H100", "8 x H200", "1 x H200"])
        self.assertEqual([row[-1].split("|")[0] for row in rows], ["$9.00", "$40", "$5.00"])
        self.assertIn("1 x H200 does not fit.", self.text)
        folded = [d.find("summary").text for d in self.tree.iter("details") if "x H" in d.find("summary").text]
        self.assertEqual(folded, ["4 x H100, dp 1 ep 4 tp 1", "8 x H200, dp 1 ep 8 tp 1", "1 x H200, dp 1 ep 1 tp 1"])
        (cost,) = self.charts("Cost of the run")
        bars = [float(bar.get("width")) for bar in cost.iter("rect")]
        self.assertAlmostEqual(bars[1] / bars[0], 40 / 9, delta=0.1)
        whiskers = [path.find("title").text for path in cost.iter("path") if path.get("class") == "range"]
        self.assertEqual(whiskers[1], f"${40 * 0.875 / 1.125:.0f} to ${40 * 1.625 / 1.125:.0f}")
        self.assertEqual(len(self.charts("What each lane does in a step")), 3)

    def test_without_prices(self):
        self.page({"plans": [plan(dollars=None), plan(dollars=None, gpus=4)]})
        self.assertEqual(self.charts("Cost of the run"), [])
        self.assertIn("no price", self.text)

    def test_nothing_in_it(self):
        for content, said in (
            ({"plans": []}, "there is no plan in it"),
            ([], "is \\[\\], must be an object"),
            ({}, 'there is no "model"'),
            ({"plans": {}}, "plans: is {}, must be a list"),
        ):
            with self.assertRaisesRegex(UserError, said):
                self.page(content)

    def test_places_of_mistakes(self):
        for path, value, said in (
            (("memory", "parts", 1, "bytes"), -1, r"plan.json: memory: parts\[1\]: bytes: is -1, must be a number"),
            (("memory", "parts", 0, "where"), "there", "where: is .there., must be one of host, device"),
            (("time", "spans", 3, 0), "lane", r"spans\[3\]\[0\]: is .lane., must be one of compute"),
            (("time", "spans", 3, 3), 0.0, "must be a span that ends behind its begin"),
            (("time", "step_s", "expected"), 0, "must be above 0"),
            (("machine", "figures", "device_copy"), 7, "device_copy: is 7, must be an object"),
            (("time", "pipeline", "stages", 0, "passes", 1, 1), "left", "is .left., must be one of down, up"),
            (("time", "pipeline", "stages", 0, "passes", 1, 3), 1e9, "must be a pass within the step"),
            (("time", "pipeline", "stages", 1, "passes"), [], "with passes"),
            (("time", "pipeline", "bubble"), 2, "must be a share of 1"),
        ):
            with self.assertRaisesRegex(UserError, said):
                self.page(_changed(in_stages(plan()), path, value))

    def test_any_value_anywhere(self):
        """A page that is sound, or an error that names the file."""
        whole = in_stages(plan(), groups=1)
        wrong = [None, True, -3, 0, 2**70, 10**400, 1e308, 1e30, 5e-324, "text", "<\0&", [], {}, [[1]], {"a": [1, 2]}]
        draw = random.Random(5)
        for path in _leaves(whole):
            for value in draw.sample(wrong, 4):
                try:
                    self.page(_changed(whole, path, value))
                except UserError as error:
                    self.assertIn("plan.json", str(error))

    def test_damaged_bytes(self):
        data = json.dumps(plan()).encode()
        draw, path = random.Random(6), self.folder / "plan.json"
        for _ in range(200):
            at = draw.randrange(len(data))
            piece = draw.choice([b"\0", b"\xff", b"null", b"1e400", b"NaN", b"[", b'"', b"9" * 400, b"[" * 100000])
            path.write_bytes(data[:at] + piece + data[at + draw.randrange(9) :])
            try:
                sound_tree(self, plan_page.draw([str(path)]))
            except UserError as error:
                self.assertIn(str(path), str(error))

    def test_as_a_program(self):
        path = self.folder / "plan.json"
        path.write_text(json.dumps(plan()))

        def call(*arguments):
            return subprocess.run([sys.executable, str(DRAW), *arguments], capture_output=True, text=True, timeout=60)

        drawn = call("plan", str(path))
        self.assertEqual((drawn.returncode, drawn.stderr), (0, ""))
        self.assertTrue(drawn.stdout.startswith("<!DOCTYPE html>\n<!-- drawn by moetune -->\n"))
        path.write_text("{")
        for arguments in (
            ("plan",),
            ("plan", str(path)),
            ("plan", str(self.folder)),
            ("plan", "not there"),
            ("plan", "a", "b"),
        ):
            failed = call(*arguments)
            self.assertEqual((failed.returncode, failed.stdout), (2, ""), arguments)
            self.assertNotIn("Traceback", failed.stderr)


if __name__ == "__main__":
    unittest.main()
