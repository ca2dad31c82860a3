"""Damages what data preparation reads, lines, tokenizer.json, tokenizer_config.json and chat template, and looks how it
ends: exit code 0, or 2 with a message. A traceback, another exit code, a signal, more than 60 s or 3 GiB is found.

    .venv/bin/python tests/fuzz/prepare_fuzz.py [--cases 200] [--seconds 0] [--seed 1] [--case N] [--keep DIR]

Case N is a function of (seed, N); case 0 is the valid input. Each runs in a process of its own. Exit status 0, or 1
where something was found.
"""

import argparse
import contextlib
import copy
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "prepare"))

from support import CHATML_TEMPLATE, DEEPSEEK, DEEPSEEK_TEMPLATE, main, model_folder, small_tokenizer  # noqa: E402

SECONDS, BYTES = 60, 3 << 30
LINES = {
    "messages": {
        "id": "a-1",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "2 + 2?", "name": "ann"},
            {"role": "assistant", "content": "<think>\nadd\n</think>\n\n4", "weight": 1, "train": True},
            {"role": "user", "content": [{"type": "text", "text": "sure?"}]},
            {"role": "assistant", "content": "yes", "reasoning_content": "sure"},
        ],
    },
    "tools": {
        "messages": [
            {"role": "user", "content": "weather?"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}],
            },
            {"role": "tool", "content": "4", "tool_call_id": "1"},
            {"role": "assistant", "content": "It is 4."},
        ],
        "tools": [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}],
        "chat_template_kwargs": {"thinking": True},
    },
    "sharegpt": {
        "conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "Aye"}],
        "system": "Speak like a pirate.",
    },
    "alpaca": {"instruction": "Add.", "input": "2, 2", "output": "4", "system": "", "history": [["a", "b"]]},
    "prompt": {"prompt": "2 + 2 =", "completion": " 4"},
    "text": {"text": "Two and two are four."},
    "ids": {"input_ids": [1, 2, 3], "labels": [-100, 2, 3], "attention_mask": [1, 1, 1]},
}
HOSTILE = [
    None, True, False, "", "null", 0, 1, -1, 0.5, 2**31, 2**63, 2**64, 10**400, 1e308, float("nan"), float("inf"),
    [], {}, [[]], [None], {"role": "user"}, "\ud800", "a\udfffb", "\x00", "\x1b[31m", "\ufdd0", "\ufeff", "<think>",
    "</think>", "<｜begin▁of▁sentence｜>", "<|im_end|>", "{{ 1 }}", "{% for %}", "x" * 100_000, " " * 5000, "\n" * 5000,
    "é" * 3000, "\u200b", "𝔘" * 100, "user", "assistant", "tool", "function_call", "observation",
]  # fmt: skip
TEMPLATE_PIECES = [
    "{{", "}}", "{%", "%}", "{% for x in range(10**9) %}{{ x }}{% endfor %}", "{{ 'a' * 10**10 }}", "{{ messages * 10**7 }}",
    "{{ raise_exception('no') }}", "{{ m.content.__class__ }}", "{{ 2 ** 10**9 }}", "{{ [1] | tojson }}", "\x00",
    "{{ (1).__class__.__mro__ }}", "{{ messages[100].content }}", "{{ undefined.x.y }}", "{{ strftime_now('%Y') }}",
    "{% include 'x' %}", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "{{ 'a'.join(['b'] * 10**8) }}",
    "{{ messages[0].content | replace('a', 'b' * 10**6) }}", "{{ '%s' | format(1) }}", "{{ '{:>100000000}'.format(1) }}",
    "{{ messages | map(attribute='content') | join('x' * 10**6) }}", "{{ 1 / 0 }}", "{{ none + 1 }}",
]  # fmt: skip


def places(value, found=None):
    """(container, key) of every value inside."""
    found = [] if found is None else found
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        found.append((value, key))
        places(value[key], found)
    return found


def changed_value(value, dice):
    """A JSON value with one change."""
    inside = places(value)
    if not inside:
        return dice.choice(HOSTILE)
    container, key = dice.choice(inside)
    kind = dice.randrange(6)
    if kind <= 2:
        container[key] = copy.deepcopy(dice.choice(HOSTILE))
    elif kind == 3 and isinstance(container, dict):
        container[dice.choice(["train", "weight", "loss", "tools", "role", "name", "extra", key + "_"])] = (
            copy.deepcopy(dice.choice(HOSTILE))
        )
    elif kind == 4:
        del container[key]
    elif isinstance(container[key], str):
        at = dice.randrange(len(container[key]) + 1)
        hostile = dice.choice([h for h in HOSTILE if isinstance(h, str)])
        container[key] = container[key][:at] + hostile + container[key][at:]
    else:
        container[key] = [copy.deepcopy(container[key])] * dice.choice([2, 50])
    return value


def changed_bytes(data, dice):
    at, length = dice.randrange(len(data) + 1), dice.choice([1, 4, 64])
    kind = dice.randrange(4)
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data[:at] + bytes(dice.randrange(256) for _ in range(length)) + data[at:]
    if kind == 2:
        return data[:at] + data[at + length :]
    return data[:at] + data[dice.randrange(len(data) + 1) :][:length] + data[at:]


