"""One run, one folder: who may write there, what is never replaced, what a resumed run must keep, which checkpoint counts.

.venv/bin/python tests/faults/run_folder_test.py [BUILD_FOLDER]
"""

import hashlib
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from tiny_run import TinyRun, program

SMALL = {"train.steps": 4, "checkpoint.every_steps": 2, "adapter.targets": "[attention]", "mtp.loss_weight": 0}


def snapshot(folder):
    """{path: what it is} of all below a folder, times of change included."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        # A lock that comes and goes changes the folder that it lies in, not what is there.
        found[str(path.relative_to(folder))] = (content, status.st_mtime_ns if path.is_file() else 0)
    return found


def moetune(*words, expect=0):
    result = subprocess.run([program(), *map(str, words)], capture_output=True, text=True, timeout=60)
    assert result.returncode == expect, f"exit code {result.returncode}, expected {expect}: {result.stderr}"
    return result.stdout + result.stderr


class RunFolderTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        """A finished run, copied by each test that needs one."""
        cls.root = pathlib.Path(tempfile.mkdtemp())
        cls.addClassCleanup(shutil.rmtree, cls.root)
        cls.finished = TinyRun(cls.root / "finished", **SMALL)
        cls.finished.finish()

    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)

    def copy(self, **changes):
        run = TinyRun(self.folder / "copy", **SMALL | changes)
        shutil.rmtree(run.folder / "run", ignore_errors=True)
        shutil.copytree(self.finished.folder / "run", run.folder / "run")
        return run

    def refuse(self, run, *parts, resume=True, expect=2):
        """Exit code 2, the parts in the message, and not a byte of the folder changed."""
        before = snapshot(run.folder / "run")
        output = run.finish(resume=resume, expect=expect)
        for part in parts:
            self.assertIn(part, output)
        self.assertEqual(snapshot(run.folder / "run"), before)
        return output

    def test_second_run_is_refused(self):
        run = TinyRun(self.folder / "run", **SMALL | {"train.steps": 4000})
        process = run.start()
        run.wait_for_step(3, process)
        lock = json.loads((run.folder / "run" / "run.lock").read_text())
        self.assertEqual((lock["host"], lock["pid"]), (socket.gethostname(), process.pid))
        for resume in (False, True):
            output = run.finish(resume=resume, expect=2)
            self.assertIn(f'process {process.pid} on host "{socket.gethostname()}", since 20', output)
        # Reading is allowed, also of a run that goes on.
        self.assertIn(f"running: process {process.pid}", moetune("inspect", run.folder / "run"))
        moetune("export", run.folder / "run", "--to", self.folder / "adapter")
        self.assertIsNone(process.poll())
        process.send_signal(signal.SIGKILL)
        process.communicate()
        # A killed run resumes at once, the lock of its process being dead.
        run.values["train.steps"] = max(run.losses()) + 2
        begin = time.time()
        self.assertIn("took over the lock", run.finish(resume=True))
        self.assertLess(time.time() - begin, 30)
        self.assertFalse((run.folder / "run" / "run.lock").exists())

    def test_lock_of_another_host(self):
        run = self.copy()
        lock = {"format": "moetune-run-lock-1", "host": "elsewhere", "boot": "b", "pid_namespace": "n", "pid": 17}
        lock |= {"started": 1, "since": int(time.time()) - 99, "heartbeat": int(time.time()), "token": "ab"}
        path = run.folder / "run" / "run.lock"
        path.write_text(json.dumps(lock))
        self.refuse(run, 'process 17 on host "elsewhere"')
        os.utime(path, (time.time() - 61, time.time() - 61))
        self.assertIn("took over the lock", run.finish(resume=True))

    def test_two_at_the_same_instant(self):
        runs = [TinyRun(self.folder / "run", **SMALL) for _ in range(2)]
        for process in [run.start() for run in runs]:
            process.communicate(timeout=120)
            runs.append(process.returncode)
        self.assertEqual(sorted(runs[2:]), [0, 2])
        self.assertEqual(sorted(runs[0].losses()), [1, 2, 3, 4])

    def test_fresh_run_into_a_used_folder(self):
        def without_log(run):
            (run.folder / "run" / "log.jsonl").unlink()

        def only_a_copy(run):
            without_log(run)
            run.checkpoints()[0].rename(run.folder / "run" / "checkpoints" / "step-best")
            for path in run.checkpoints():
                if path.name != "step-best":
                    shutil.rmtree(path)

        def only_a_damaged_one(run):
            without_log(run)
            for path in run.checkpoints():
                (path / "manifest.json").unlink()

        def only_the_log(run):
            shutil.rmtree(run.folder / "run" / "checkpoints")

        for change in (lambda run: None, without_log, only_a_copy, only_a_damaged_one, only_the_log):
            with self.subTest(change=change.__name__):
                run = self.copy()
                change(run)
                self.refuse(run, "holds a run already", "--resume", resume=False)

    def test_files_of_the_user_stay(self):
        own = {
            "recipe.yaml": "run: {dir: mine}\n",
            "log.jsonl": "my own log\n",
            "tensorboard": "a file",
            "checkpoints": "a file",
        }
        for name, text in own.items():
            with self.subTest(name=name):
                run = TinyRun(self.folder / name, **SMALL)
                (run.folder / "run").mkdir()
                (run.folder / "run" / name).write_text(text)
                self.refuse(run, f"run/{name}", resume=True)
                self.refuse(run, f"run/{name}" if name != "log.jsonl" else "run", resume=False)
        with self.subTest("a recipe.yaml that was edited in the run folder"):
            run = self.copy()
            path = run.folder / "run" / "recipe.yaml"
            path.write_text(path.read_text().replace("lr: 0.01", "lr: 0.02"))
            self.refuse(run, "run/recipe.yaml", "changed since")
        with self.subTest("a link"):
            run = self.copy()
            (run.folder / "run" / "log.jsonl").rename(run.folder / "log.jsonl")
            (run.folder / "run" / "log.jsonl").symlink_to(run.folder / "log.jsonl")
            self.refuse(run, "run/log.jsonl", "symbolic link")
        with self.subTest("a pipe"):
            run = self.copy()
            (run.folder / "run" / "log.jsonl").unlink()
            os.mkfifo(run.folder / "run" / "log.jsonl")
            self.assertIn("no regular file", run.finish(resume=True, expect=2))
            self.assertIn("not a regular file", moetune("inspect", run.folder / "run", expect=2))

    def test_run_dir_below_a_file(self):
        run = TinyRun(self.folder / "run", **SMALL)
        (run.folder / "file").write_text("")
        run.values["run.dir"] = str(run.folder / "file" / "run")
        self.assertIn("run.dir", run.finish(expect=2))

    def test_resume_with_another_recipe(self):
        refused = {
            "adapter.alpha": (16, "8.0 then, 16.0 now"),
            "adapter.rslora": ("true", "false then, true now"),
            "adapter.dropout": (0.5, "0.1 then, 0.5 now"),
            "adapter.rank": (8, "4 then, 8 now"),
            "adapter.targets": ("[experts]", "[attention] then, [experts] now"),
            "data.packing": ("false", "true then, false now"),
            "data.shuffle": ("false", "true then, false now"),
            "data.max_tokens": (63, "64 then, 63 now"),
            "run.seed": (18, "17 then, 18 now"),
            "model.base": ("bf16", "nf4 then, bf16 now"),
            "train.batch": (3, "4 then, 3 now"),
            "router.bias": ("frozen", "update then, frozen now"),
        }
        # All in one message; then a few alone, since one might hide another.
        run = self.copy(**{key: value for key, (value, _) in refused.items()})
        self.refuse(run, *(f"{key}: {text}" for key, (_, text) in refused.items()))
        for key in ("adapter.alpha", "data.shuffle"):
            with self.subTest(key=key):
                run = self.copy(**{key: refused[key][0]})
                self.refuse(run, f"{key}: {refused[key][1]}")

    def test_resume_with_another_model(self):
        run = self.copy()
        path = run.folder / "model" / "config.json"
        config = json.loads(path.read_text())
        path.write_text(json.dumps(config | {"routed_scaling_factor": 1.5}))
        self.refuse(run, "model/config.json: routed_scaling_factor: 2.5 then, 1.5 now")
        path.write_text(json.dumps(config | {"transformers_version": "9"}))
        run.finish(resume=True)

    def test_what_may_change_is_listed(self):
        changed = {"train.steps": (6, "4", "6"), "train.optimizer.lr": (0.02, "0.01", "0.02")}
        changed |= {"checkpoint.every_steps": (3, "2", "3"), "train.schedule.kind": ("linear", "cosine", "linear")}
        run = self.copy()
        run.values |= {key: value for key, (value, _, _) in changed.items()}
        output = run.finish(resume=True)
        listed = run.lines("start")[-1]["changed"]
        for key, (_, then, now) in changed.items():
            self.assertIn(f"{key}: {then} before, {now} now", output)
            self.assertEqual(listed.pop(key), [then, now])
        self.assertEqual(set(listed), {"run.dir", "model.path", "data.train"}, "the copy lies elsewhere")
        self.assertEqual(sorted(run.losses()), [1, 2, 3, 4, 5, 6])

    def test_damaged_checkpoints(self):
        def another_step(checkpoint):
            text = (checkpoint / "manifest.json").read_text()
            (checkpoint / "manifest.json").write_text(text.replace('"step": 4', '"step": 5'))

        def pipe(checkpoint):
            (checkpoint / "manifest.json").unlink()
            os.mkfifo(checkpoint / "manifest.json")

        def huge(checkpoint):
            os.truncate(checkpoint / "manifest.json", 1 << 40)

        def wrong_type(checkpoint):
            (checkpoint / "manifest.json").write_text('{"format": "moetune-checkpoint-2", "step": []}')

        def recipe(checkpoint):
            data = bytearray((checkpoint / "recipe.yaml").read_bytes())
            data[-2] ^= 1
            (checkpoint / "recipe.yaml").write_bytes(data)

        for damage in (another_step, pipe, huge, wrong_type, recipe):
            with self.subTest(damage=damage.__name__):
                run = self.copy()
                newest = run.checkpoints()[-1]
                damage(newest)
                self.assertIn("damaged", moetune("inspect", newest, expect=2))
                self.assertIn("damaged", moetune("inspect", run.folder / "run", expect=2))
                moetune("export", newest, "--to", self.folder / "none", expect=2)
                output = run.finish(resume=True)
                self.assertIn("step-00000004 is damaged", output)
                self.assertIn("resumed from", output)
                self.assertEqual(run.state(), self.finished.state())
                self.assertIn("whole", moetune("inspect", run.folder / "run"))

    def test_copies_are_not_checkpoints(self):
        run = self.copy()
        oldest, newest = run.checkpoints()
        copies = [newest.with_name("step-best"), newest.with_name("step-00000006-keep")]
        for copy in copies:
            shutil.copytree(newest, copy)
        shutil.rmtree(newest)
        before = [snapshot(copy) for copy in copies]
        run.values["checkpoint.keep_last"] = 1
        self.assertIn(f"resumed from {oldest}", run.finish(resume=True))
        self.assertEqual([snapshot(copy) for copy in copies], before)
        self.assertFalse(oldest.exists())
        moetune("export", copies[0], "--to", self.folder / "adapter")

    def test_leftovers_go(self):
        run = self.copy()
        folder = run.folder / "run"
        left = ["recipe.yaml.tmp-17", "run.lock.tmp-0a", "run.lock.after-0b", "checkpoints/manifest.json.tmp-3"]
        kept = ["notes.tmp-1", "checkpoints/.saving-mine"]
        for name in left + kept:
            (folder / name).write_text("")
        for name in ("checkpoints/.saving-step-00000004-ab", "checkpoints/.removing-step-00000001"):
            (folder / name).mkdir()
            left.append(name)
        run.finish(resume=True)
        self.assertEqual([name for name in left if (folder / name).exists()], [])
        self.assertEqual([name for name in kept if (folder / name).exists()], kept)

    def test_the_best_is_kept(self):
        settings = SMALL | {"train.steps": 30, "checkpoint.every_steps": 7, "checkpoint.keep_best": "true"}
        settings |= {"eval.every_steps": 2, "train.optimizer.lr": 0.1, "checkpoint.keep_last": 1}
        settings |= {"train.schedule.kind": "constant"}

        def make(name, **changes):
            run = TinyRun(self.folder / name, **settings | changes)
            run.values["data.eval"] = str(run.folder / "heldout.jsonl")
            lines = (run.folder / "train.jsonl").read_text().splitlines(keepends=True)
            (run.folder / "heldout.jsonl").write_text("".join(lines[:4]))
            return run

        whole = make("whole")
        whole.finish()
        losses = {line["step"]: line["loss"] for line in whole.lines("eval")}
        best = min(losses, key=losses.get)
        self.assertNotIn(best, (30, 7, 14, 21, 28), "the test needs a best step that is not kept anyway")
        self.assertEqual([path.name for path in whole.checkpoints()], [f"step-{best:08d}", "step-00000030"])
        text = moetune("inspect", whole.folder / "run")
        self.assertIn(f"best so far: step {best}, held-out loss ", text)
        moetune("export", whole.checkpoints()[0], "--to", self.folder / "best")
        self.assertEqual(json.loads((self.folder / "best" / "moetune_export.json").read_text())["step"], best)
        # Ended behind the best step, and resumed: it is known, and stays.
        resumed = make("resumed", **{"train.steps": best + 1})
        resumed.finish()
        resumed.values["train.steps"] = 30
        resumed.finish(resume=True)
        self.assertEqual([path.name for path in resumed.checkpoints()], [path.name for path in whole.checkpoints()])
        # Three are kept where three are asked for, and the first of them is what --best takes.
        three = make("three", **{"checkpoint.keep_best": 3})
        three.finish()
        ranked = sorted(losses, key=losses.get)[:3]
        self.assertEqual(sorted(int(path.name[5:]) for path in three.checkpoints()), sorted({*ranked, 30}))
        text = moetune("inspect", three.folder / "run")
        for step in ranked:
            self.assertIn(f"step {step}, held-out loss ", text)
        moetune("export", three.folder / "run", "--best", "--to", self.folder / "best of three")
        self.assertEqual(json.loads((self.folder / "best of three" / "moetune_export.json").read_text())["step"], best)
        self.assertEqual([line["step"] for line in three.lines("eval") if line["best"]][-1], best)
        # Over other held-out data another loss counts.
        resumed.values |= {"train.steps": 31, "eval.max_sequences": 1}
        self.assertIn("no longer counts: it was evaluated on other data", resumed.finish(resume=True))


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], "-v"])
