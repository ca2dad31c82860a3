"""However the program is called, it ends as documented: no signal, no exit code 1, no raw control character, and the path
of what was wrong in the message.

.venv/bin/python tests/faults/ends_test.py [BUILD_FOLDER]
"""

import concurrent.futures
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from tiny_run import CONFIG, TinyRun, program

RAW_CONTROL = re.compile(rb"[\x00-\x08\x0b-\x1f\x7f]")


class EndsTest(unittest.TestCase):
    runs = 0

    @classmethod
    def setUpClass(cls):
        cls.folder = pathlib.Path(tempfile.mkdtemp())
        cls.addClassCleanup(shutil.rmtree, cls.folder)
        cls.tiny = TinyRun(cls.folder / "tiny", **{"train.steps": 1, "checkpoint.every_steps": 0})
        cls.recipe = cls.tiny.arguments("train")[2]
        cls.run_folder = cls.folder / "tiny" / "run"
        cls.tiny.finish()

    def call(self, *arguments, **options):
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
        environment = os.environ | {"OMP_NUM_THREADS": "1"} | options.pop("env", {})
        return subprocess.run(
            [str(program()), *arguments],
            timeout=60,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            env=environment,
            **options,
        )

    def check(self, arguments, says="", codes=(2,), **options):
        """The call ends with one of the codes and a message that holds `says`, or one of them."""
        with self.subTest(arguments):
            return self.judge(self.call(*arguments, **options), says, codes)

    def check_all(self, rows):
        """Several calls at a time: (arguments, says) or (arguments, says, codes)."""
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            calls = [(row, pool.submit(self.call, *row[0])) for row in rows]
        for (arguments, says, *codes), call in calls:
            with self.subTest(arguments):
                self.judge(call.result(), says, *codes)

    def judge(self, ended, says, codes=(2,)):
        output = (ended.stdout or b"") + (ended.stderr or b"")
        self.assertIn(ended.returncode, codes, output[-2000:])
        self.assertIsNone(RAW_CONTROL.search(output), output[-2000:])
        output.decode("utf-8")  # whatever bytes a path has
        wanted = [says] if isinstance(says, str) else says
        self.assertTrue(any(text.encode() in output for text in wanted), output[-2000:])
        return output.decode()

    def training(self, *overrides, run=None):
        """The words that train into a folder of its own."""
        self.__class__.runs += 1
        return ["train", self.recipe, f"run.dir={run or self.folder / f'new {self.runs}'}", *overrides]

    def test_words_of_the_command_line(self):
        words = (
            [],
            [""],
            ["nonsense"],
            ["--nonsense"],
            ["train"],
            ["train", "--nonsense", self.recipe],
            ["prepare"],
            ["prepare", self.recipe, "--show", "-1"],
            ["prepare", self.recipe, "--show", "many"],
            ["prepare", self.recipe, "--show"],
            ["validate"],
            ["validate", self.recipe, "--ranks", "99999999999999999999"],
            ["export"],
            ["export", "run"],
            ["export", "run", "--to"],
            ["export", "run", "--to", "x", "--for", "nobody"],
            ["merge", "run"],
            ["logits", "run", "--to", "x"],
            ["inspect"],
            ["inspect", "--svg", "x"],
            ["recipes"],
            ["recipes", "nonsense"],
            ["recipes", "cat"],
            ["recipes", "cp", "quickstart"],
            ["verify-layout"],
            ["verify-layout", self.recipe, "--layout"],
            ["train", "\x1b[31mred", "--\x1b[31m"],
        )
        self.check_all((arguments, "") for arguments in words)
        self.check(["trian", self.recipe], "error: 'trian' is no command")
        self.check(["recipes", "nonsense"], "error: 'nonsense' is no command")

    def test_help_and_version(self):
        self.assertIn("LibTorch 2.", self.check(["--version"], "moetune", codes=(0,)))
        for command in (
            "train",
            "validate",
            "prepare",
            "export",
            "merge",
            "inspect",
            "recipes",
            "verify-layout",
            "logits",
        ):
            self.check([command, "--help"], "Usage", codes=(0,))

    def test_paths(self):
        """Every command, with paths that lead nowhere, to what is no file or no folder, or that hold any byte."""
        file, empty = self.folder / "a file", self.folder / "empty"
        file.write_text("{}")
        empty.mkdir()
        loop = self.folder / "loop"
        loop.symlink_to("loop")
        to = str(self.folder / "to")

        def commands(path):
            return (
                ["train", path],
                ["inspect", path],
                ["export", path, "--to", to],
                ["validate", path],
                ["prepare", path],
                ["verify-layout", path],
                ["inspect", "--mesh", path],
                ["export", path, "--to", to, "--base"],
                ["merge", path, "--to", to],
                ["logits", path, str(file), "--to", to],
                ["recipes", "cat", path],
            )

        rows = []
        for path, says, every in (
            ("", ("empty", "no recipe ''", "does not exist", "neither"), True),
            (str(file / "below"), "a file/below", True),
            (str(empty), "empty", False),
            # What is no UTF-8, and what a terminal would act on.
            ("\udcff\udcfe", "\\xff\\xfe", False),
            ("none", "none", False),
            ("two\nlines \x1b[31m", "lines \\u001b[31m", False),
            (str(loop), "loop", False),
            ("/dev/null", "/dev/null", False),
            ("/proc/self/mem", "/proc/self/mem", False),
            ("x" * 300, "xxx", False),
        ):
            for arguments in commands(path)[: None if every else 3]:
                # Nothing in it is no mistake of a data file.
                reads_it = arguments[0] == "inspect" and path in ("/dev/null", "/proc/self/mem")
                rows.append((arguments, says, (0, 2) if reads_it else (2,)))
        data = str(self.folder / "tiny" / "train.jsonl")
        for path in (str(file / "below"), "/proc/none/x", str(self.folder / ("x" * 300)), "", "/dev/full", "/dev"):
            rows.append((["recipes", "cp", "quickstart", path], ""))
            rows.append((["logits", str(self.run_folder), data, "--to", path], ""))
            rows.append((["inspect", "--mesh", self.recipe, "--svg", path], ""))
            if path != "/dev":
                rows.append((["export", str(self.run_folder), "--to", path], ""))
                rows.append((["merge", str(self.run_folder), "--to", path], ""))
        self.check_all(rows)
        self.assertTrue(pathlib.Path("/dev/full").is_char_device())

    def test_paths_of_a_recipe(self):
        file, folder = self.folder / "plain", self.folder / "folder"
        file.write_text("text")
        folder.mkdir()
        rows = []
        for value in (f"{file}/below", "/proc/none/x", "/dev/null/x", str(file), "/" + "y" * 300):
            rows.append((self.training(run=value), value[-20:]))
        for key, extra in (("data.train", []), ("data.eval", ["eval.every_steps=1"])):
            for value in ("none", str(folder), str(file), f"{file}/below", "/dev/null", "/proc/self/mem", "z" * 300):
                rows.append((self.training(f"{key}={value}", *extra), value[-20:]))
        for value in ("none", str(folder), f"{file}/below", "/dev/null", "/proc/self/mem", "z" * 300):
            rows.append((["prepare", self.recipe, f"data.train={value}"], value[-20:]))
            rows.append((["validate", self.recipe, f"data.train={value}"], "", (0, 2)))
        for key in ("model.path", "adapter.from"):
            for value in ("none", str(folder), str(file), f"{file}/below", "/dev/null", "z" * 300):
                rows.append((self.training(f"{key}={value}"), value[-20:]))
        rows.append((self.training("model.weights=pretrained"), "model"))
        rows.append((self.training("data.train=two\nlines\x1b"), "\\u001b"))
        rows.append((self.training("\x1b[31m=\x1b"), "\\u001b"))
        self.check_all(rows)

    def test_paths_that_are_no_utf8(self):
        """Any byte may stand in a path: names of data, caches, models and adapters are taken as they are."""
        odd = os.fsencode(self.folder) + b"/odd \xff\x80"
        os.mkdir(odd)
        data, model = odd + b"/d.jsonl.txt", odd + b"/model"
        tiny = self.folder / "tiny"
        with open(data, "wb") as file:  # an array goes through a cache
            lines = (tiny / "train.jsonl").read_text().splitlines()
            file.write(("[" + ",".join(lines[:20]) + "]").encode())
        shutil.copytree(os.fsencode(tiny / "model"), model)
        plain = odd + b"/plain.jsonl"
        shutil.copy(tiny / "train.jsonl", plain)
        run = odd + b"/run"
        for number, overrides in enumerate(
            (
                [b"data.train=" + data],
                [b"data.train=" + data, b"data.cache=" + odd + b"/cache"],
                [b"data.train=" + plain, b"data.eval=" + data, b"data.cache=" + odd + b"/cache"],
                [b"model.path=" + model, b"model.cache=" + odd + b"/packed"],
            )
        ):
            to = run + str(number).encode()
            self.check(["train", self.recipe, b"run.dir=" + to, b"train.steps=1", *overrides], "done", codes=(0,))
        self.check(["export", run + b"3", "--to", odd + b"/adapter"], "adapter of step 1", codes=(0,))
        self.check(["inspect", odd + b"/adapter"], "rank", codes=(0,))
        self.check(
            [
                "train",
                self.recipe,
                b"run.dir=" + run + b"from",
                b"adapter.from=" + odd + b"/adapter",
                "train.steps=1",
                "mtp.loss_weight=0",
            ],
            "",
            codes=(0, 2),
        )
        self.check(["merge", run + b"3", "--to", odd + b"/merged"], "", codes=(0, 2))

    def test_files_of_the_user_are_not_replaced(self):
        """By a command that was given a wrong name to write to."""
        mine, data = self.folder / "mine.txt", self.folder / "tiny" / "train.jsonl"
        mine.write_text("mine")
        before = data.read_bytes()
        for path in (mine, data, self.recipe, self.folder / "tiny" / "model" / "config.json"):
            held = pathlib.Path(path).read_bytes()
            self.check(["logits", str(self.run_folder), str(data), "--to", str(path)], "is there already")
            self.check(["inspect", "--mesh", self.recipe, "--svg", str(path)], "is there already")
            self.assertEqual(pathlib.Path(path).read_bytes(), held)
        self.assertEqual(data.read_bytes(), before)
        for again in range(2):
            self.check(["inspect", "--mesh", self.recipe, "--svg", str(self.folder / "m.svg")], "picture", codes=(0,))

    def test_mistakes_are_told_before_weights_are_read(self):
        for override in ("adapter.from=none", "data.eval=none"):
            output = self.check(self.training(override), "none")
            self.assertNotIn("weights:", output)

    def test_files_that_are_no_text(self):
        """Hostile text where JSON or YAML is due."""
        model = self.folder / "hostile model"
        model.mkdir(exist_ok=True)
        texts = (
            b"",
            b"null",
            b"[]",
            b'"text"',
            b"\xff\xfe\x00",
            b"{" * 100_000,
            b"[" * 100_000,
            b'{"a":' * 100_000,
            b"- " * 100_000,
            b'{"model_type": 0}',
            b'{"model_type": "\\u001b[31m"}',
            json.dumps(CONFIG | {"vocab_size": 2**62}).encode(),
            json.dumps(CONFIG | {"hidden_size": 2**40}).encode(),
            json.dumps(CONFIG | {"hidden_size": None}).encode(),
        )
        recipe, data = self.folder / "hostile.yaml", self.folder / "hostile.jsonl"
        for text in texts:
            (model / "config.json").write_bytes(text)
            recipe.write_bytes(text)
            data.write_bytes(text)
            self.check_all(
                (
                    (self.training(f"model.path={model}"), "", (2, 3)),
                    (["inspect", str(model)], "", (0, 2)),
                    (["train", str(recipe)], "hostile.yaml"),
                    (self.training(f"data.train={data}"), "hostile.jsonl"),
                    (["inspect", str(data)], "", (0, 2)),
                )
            )

    def test_standard_output_that_takes_nothing(self):
        full = open("/dev/full", "wb")
        self.addCleanup(full.close)
        for arguments in (["recipes", "docs"], ["--version"], ["validate", self.recipe], ["--help"]):
            self.check(arguments, "standard output", stdout=full)
            self.check(arguments, "standard output", preexec_fn=lambda: os.close(1), stdout=None)
        for arguments in (["recipes", "docs"], ["--version"]):
            read, write = os.pipe()
            os.close(read)
            self.check(arguments, "standard output", stdout=write)
            os.close(write)
        # A run is what it leaves, not what it prints; and no file of it gets what was meant for the terminal.
        run = self.folder / "silent"
        for number, options in enumerate(
            ({"stdout": full}, {"stdout": None, "preexec_fn": lambda: os.closerange(0, 2)})
        ):
            self.check(["train", self.recipe, f"run.dir={run}-{number}"], "log.jsonl", codes=(0,), **options)
            for line in (self.folder / f"silent-{number}" / "log.jsonl").read_text().splitlines():
                json.loads(line)

    def test_memory_that_is_not_there(self):
        """Within 12 GB of address space a model whose embedding takes 32 GB does not fit."""

        def limit():
            import resource

            resource.setrlimit(resource.RLIMIT_AS, (12 << 30, 12 << 30))

        model = self.folder / "large"
        model.mkdir()
        (model / "config.json").write_text(json.dumps(CONFIG | {"vocab_size": 2_000_000, "hidden_size": 4096}))
        self.check(self.training(f"model.path={model}"), codes=(3,), says="memory", preexec_fn=limit)

    def test_environment(self):
        self.check(self.training(), says="MOETUNE_START_TIMEOUT_S", env={"MOETUNE_START_TIMEOUT_S": "\x1bsoon"})
        text = self.folder / "text.jsonl"
        text.write_text('{"text": "some"}\n')
        for python in ("none", str(self.folder), "/dev/null"):
            self.check(self.training(f"data.train={text}"), env={"MOETUNE_PYTHON": python}, says=python[-20:])


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], "-v", *(a for a in sys.argv[1:] if not pathlib.Path(a).is_dir())])
