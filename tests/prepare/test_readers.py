"""Data files of every kind give the documents that the same JSON lines give; damage is told; several processes and
several files change nothing."""

import builtins
import gzip
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path
from unittest import mock

import pyarrow
import pyarrow.parquet
from safetensors.numpy import load_file
from support import documents, model_folder, prepare, small_tokenizer, write_lines

from prepare import cache, jsonl, progress
from prepare.errors import Problems, UserError
from prepare.readers import Reader
from prepare.workers import in_order

TEMPLATE = "{% for m in messages %}{{ m.content + eos_token }}{% endfor %}"
LINES = [
    {
        "id": i,
        "messages": [
            {"role": "user", "content": f"ask ünï {i} " * (i % 7 + 1)},
            {"role": "assistant", "content": "tell"},
        ],
    }
    for i in range(300)
]
JSONL = "".join(json.dumps(v, ensure_ascii=False) + "\n" for v in LINES).encode()


def compressed(data):
    codec = pyarrow.Codec("zstd")
    return codec.compress(data, asbytes=True)


class Base(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.root = Path(self.folder.name)
        self.model = model_folder(self.root / "model", small_tokenizer(("<s>", "</s>")), "<s>", "</s>", TEMPLATE)

    def tearDown(self):
        self.folder.cleanup()

    def write(self, name, data):
        path = self.root / name
        path.write_bytes(data)
        return path

    def prepared(self, *files, options=()):
        code, summary, _, err = prepare(*files, "--model", self.model, "--cache", self.root / "cache", *options)
        self.assertEqual(code, 0, err)
        return summary

    def refused(self, path, *texts):
        code, _, _, err = prepare(path, "--model", self.model, "--cache", self.root / "cache")
        self.assertEqual(code, 2, err)
        for text in texts:
            self.assertIn(text, err)
        self.assertNotIn("Traceback", err)
        self.assertEqual([p for p in (self.root / "cache").glob("*")], [])


class Kinds(Base):
    def test_each_kind_holds_the_same(self):
        expected = documents(self.prepared(self.write("plain", JSONL)))
        self.assertEqual(len(expected), 300)
        dense = json.dumps(LINES, separators=(",", ":")).encode()
        table = pyarrow.Table.from_pylist(LINES)
        rows = io.BytesIO()
        pyarrow.parquet.write_table(table, rows, row_group_size=70)
        kinds = {
            "lines.gz": gzip.compress(JSONL),
            "two members.gz": gzip.compress(JSONL[:5000]) + gzip.compress(JSONL[5000:]),
            "lines.zst": compressed(JSONL),
            "two frames.zst": compressed(JSONL[:5000]) + compressed(JSONL[5000:]),
            "windows": b"\xef\xbb\xbf" + JSONL.replace(b"\n", b"\r\n\r\n"),
            "array.json": dense,
            "wide array.json": b"\xef\xbb\xbf\n" + json.dumps(LINES, indent=3, ensure_ascii=False).encode() + b"\n\n",
            "array.json.gz": gzip.compress(dense),
            "array.json.zst": compressed(dense),
            "rows.parquet": rows.getvalue(),
        }
        for name, data in kinds.items():
            with self.subTest(name), mock.patch("prepare.json_array.READ_BYTES", 1 << 12):
                self.assertEqual(documents(self.prepared(self.write(name, data))), expected)

    def test_tokenised_kinds(self):
        lines = [{"input_ids": [1, 2, 300], "labels": [-100, 2, 300]}, {"input_ids": [7, 8], "labels": [7, 8]}]
        rows = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(lines), rows)
        for name, data in (("a.json", json.dumps(lines).encode()), ("a.parquet", rows.getvalue())):
            self.assertEqual(
                documents(self.prepared(self.write(name, data))),
                [([1, 2, 300], [-100, 2, 300]), ([7, 8], [-100, 8])],
            )

    def test_mistakes_have_their_place(self):
        bad = b'[{"text": "a"}, {"text": 5}, 7, {"text": "a", "text": "b"}]'
        self.refused(
            self.write("array", bad),
            '"text" is not a string: 1 element\n    element 2',
            "not a JSON object: 1 element\n    element 3: a int instead",
            "a key stands twice in one object: 1 element\n    element 4",
        )
        rows = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.table({"text": ["a", "", "b"]}), rows)
        self.refused(self.write("rows", rows.getvalue()), '"text" is empty: 1 row\n    row 2')
        self.refused(
            self.write("lines.gz", gzip.compress(b'{"text": "a"}\n\n{"text": \n')), "not valid JSON: 1 line\n    line 3"
        )

    def test_damage(self):
        whole = gzip.compress(JSONL)
        rows = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(LINES), rows)
        array = json.dumps(LINES).encode()
        for name, data, *texts in (
            ("short.gz", whole[: len(whole) // 2], "gzip-compressed and damaged or cut short"),
            ("flipped.gz", whole[:100] + bytes([whole[100] ^ 255]) + whole[101:], "gzip-compressed and damaged"),
            ("tiny.gz", b"\x1f\x8b\x08\x00", "gzip-compressed and damaged"),
            ("short.zst", compressed(JSONL)[:400], "zstd-compressed and damaged or cut short"),
            ("tiny.zst", b"(\xb5/\xfd", "zstd-compressed and damaged or cut short"),
            ("flipped.zst", compressed(JSONL)[:20] + b"\xff" * 60, "zstd-compressed and damaged or cut short"),
            ("twice.gz", gzip.compress(whole), "compressed twice"),
            ("short.parquet", rows.getvalue()[:2000], "not a readable Parquet file"),
            ("PAR1", b"PAR1....", "not a readable Parquet file"),
            ("empty.gz", gzip.compress(b"\n \n"), "the file is empty", "at least one line"),
            ("empty array", b" [ ] ", "the file is empty", "at least one element"),
            ("cut array", array[:-1], "not valid JSON behind element 300 of the array: the file ends"),
            ("cut element", array[:-7], "not valid JSON in element 300 of the array"),
            ("no comma", b'[{"text": "a"} {"text": "b"}]', "behind element 1 of the array: '{' instead of a comma"),
            ("two arrays", b'[{"text": "a"}][]', "'[' stands behind the array"),
            ("latin", b'[{"text": "a\xff"}]', "not UTF-8: byte 0xff"),
            ("deep", b"[" * 100_000, "element 1 of the array: nested too deep"),
        ):
            with self.subTest(name):
                self.refused(self.write(name, data), f"{self.root / name}: ", "fix:", *texts)

    def test_without_pyarrow(self):
        rows = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.table({"text": ["a"]}), rows)
        real = builtins.__import__

        def without(name, *arguments):
            if name.partition(".")[0] == "pyarrow":
                raise ImportError(name)
            return real(name, *arguments)

        for data in (rows.getvalue(), compressed(JSONL)):
            path = self.write("packed", data)
            with mock.patch("builtins.__import__", without):
                self.refused(path, "takes pyarrow, which is not installed here", "-r scripts/requirements-data.txt")

    def test_no_kind_is_read_whole(self):
        """Blocks come before the file ends: a reader that holds all of it would not see the second half missing."""
        lines = b'{"text": "' + os.urandom(400).hex().encode() + b'"}\n'
        for name, data in (
            ("lines.gz", gzip.compress(lines * 20_000)),
            ("array", b"[" + b",".join([lines] * 20_000) + b"]"),
        ):
            data = data[: len(data) // 2]
            reader, seen = Reader(self.write(name, data)), 0
            with self.assertRaises(UserError):
                for block in reader.blocks():
                    seen += len(block.rows)
                    self.assertLess(block.size, 2 << 20)
            self.assertGreater(seen, 5000)

    def test_a_long_element(self):
        with mock.patch.object(jsonl, "MAX_LINE_BYTES", 1 << 20):
            self.refused(
                self.write("array", b'[{"text": "a"}, {"text": "' + b"a" * (3 << 20) + b'"}]'),
                "element 2 of the array is longer than 1 MiB",
            )


class Streams(Base):
    def test_several_processes_give_the_same_bytes(self):
        path = self.write("data.jsonl", JSONL)
        with mock.patch.object(jsonl, "BLOCK_ROWS", 16):
            alone = Path(self.prepared(path, options=("--workers", 1))["cache"])
            whole = alone.read_bytes()
            alone.unlink()
            again = Path(self.prepared(path, options=("--workers", 3))["cache"])
        self.assertEqual(again.read_bytes(), whole)

    def test_several_processes_tell_the_same_mistakes(self):
        lines = [*LINES[:50], {"foo": 1}, *LINES[50:90], {"messages": []}, {"messages": "x", "id": "q"}]
        path = write_lines(self.root / "data.jsonl", lines)
        told = []
        for workers in (1, 3):
            with mock.patch.object(jsonl, "BLOCK_ROWS", 8):
                told.append(prepare(path, "--model", self.model, "--cache", self.root / "c", "--workers", workers))
        self.assertEqual(told[0], told[1])
        self.assertIn("line 51: keys foo", told[0][3])
        self.assertIn("line 93 (id 'q')", told[0][3])

    def test_notes_count_what_all_processes_saw(self):
        lines = [{"text": "the </s> end", "extra": 1}] * 40
        path = write_lines(self.root / "data.jsonl", lines)
        options = ("--special-tokens", "as_text", "--workers", 2)
        with mock.patch.object(jsonl, "BLOCK_ROWS", 8):
            code, _, _, err = prepare(path, "--model", self.model, "--cache", self.root / "c", *options)
        self.assertEqual(code, 0)
        self.assertIn("stayed ordinary text in 40 documents", err)
        self.assertIn('nothing reads the key "extra" of 40 lines', err)

    def test_a_worker_that_is_killed(self):
        def process(block):
            if block == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            return block

        with self.assertRaisesRegex(UserError, "killed, most likely for lack of memory"):
            list(in_order(process, range(9), 2))

    def test_order_and_errors_of_workers(self):
        def process(block):
            time.sleep(0.02 * (block % 3))
            if block == 12:
                raise UserError("the mistake")
            return block * block

        self.assertEqual(list(in_order(process, range(10), 3)), [i * i for i in range(10)])
        with self.assertRaisesRegex(UserError, "the mistake"):
            list(in_order(process, range(20), 3))

    def test_no_worker_outlives_its_parent(self):
        program = (
            "import os, sys, time; sys.path.insert(0, sys.argv[1])\n"
            "from prepare.workers import in_order\n"
            "def process(block):\n"
            "    os.write(1, b'%d\\n' % os.getpid())\n"
            "    time.sleep(60)\n"
            "list(in_order(process, range(2), 2))"
        )
        scripts = str(Path(cache.__file__).resolve().parents[1])
        parent = subprocess.Popen([sys.executable, "-c", program, scripts], stdout=subprocess.PIPE, text=True)
        workers = [int(parent.stdout.readline()) for _ in range(2)]
        parent.kill()
        parent.wait()
        parent.stdout.close()
        deadline = time.monotonic() + 10
        for worker in workers:
            while time.monotonic() < deadline and self.runs(worker):
                time.sleep(0.02)
            self.assertFalse(self.runs(worker))

    @staticmethod
    def runs(pid):
        try:
            return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
        except FileNotFoundError:
            return False

    def test_several_files(self):
        names = ["a.jsonl", "b.jsonl", "c.jsonl"]
        paths = [write_lines(self.root / n, LINES[10 * i : 10 * i + i + 1]) for i, n in enumerate(names)]
        alone = [self.prepared(p) for p in paths]
        together = self.prepared(*paths)["files"]
        self.assertEqual(together, [{**summary, "reused": True} for summary in alone])
        for summary in alone:
            Path(summary["cache"]).unlink()
        fresh = self.prepared(*paths)["files"]
        self.assertEqual(fresh, alone)
        code, _, out, _ = prepare(*paths, "--model", self.model, "--cache", self.root / "cache", "--show", 2)
        self.assertEqual(code, 0)
        self.assertEqual(out.count("--- document 0: "), 2)  # one of a, one of b
        self.assertNotIn("--- document 1: ", out)

    def test_texts_of_several_files_begin_with_bos(self):
        tokenizer = small_tokenizer(("<s>", "</s>"), bos="<s>")
        model_folder(self.model, tokenizer, "<s>", "</s>", TEMPLATE)
        paths = [write_lines(self.root / name, [{"text": name}]) for name in ("a", "b")]
        for summary in self.prepared(*paths)["files"]:
            self.assertEqual(documents(summary)[0][0][0], tokenizer.token_to_id("<s>"))

    def test_weights_from_where_they_begin(self):
        with cache.Writer(self.root / "w.safetensors") as writer:
            writer.append([1, 2, 3], [-100, 2, 3], [3], None)
            writer.append([4, 5], [-100, 5], [2], [0, 0.5])
            writer.append([6, 7], [-100, 7], [2], None)
            writer.finish({"key": "x"})
        tensors = load_file(self.root / "w.safetensors")
        self.assertEqual(tensors["weights"].tolist(), [0, 1, 1, 0, 0.5, 0, 1])
        self.assertEqual(tensors["tokens"].tolist(), [1, 2, 3, 4, 5, 6, 7])
        self.assertEqual(tensors["labels"].tolist(), [-100, 2, 3, -100, 5, -100, 7])
        self.assertEqual(tensors["offsets"].tolist(), [0, 3, 5, 7])
        with cache.Writer(self.root / "p.safetensors") as writer:
            writer.append([1, 2], [-100, 2], [2], None)
            writer.finish({"key": "x"})
        self.assertNotIn("weights", load_file(self.root / "p.safetensors"))

    def test_nothing_is_left_of_a_cache_that_is_given_up(self):
        folder = self.root / "given up"
        with cache.Writer(folder / "w.safetensors") as writer:
            writer.append([1, 2], [-100, 2], [2], None)
            self.assertEqual(list(folder.iterdir()), [])
        self.assertEqual(list(folder.iterdir()), [])

    def test_leftovers_of_killed_preparations_go(self):
        old, new, other = (self.root / n for n in (".0a.safetensors.12", ".0b.safetensors.13", "0c.safetensors"))
        for path in (old, new, other):
            path.write_bytes(b"")
        os.utime(old, (time.time() - 7200,) * 2)
        os.utime(other, (time.time() - 7200,) * 2)
        with cache.Writer(self.root / "w.safetensors"):
            self.assertEqual([p.exists() for p in (old, new, other)], [False, True, True])

    def test_progress(self):
        shown = io.StringIO()
        with (
            mock.patch("sys.stderr", shown),
            mock.patch("prepare.progress.time.monotonic", side_effect=[0.0, 9.0, 12.0, 15.0, 100.0]),
        ):
            with progress.Progress("a.jsonl") as told:
                told.show(5, 10, 0.1)
                told.show(1000, 123456, 0.2)
                told.show(2000, 223456, 0.3)
                told.show(3000, 323456, 0.5)
        self.assertEqual(
            shown.getvalue(),
            "a.jsonl: 1,000 documents, 123,456 tokens, 20 %, 48 s left\n"
            "a.jsonl: 3,000 documents, 323,456 tokens, 50 %, 1 min left\n",
        )

    def test_a_reader_says_how_far_it_is(self):
        for name, data in (
            ("plain", JSONL),
            ("packed", gzip.compress(os.urandom(1 << 20).hex().encode() + b"\n" + JSONL)),
        ):
            reader, parts = Reader(self.write(name, data)), []
            with mock.patch.object(jsonl, "BLOCK_ROWS", 16):
                for block in reader.blocks():
                    list(block.objects(Problems(name)))
                    parts.append(reader.done())
            self.assertEqual(parts, sorted(parts))
            self.assertGreater(parts[-1], 0.9)


if __name__ == "__main__":
    unittest.main()