def dump(value):
    return json.dumps(value, ensure_ascii=bool(len(str(value)) % 2)).encode("utf-8", "surrogatepass")


class Case:
    """One damaged model folder and data file."""

    def __init__(self, valid, folder, seed, number):
        dice = random.Random(seed * 1_000_003 + number)
        shutil.copytree(valid, folder)
        kind = dice.choice(list(LINES))
        lines = [copy.deepcopy(LINES[kind]) for _ in range(3)]
        self.data = folder / "train.jsonl"
        self.options = ["--special-tokens", dice.choice(["as_text", "reject", "allow"])]
        self.options += ["--train-on", dice.choice(["assistant", "all"]), "--show", "2"]
        written = None
        what = dice.choice(["line", "line", "line", "bytes", "template", "tokenizer", "config"]) if number else "none"
        if number == 0:
            kind, self.options = "prompt", ["--show", "2"]
            lines = [LINES["prompt"]] * 3
        elif what == "line":
            for _ in range(dice.choice([1, 1, 2, 4])):
                i = dice.randrange(len(lines))
                lines[i] = changed_value(lines[i], dice)
        elif what == "bytes":
            written = changed_bytes(b"\n".join(map(dump, lines)) + b"\n", dice)
        elif what == "template":
            path = folder / "tokenizer_config.json"
            config = json.loads(path.read_text())
            source = config["chat_template"]
            at = dice.randrange(len(source))
            config["chat_template"] = source[:at] + dice.choice(TEMPLATE_PIECES) + source[at + dice.choice([0, 3]) :]
            path.write_text(json.dumps(config))
        else:
            path = folder / ("tokenizer.json" if what == "tokenizer" else "tokenizer_config.json")
            if dice.randrange(3):
                path.write_bytes(dump(changed_value(json.loads(path.read_text()), dice)))
            else:
                path.write_bytes(changed_bytes(path.read_bytes(), dice))
        self.data.write_bytes(b"\n".join(map(dump, lines)) + b"\n" if written is None else written)
        self.what = f"{what}, {kind}"
        self.arguments = [str(self.data), "--model", str(folder), "--cache", str(folder / "cache"), *self.options]

    def run(self):
        """What was found, or nothing."""
        code = None
        out, err = io.StringIO(), io.StringIO()
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = main(self.arguments)
        except SystemExit as end:
            code = end.code
        if code not in (0, 2):
            return f"exit code {code}"
        if "Traceback" in err.getvalue():
            return err.getvalue()[-300:]
        if code == 2 and "error: " not in err.getvalue():
            return f"exit code 2 without a word: {err.getvalue()[-200:]!r}"
        return None


def in_process(case):
    """(what was found or nothing, exit code 0 or 2 of preparation) of a case that runs in a process of its own."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(read)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_DATA, (BYTES, BYTES))
            signal.alarm(SECONDS)
            try:
                found = case.run()
            except BaseException as e:
                found = f"{type(e).__name__}: {e}"
            os.write(write, (found or "").encode("utf-8", "replace")[:2000])
            status = 0
        finally:
            os._exit(status)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        found = pipe.read().decode("utf-8", "replace")
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return f"more than {SECONDS} s" if number == signal.SIGALRM else f"signal {number}"
    return found or (None if status == 0 else f"exit status {os.waitstatus_to_exitcode(status)}")


def valid_models(root):
    """Two families' folders."""
    models = []
    for name, template, specials in (
        ("deepseek", DEEPSEEK_TEMPLATE, [*DEEPSEEK, "<｜User｜>", "<｜Assistant｜>"]),
        ("chatml", CHATML_TEMPLATE, ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]),
    ):
        bos, eos = (specials[0], specials[1]) if name == "deepseek" else (None, "<|im_end|>")
        models.append(model_folder(root / name, small_tokenizer(specials, bos), bos, eos, template))
    return models


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=0.0, help="go on for so long instead")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--case", type=int, help="this one alone, in this process")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-findings"))
    return parser.parse_args()


def fuzz():
    options = arguments()
    found, number, start = 0, 0, time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        models = valid_models(Path(scratch))
        while number < options.cases if not options.seconds else time.monotonic() - start < options.seconds:
            number = options.case if options.case is not None else number
            folder = Path(scratch) / "case"
            case = Case(models[number % 2], folder, options.seed, number)
            if options.case is not None:
                print(case.what, case.arguments, case.run(), sep="\n")
                return 0
            finding = in_process(case)
            if finding:
                found += 1
                kept = options.keep / f"prepare-{options.seed}-{number}"
                shutil.copytree(folder, kept, dirs_exist_ok=True)
                print(f"FOUND --seed {options.seed} --case {number} ({case.what}): {finding}\n      kept in {kept}")
            shutil.rmtree(folder)
            number += 1
    print(f"prepare      {number} cases, {found} found")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(fuzz())
