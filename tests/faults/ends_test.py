"""However the program is called, it ends as documented: no signal, no exit code 1, no raw control character, and the path
of what was wrong in the message.

.venv/bin/python tests/faults/ends_test.py [BUILD_FOLDER]
"""

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
            [str(program()), *arguments], timeout=60, cwd=self.folder, stdin=subprocess.DEVNULL, env=environment, **options
        )

    def check(self, arguments, says="", codes=(2,), **options):
        """The call ends with one of the codes and a message that holds `says`, or one of them."""
        with self.subTest(arguments):
            ended = self.call(*arguments, **options)
            output = (ended.stdout or b"") + (ended.stderr or b"")
            self.assertIn(ended.returncode, codes, output[-2000:])
            self.assertIsNone(RAW_CONTROL.search(output), output[-2000:])
            output.decode("utf-8")  # whatever bytes a path has
            wanted = [says] if isinstance(says, str) else says
            self.assertTrue(any(text.encode() in output for text in wanted), output[-2000:])
            return output.decode()

    def train(self, *overrides, **expected):
        return self.check(["train", self.recipe, f"run.dir={self.folder / 'new run'}", *overrides], **expected)

    def test_words_of_the_command_line(self):
        for arguments in (
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
        ):
            self.check(arguments)

    def test_help_and_version(self):
        self.assertIn("LibTorch 2.", self.check(["--version"], "moetune", codes=(0,)))
        for command in ("train", "validate", "prepare", "export", "merge", "inspect", "recipes", "verify-layout", "logits"):
            self.check([command, "--help"], "Usage", codes=(0,))

    def test_paths(self):
        """Every command, with paths that lead nowhere, to what is no file or no folder, or that hold any byte."""
        file, empty, locked = self.folder / "a file", self.folder / "empty", self.folder / "locked"
        file.write_text("{}")
        empty.mkdir()
        fifo = self.folder / "fifo"
        os.mkfifo(fifo)
        loop = self.folder / "loop"
        loop.symlink_to("loop")
        locked.mkdir()
        to = str(self.folder / "to")
        long = "x" * 300
        bytes_ = "\udcff\udcfe"  # what subprocess writes as bytes that are no UTF-8
        for path, says in (
            ("", ("empty", "RECIPE", "does not exist", "RUN", "no such", "name")),
            ("none", "none"),
            (str(file), "a file"),
            (str(file / "below"), "a file/below"),
            (str(empty), "empty"),
            (str(loop), "loop"),
            ("/dev/null", "/dev/null"),
            ("/proc/self/mem", "/proc/self/mem"),
            (long, "xxx"),
            ("two\nlines \x1b[31m", ("two\\nlines \\u001b[31m", "two\nlines \\u001b[31m")),
            (bytes_, "\\xff\\xfe"),
        ):
            for arguments in (
                ["train", path],
                ["validate", path],
                ["prepare", path],
                ["verify-layout", path],
                ["inspect", "--mesh", path],
                ["inspect", path],
                ["export", path, "--to", to],
                ["export", path, "--to", to, "--base"],
                ["merge", path, "--to", to],
                ["logits", path, str(file), "--to", to],
                ["recipes", "cat", path],
            ):
                inspects_json = arguments[0] == "inspect" and path in (str(file), "/dev/null")
                self.check(arguments, "" if inspects_json else says, codes=(0, 2) if inspects_json else (2,))
        for path in (str(file / "below"), str(empty), "/proc/none/x", str(self.folder / long), "", "/dev/null"):
            self.check(["recipes", "cp", "quickstart", path])
            self.check(["logits", str(self.run_folder), str(self.folder / "tiny" / "train.jsonl"), "--to", path])
            self.check(["inspect", "--mesh", self.recipe, "--svg", path])
            if path != str(empty):
                self.check(["export", str(self.run_folder), "--to", path])
                self.check(["merge", str(self.run_folder), "--to", path])

    def test_paths_of_a_recipe(self):
        file, folder = self.folder / "plain", self.folder / "folder"
        file.write_text("text")
        folder.mkdir()
        for value in (f"{file}/below", "/proc/none/x", "/dev/null/x", str(file), "/" + "y" * 300):
            self.train(f"run.dir={value}", says=value[-20:])
        for key in ("data.train", "data.eval"):
            for value in ("none", str(folder), str(file), f"{file}/below", "/dev/null", "/proc/self/mem", "z" * 300):
                extra = ["eval.every_steps=1"] if key == "data.eval" else []
                self.train(f"{key}={value}", *extra, says=value[-20:])
                self.check(["validate", self.recipe, f"{key}={value}"], "", codes=(0, 2))
                self.check(["prepare", self.recipe, f"{key}={value}"], value[-20:])
        for key in ("model.path", "adapter.from"):
            for value in ("none", str(folder), str(file), f"{file}/below", "/dev/null", "z" * 300):
                self.train(f"{key}={value}", says=value[-20:])
        for value in (str(file), f"{file}/below", "/proc/none/x"):
            self.train(f"model.cache={value}", says=value[-20:])
        self.train("model.weights=pretrained", says="model")
        self.train("data.train=two\\nlines\x1b", codes=(2,))

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
            self.train(f"model.path={model}", codes=(2, 3), says="")
            self.check(["inspect", str(model)], "", codes=(0, 2))
            recipe.write_bytes(text)
            self.check(["train", str(recipe)], "hostile.yaml")
            self.check(["validate", str(recipe)], "hostile.yaml")
            data.write_bytes(text)
            self.train(f"data.train={data}", codes=(2,), says="hostile.jsonl")
            self.check(["inspect", str(data)], "", codes=(0, 2))

    def test_standard_output_that_takes_nothing(self):
        full = open("/dev/full", "wb")
        self.addCleanup(full.close)
        for arguments in (["recipes", "docs"], ["--version"], ["validate", self.recipe], ["--help"]):
            self.check(arguments, "standard output", stdout=full)
            self.check(arguments, "standard output", preexec_fn=lambda: os.close(1), stdout=None)
            read, write = os.pipe()
            os.close(read)
            self.check(arguments, "standard output", stdout=write)
            os.close(write)
        # A run is what it leaves, not what it prints; and no file of it gets what was meant for the terminal.
        run = self.folder / "silent"
        for number, options in enumerate(({"stdout": full}, {"stdout": None, "preexec_fn": lambda: os.closerange(0, 2)})):
            self.check(["train", self.recipe, f"run.dir={run}-{number}"], "log.jsonl", codes=(0,), **options)
            for line in (self.folder / f"silent-{number}" / "log.jsonl").read_text().splitlines():
                json.loads(line)

    def test_memory_that_is_not_there(self):
        """Within 3 GB of address space a model of 10 GB does not fit."""

        def limit():
            import resource

            resource.setrlimit(resource.RLIMIT_AS, (12 << 30, 12 << 30))

        model = self.folder / "large"
        model.mkdir()
        (model / "config.json").write_text(json.dumps(CONFIG | {"vocab_size": 2_000_000, "hidden_size": 4096}))
        self.train(f"model.path={model}", codes=(3,), says="memory", preexec_fn=limit)

    def test_environment(self):
        self.train(codes=(2,), says="MOETUNE_START_TIMEOUT_S", env={"MOETUNE_START_TIMEOUT_S": "\x1bsoon"})
        text = self.folder / "text.jsonl"
        text.write_text('{"text": "some"}\n')
        for python in ("none", str(self.folder), "/dev/null"):
            self.train(f"data.train={text}", env={"MOETUNE_PYTHON": python}, says=python[-20:])


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], "-v", *(a for a in sys.argv[1:] if not pathlib.Path(a).is_dir())])
