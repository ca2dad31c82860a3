"""Pages of run folders: their numbers are those of the log, counted here anew; whatever the folder holds, there is a page
or one clear error."""

import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

from sound_page import sound_tree, words_of
from synthetic import end_line, eval_line, receipt, save_line, start_line, step_line, write_run

from draw import run_page
from draw.errors import UserError

DRAW = Path(__file__).resolve().parents[2] / "scripts" / "draw"


class PageTest(unittest.TestCase):
    def setUp(self):
        self.folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)

    def page(self, *arguments):
        """The page, which must be sound, as a tree, and its text."""
        text = run_page.draw([str(a) for a in arguments])
        for remote in ("http:", "https:"):
            self.assertNotIn(remote, text)
        self.tree = sound_tree(self, text)
        self.text = words_of(self.tree)
        return text

    def figures(self):
        """{head: (figure, what stands below)} of each run at the top of the page."""
        table = next(t for t in self.tree.iter("table") if t.get("class") == "figures")
        heads = [cell.text for cell in table.iter("th")]
        rows = []
        for row in table.find("tbody"):
            cells = ["|".join(cell.itertext()) for cell in row]
            rows.append(dict(zip(heads, cells)))
        return rows

    def hover(self, label):
        """The data behind the chart of that name."""
        for svg in self.tree.iter("svg"):
            if svg.get("aria-label", "").startswith(label) and svg.get("data-hover"):
                return json.loads(svg.get("data-hover"))
        raise AssertionError(f"no chart {label}")

    def test_finished(self):
        run = write_run(self.folder / "a run & <more>")
        self.page(run)
        lines = [json.loads(line) for line in (Path(run) / "log.jsonl").read_text().splitlines()]
        steps = [line for line in lines if line["kind"] == "step"]
        evals = [line for line in lines if line["kind"] == "eval"]
        (row,) = self.figures()
        self.assertEqual(row["state"], "finished")
        self.assertEqual(row["steps"], "30|of 30")
        self.assertEqual(row["last loss"], f"{steps[-1]['loss']:.3f}|first {steps[0]['loss']:.3f}")
        best = min(evals, key=lambda line: line["loss"])
        self.assertEqual(
            row["held-out loss"], f"{evals[-1]['loss']:.3f}|best {best['loss']:.3f} at step {best['step']}"
        )
        self.assertEqual(row["tokens"], f"{sum(s['tokens'] for s in steps) / 1000:.1f} k|trained on")
        self.assertEqual(row["tokens/s"], f"{statistics.median(s['tokens_per_s'] for s in steps):,.0f}|median")
        self.assertEqual(row["step"], f"{statistics.median(s['step_s'] for s in steps) * 1000:.0f} ms|median")
        peak = max(s["memory_bytes"] for s in steps) / 2**30
        self.assertEqual(row["peak memory"], f"{peak:.2f} GiB|predicted 3.00 GiB")
        loss = self.hover("Loss, nats")
        self.assertEqual([s["name"] for s in loss["series"]], ["training", "held-out"])
        self.assertEqual(loss["series"][0]["xs"], [s["step"] for s in steps])
        for drawn, logged in zip(loss["series"][0]["ys"], steps):
            self.assertAlmostEqual(drawn, logged["loss"], delta=1e-4 * logged["loss"])
        self.assertEqual(loss["series"][1]["xs"], [e["step"] for e in evals])
        self.assertEqual(self.hover("Gradient norm")["series"][0]["ys"], [s["grad_norm"] for s in steps])
        loads = self.hover("MoE layer")
        self.assertEqual(loads["rows"], ["MoE layer 0", "MoE layer 1", "MoE layer 2"])
        for layer, row in enumerate(loads["values"]):
            self.assertEqual(row, [s["expert_max_over_mean_of_layers"][layer] for s in steps])
        self.assertIn("6 evaluations and saves", self.text)
        self.assertIn("weights loaded in 500 ms", self.text)
        self.assertNotIn("notes", [e.get("class") for e in self.tree.iter("ul")])

    def test_recipe(self):
        self.page(write_run(self.folder / "a"))
        rows = [[c.text or c[0].text for c in row] for row in self.tree.iter("tr") if row.find("td/code") is not None]
        self.assertIn(["train.optimizer.lr", "0.001", "r.yaml:9"], rows)
        self.assertIn(["data.train", '"a: b  # c.jsonl"', "r.yaml:7"], rows)
        self.assertNotIn("train.clip", [row[0] for row in rows])
        self.assertIn("clip: 1.0", self.text)  # of all values
        self.assertIn("Before clipping, which begins at 1.0.", self.text)

    def test_long(self):
        """Curves are thinned, extremes and sums are not lost."""
        lines = [start_line(steps=5000)] + [step_line(s) for s in range(1, 5001)]
        lines[1234]["loss"] = 11.5  # step 1234
        text = self.page(write_run(self.folder / "a", lines))
        loss = self.hover("Loss, nats")["series"]
        self.assertEqual([s["name"] for s in loss], ["training", "training, mean of 125 steps"])
        self.assertLessEqual(len(loss[0]["xs"]), 1010)
        self.assertEqual(dict(zip(loss[0]["xs"], loss[0]["ys"]))[1234], 11.5)
        self.assertEqual((loss[0]["xs"][0], loss[0]["xs"][-1]), (1, 5000))
        loads = self.hover("MoE layer")
        self.assertEqual(loads["columns"][0], "steps 1 to 27")
        first = [line["expert_max_over_mean_of_layers"][2] for line in lines[1:28]]
        self.assertAlmostEqual(loads["values"][2][0], statistics.mean(first), places=3)
        self.assertLess(len(text), 500_000)

    def test_going_on(self):
        lines = [start_line(steps=100)] + [step_line(s, step_s=2.0) for s in range(1, 41)]
        run = write_run(self.folder / "a", lines, tail='{"kind":"step","st')
        self.page(run, "--holder", run, "process 17 on host gpu3")
        (row,) = self.figures()
        self.assertEqual((row["state"], row["steps"]), ("running", "40|of 100"))
        self.assertIn("about 2 min 00 s left", row["time in steps"])
        self.assertIn("process 17 on host gpu3", self.text)
        self.assertIn("the last line is being written and is left out", self.text)
        self.page(run)
        self.assertEqual(self.figures()[0]["state"], "not ended: killed, or stopped")
        self.assertIn("the last line was cut off", self.text)

    def test_resumed(self):
        changed = {"mesh.ep": ["2", "1"], "eval.every_steps": ["50", "25"]}
        lines = [start_line(), *map(step_line, range(1, 11)), save_line(10), end_line(10, signal=15)]
        lines += [start_line(step=10, changed=changed), *map(step_line, range(11, 31)), end_line(30)]
        self.page(write_run(self.folder / "a", lines))
        self.assertIn("resumed from step 10; changed: mesh.ep 2 → 1, eval.every_steps 50 → 25", self.text)
        self.assertIn("stopped by signal 15, saved", self.text)
        self.assertEqual(self.figures()[0]["state"], "finished")
        self.assertEqual(len(self.hover("Loss, nats")["series"][0]["xs"]), 30)
        self.page(write_run(self.folder / "b", lines[:13]))
        self.assertEqual(self.figures()[0]["state"], "stopped by signal 15")
        # Steps that ran again count once, as they ran last.
        lines = [
            start_line(),
            *map(step_line, range(1, 11)),
            start_line(step=5),
            *(step_line(s, loss=1.5) for s in (6, 7)),
        ]
        self.page(write_run(self.folder / "c", lines))
        self.assertEqual(self.hover("Loss, nats")["series"][0]["xs"], [1, 2, 3, 4, 5, 6, 7])
        self.assertEqual(self.figures()[0]["last loss"].split("|")[0], "1.5")

    def test_saved_beside_training(self):
        """The line of a save that steps went on under stands behind them; a best evaluation is said to be one."""
        lines = [start_line(steps=12)] + [step_line(s) for s in range(1, 11)]
        lines.append(eval_line(10) | {"best": True})
        lines += [step_line(11), step_line(12)]
        lines.append(save_line(10) | {"whole_step": 12, "begun_at_s": 5.0, "whole_at_s": 9.0})
        lines.append(save_line(12) | {"whole_step": 12})
        self.page(write_run(self.folder / "a", lines + [end_line(12)]))
        self.assertIn("saved beside training, whole by step 12; it stood still for 125 ms", self.text)
        self.assertIn("saved in 125 ms", self.text)
        self.assertIn("target tokens, the best so far", self.text)
        (row,) = self.figures()
        self.assertEqual(row["steps"], "12|of 12")

    def test_two(self):
        a, b = write_run(self.folder / "a"), write_run(self.folder / "b", steps=20, lr=0.5)
        self.page(a, b, "--holder", b, "process 17")
        rows = self.figures()
        self.assertEqual([row["run"] for row in rows], [f"a|{a}", f"b|{b}"])
        self.assertEqual([row["state"] for row in rows], ["finished", "running"])
        self.assertEqual([row["steps"] for row in rows], ["30|of 30", "20|of 20"])
        series = self.hover("Loss, nats")["series"]
        names = ["a: training", "b: training", "a: held-out", "b: held-out"]
        self.assertEqual([s["name"] for s in series], names)
        self.assertEqual([len(s["xs"]) for s in series], [30, 20, 3, 2])
        table = next(t for t in self.tree.iter("table") if t.get("class") == "recipe")
        differing = [["".join(cell.itertext()) for cell in row] for row in table.find("tbody")]
        self.assertEqual(
            differing, [["run.dir", a, b], ["train.steps", "30", "20"], ["train.optimizer.lr", "0.001", "0.5"]]
        )

    def test_names_tell_runs_apart(self):
        for folders, names in (
            (["runs/a/"], ["runs/a"]),
            (["runs/a", "runs/b"], ["a", "b"]),
            (["x/run", "./y/run/"], ["x/run", "y/run"]),
            (["run", "old/run"], ["run", "old/run"]),
            (["/run", "run"], ["/run", "run"]),
        ):
            self.assertEqual(run_page.told_apart(folders), names)

    def test_receipt(self):
        run = write_run(self.folder / "a")
        self.page(run)
        self.assertIn("2.03 GiB", self.text)  # of the log's steps
        self.assertNotIn("Memory by rank", self.text)
        path = Path(run) / "receipt.json"
        path.write_text(json.dumps(receipt()))
        self.page(run)
        for said in (
            "Memory by rank",
            "5.50 GiB",
            "6.00 GiB",
            "4.00 GiB (always)",
            "240 ms (not calibrated)",
            "135 ms",
        ):
            self.assertIn(said, self.text)
        self.assertIn("95.0 ms (15.0 ms exposed)", self.text)
        chart = next(s for s in self.tree.iter("svg") if s.get("aria-label") == "Memory of the fullest rank")
        bars = {bar.find("title").text: float(bar.get("width")) for bar in chart.iter("rect")}
        self.assertEqual(set(bars), {"predicted: 5.00 GiB", "measured: 6.00 GiB"})
        self.assertAlmostEqual(bars["predicted: 5.00 GiB"] / bars["measured: 6.00 GiB"], 5 / 6, delta=0.01)
        path.write_text(json.dumps(receipt() | {"format": "moetune-receipt-9"}))
        self.page(run)
        self.assertIn("receipt.json is not of the format moetune-receipt-1", self.text)
        self.assertNotIn("Memory by rank", self.text)

    def test_receipts_with_anything_in_them(self):
        run = write_run(self.folder / "a")
        wrong = [None, 7, -1, "many", [], {}, [1], [None, {}], float("nan"), 1e300, True]
        for section in ("memory", "time"):
            for key in (None, *receipt()[section]):
                for value in wrong:
                    whole = receipt()
                    if key is None:
                        whole[section] = value
                    else:
                        whole[section][key] = value
                    (Path(run) / "receipt.json").write_text(json.dumps(whole))
                    self.page(run)

    def test_not_finite(self):
        lines = [start_line(), *map(step_line, range(1, 21))]
        for step in (7, 8):
            lines[step] |= {"loss": None, "grad_norm": float("nan")}
        self.page(write_run(self.folder / "a", lines))
        self.assertIn("the loss of 2 steps is not finite: 7, 8", self.text)
        loss = self.hover("Loss, nats")["series"][0]
        self.assertEqual([x for x, y in zip(loss["xs"], loss["ys"]) if y is None], [7, 8])
        # The curve is in two parts.
        line = next(p for p in self.tree.iter("path") if p.get("class") == "line s0")
        self.assertEqual(line.get("d").count("M"), 2)
        for line in lines[1:]:
            line["loss"] = float("inf")
        self.page(write_run(self.folder / "b", lines))
        self.assertEqual(self.figures()[0]["last loss"], "–")
        self.assertNotIn("Loss, nats", self.text)

    def test_without_steps(self):
        self.page(write_run(self.folder / "a", [start_line()]))
        self.assertIn("No step has been done yet.", self.text)
        self.page(write_run(self.folder / "b", [start_line(), eval_line(0)]))
        self.assertIn("held-out loss 8.1", self.text)
        self.page(write_run(self.folder / "c", []))
        self.assertEqual(self.figures()[0]["state"], "not begun")
        self.page(write_run(self.folder / "d", [start_line(), step_line(1)]))
        (self.folder / "d" / "recipe.yaml").unlink()
        self.page(self.folder / "d", self.folder / "a")

    def test_what_is_no_run(self):
        (self.folder / "file").write_text("")
        (self.folder / "folder").mkdir()
        linked = Path(write_run(self.folder / "linked"))
        (linked / "log.jsonl").rename(self.folder / "elsewhere")
        (linked / "log.jsonl").symlink_to(self.folder / "elsewhere")
        piped = self.folder / "piped"
        piped.mkdir()
        os.mkfifo(piped / "log.jsonl")
        for name, said in (
            ("nothing", "is no folder"),
            ("file", "is no folder"),
            ("folder", "has no log.jsonl"),
            ("linked", "is no regular file"),
            ("piped", "is no regular file"),
        ):
            with self.assertRaisesRegex(UserError, said):
                self.page(self.folder / name)
        run = write_run(self.folder / "a")
        with self.assertRaisesRegex(UserError, "beside itself"):
            self.page(run, f"{run}/../a")
        with self.assertRaisesRegex(UserError, "3 runs given"):
            self.page(run, run, run)

    def test_damaged(self):
        """Bytes changed, taken out and put in, lines of other types: always a page that is sound."""
        run = Path(write_run(self.folder / "a"))
        (run / "receipt.json").write_text(json.dumps(receipt()))
        files = {name: (run / name).read_bytes() for name in ("log.jsonl", "recipe.yaml", "receipt.json")}
        draw = random.Random(11)
        pieces = [
            b"\0",
            b"\xff\xfe",
            b"null",
            b"-1",
            b"1e400",
            b"NaN",
            b"[]",
            b"{}",
            b'"',
            b"\n",
            b"9" * 400,
            b"[" * 2000,
        ]
        for _ in range(60):
            for name, data in files.items():
                for _ in range(draw.randrange(4)):
                    at = draw.randrange(len(data))
                    data = data[:at] + draw.choice([*pieces, b"<]]></script>&"]) + data[at + draw.randrange(9) :]
                (run / name).write_bytes(data)
            self.page(run)

    def test_any_value_under_any_key(self):
        lines = [
            start_line(changed={"a": ["1", "2"]}),
            step_line(1),
            step_line(2),
            eval_line(2),
            save_line(2),
            end_line(2),
        ]
        wrong = [None, True, -3, 2**70, 10**400, 1e308, 5e-324, float("nan"), "text", [], {}, [[1]], {"a": [1, 2, 3]}]
        draw = random.Random(12)
        for index, line in enumerate(lines):
            for key in line:
                for value in draw.sample(wrong, 6):
                    changed = [dict(other) for other in lines]
                    changed[index][key] = value
                    self.page(write_run(self.folder / "a", changed))

    def test_as_a_program(self):
        run = write_run(self.folder / "a")

        def call(*arguments):
            return subprocess.run([sys.executable, str(DRAW), *arguments], capture_output=True, text=True, timeout=60)

        drawn = call("run", run)
        self.assertEqual((drawn.returncode, drawn.stderr), (0, ""))
        self.assertTrue(drawn.stdout.startswith("<!DOCTYPE html>\n<!-- drawn by moetune -->\n"))
        for arguments in ((), ("walk",), ("run",), ("run", run + "\x1b"), ("run", run, "--what")):
            failed = call(*arguments)
            self.assertEqual((failed.returncode, failed.stdout), (2, ""), arguments)
            self.assertNotIn("Traceback", failed.stderr)
            self.assertNotIn("\x1b", failed.stderr)


if __name__ == "__main__":
    unittest.main()
