"""What a run trains on is what its recipe names: lists, patterns, weights, held-out documents and epochs, end to end.

.venv/bin/python tests/faults/inputs_test.py [BUILD_FOLDER]
"""

import gzip
import json
import math
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "prepare"))
from support import model_folder, small_tokenizer

from tiny_run import CONFIG, TinyRun, program


def tokens(length):
    """A document by which its length tells it from all others."""
    ids = [(7 * length + i) % CONFIG["vocab_size"] for i in range(length)]
    return {"input_ids": ids, "labels": ids}


def lines(lengths):
    return "".join(json.dumps(tokens(n)) + "\n" for n in lengths)


class InputsTest(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)

    def parts(self):
        """A file of five, a pattern of two files with weight 2, a packed array with weight 0.5; as a recipe lists them."""
        data = self.folder / "data"
        data.mkdir(exist_ok=True)
        (data / "a.jsonl").write_text(lines(range(10, 15)))
        (data / "b-1.jsonl").write_text(lines((20, 21)))
        (data / "b-2.jsonl").write_text(lines((22, 23)))
        (data / "c.json.gz").write_bytes(gzip.compress(json.dumps([tokens(n) for n in range(40, 44)]).encode()))
        return f"[{data}/a.jsonl, {{path: '{data}/b-*.jsonl', weight: 2}}, {{path: {data}/c.json.gz, weight: 0.5}}]"

    def run_of(self, name, **changes):
        changes = {"data.packing": "false", "train.steps": "null", "checkpoint.every_steps": 2} | changes
        return TinyRun(self.folder / name, **changes)

    def test_list_pattern_weights_held_out_and_epochs(self):
        changes = {"data.train": self.parts(), "data.eval_split": 0.08, "train.epochs": 4, "eval.every_steps": 3}
        whole = self.run_of("whole", **changes)
        output = whole.finish()
        # One of 13 is held out; its length says which.
        held = {line["target_tokens"] + 1 for line in whole.lines("eval")}
        self.assertEqual(len(held), 1)
        held = held.pop()
        once = [n for n in range(10, 15) if n != held]
        twice = [n for n in range(20, 24) if n != held]
        half = [n for n in range(40, 44) if n != held]
        documents = 4 * len(once) + 8 * len(twice) + 2 * len(half)
        steps = whole.lines("step")
        self.assertEqual(len(steps), math.ceil(documents / 4))
        trained = sum(line["tokens"] for line in steps)
        self.assertEqual(sum(line["tokens"] - line["target_tokens"] for line in steps), documents)
        drawn = trained - 4 * sum(once) - 8 * sum(twice)
        self.assertTrue(2 * len(half) * min(half) <= drawn <= 2 * len(half) * max(half), drawn)
        self.assertEqual(steps[-1]["tokens"] - steps[-1]["target_tokens"], documents % 4 or 4)
        self.assertIn("12 documents", output)
        self.assertIn("1 documents held out", output)

        # A stopped run goes on with the same documents, and holds out the same.
        stopped = self.run_of("stopped", **changes)
        process = stopped.start()
        stopped.wait_for_step(3, process)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
        stopped.finish(resume=True)
        self.assertEqual(stopped.losses(), whole.losses())
        self.assertEqual(stopped.state(), whole.state())
        self.assertEqual(stopped.lines("eval")[-1]["loss"], whole.lines("eval")[-1]["loss"])

        # Another weight is another order of the data.
        stopped.values["data.train"] = changes["data.train"].replace("weight: 2", "weight: 3")
        self.assertIn("the training data had the digest", stopped.finish(resume=True, expect=2))

    def test_five_documents_two_epochs(self):
        data = self.folder / "five.jsonl"
        data.write_text(lines(range(10, 15)))
        for ranks in (1, 2):
            run = self.run_of(f"five on {ranks}", **{"data.train": data, "train.epochs": 2, "mesh.ep": ranks})
            run.finish(ranks)
            steps = run.lines("step")
            self.assertEqual([line["tokens"] - line["target_tokens"] for line in steps], [4, 4, 2])
            self.assertEqual(sum(line["tokens"] for line in steps), 2 * sum(range(10, 15)))

    def test_more_epochs_behind_a_last_step_of_what_was_left(self):
        """That step would have held more: to go on would leave those out for good."""
        data = self.folder / "seven.jsonl"
        data.write_text(lines(range(10, 17)))
        of_four, of_seven = (
            self.run_of(f"batches of {batch}", **{"data.train": data, "train.epochs": 1, "train.batch": batch})
            for batch in (4, 7)
        )
        for run in (of_four, of_seven):
            run.finish()
            run.values["train.epochs"] = 2
        output = of_four.finish(resume=True, expect=2)
        self.assertIn("the run has ended with a step of 3 of 4 sequences, which would be whole now", output)
        self.assertEqual(len(of_four.lines("step")), 2)
        of_seven.finish(resume=True)  # whole steps go on
        self.assertEqual([line["tokens"] for line in of_seven.lines("step")], 2 * [sum(range(10, 17))])

    def test_a_step_that_repeats_documents_is_told(self):
        data = self.folder / "one.jsonl"
        data.write_text(lines([10]))
        told = "train.batch: 64 sequences a step, but the data packs into 1 sequence"
        changes = {"data.train": data, "train.batch": 64}
        output = self.run_of("steps", **changes, **{"train.steps": 1}).finish()
        self.assertIn(told, output)
        self.assertNotIn(told, self.run_of("epoch", **changes, **{"train.epochs": 1}).finish())

    def text_run(self, name, data, **changes):
        run = self.run_of(
            name,
            **{
                "train.steps": 1,
                "adapter.dropout": 0.0,
                "train.batch": 2,
                "model.base": "bf16",
                "eval.at_start": "true",
            }
            | changes,
        )
        model_folder(run.folder / "model", small_tokenizer(("<s>", "</s>")), "<s>", "</s>")
        (run.folder / "model" / "config.json").write_text(json.dumps(CONFIG | {"vocab_size": 640}))
        path = run.folder / "text.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in data))
        run.values |= {"data.train": path, "data.eval": path}
        return run

    def test_weights_of_texts(self):
        """loss = sum of w nll / sum of w: that of both texts follows from those of each alone."""
        one, two = {"text": "the quick brown fox jumps"}, {"text": "naive cafe 12345 numbers; def f(x)"}
        alone = []
        for name, line in (("one", one), ("two", two)):
            run = self.text_run(name, [line, line])
            run.finish()
            alone.append(run.lines("step")[0] | {"eval": run.lines("eval")[0]["loss"]})
        for ranks, mesh in ((1, {}), (2, {"mesh.ep": 2}), (2, {"mesh.tp": 2})):
            with self.subTest(mesh):
                run = self.text_run("both" + "".join(mesh), [one, two | {"weight": 0.25}], **mesh)
                run.finish(ranks)
                both = run.lines("step")[0]
                counts = [line["target_tokens"] / 2 for line in alone]
                self.assertEqual(both["target_tokens"], sum(counts))
                weights = [counts[0], 0.25 * counts[1]]
                # Of every text the MTP module predicts one token less.
                mtp_weights = [counts[0] - 1, 0.25 * (counts[1] - 1)]
                for key, by, got in (
                    ("loss", weights, both["loss"]),
                    ("mtp_loss", mtp_weights, both["mtp_loss"]),
                    ("eval", weights, run.lines("eval")[0]["loss"]),
                ):
                    wanted = sum(w * line[key] for w, line in zip(by, alone)) / sum(by)
                    self.assertAlmostEqual(got, wanted, delta=2e-5 * wanted)
                    self.assertGreater(abs(alone[0][key] - alone[1][key]), 1e-3)

    def test_a_folder_that_cannot_be_written(self):
        run = self.text_run("read only", [{"text": "the quick brown fox"}] * 2)
        (run.folder / ".moetune").write_text("in the way of the folder")
        output = run.finish(expect=2)
        self.assertIn("cannot be written", output)
        self.assertIn("data.cache", output)
        run.values["data.cache"] = run.folder / "elsewhere" / "tokens"
        run.finish()
        self.assertEqual([p.suffix for p in (run.folder / "elsewhere" / "tokens").iterdir()], [".safetensors"])

    def test_validate_and_prepare_follow(self):
        run = self.run_of("checked", **{"data.train": self.parts(), "train.epochs": 1})
        output = subprocess.run(run.arguments("validate"), capture_output=True, text=True)
        self.assertEqual(output.returncode, 0, output.stderr)
        output = subprocess.run(run.arguments("prepare"), capture_output=True, text=True)
        self.assertEqual(output.returncode, 0, output.stderr)
        self.assertEqual(output.stdout.count(" -> "), 4)
        self.assertEqual(output.stdout.count("--- document "), 3)
        for name, told in (
            ("a.jsonl", "format of its first line: input_ids/labels"),
            ("c.json.gz", "gzip-compressed, "),
        ):
            path = self.folder / "data" / name
            output = subprocess.run([program(), "inspect", path], capture_output=True, text=True)
            self.assertEqual(output.returncode, 0, output.stderr)
            self.assertIn(told, output.stdout)
        run.values["data.train"] = "[none.jsonl, 'no/*.jsonl']"
        output = subprocess.run(run.arguments("validate"), capture_output=True, text=True)
        self.assertEqual(output.returncode, 2)
        self.assertIn("data.train: none.jsonl: no such file", output.stderr)
        self.assertIn("data.train: no/*.jsonl: no file matches", output.stderr)


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], "-v"])
