"""Whatever is killed, and whenever: SIGKILL of a rank or of the whole job at random instants, each resumed at once, until
the run ends. What it then has is bit for bit what an undisturbed run has, and nothing of the killed ones lies about.

    .venv/bin/python tests/faults/kill_campaign.py [BUILD_FOLDER] [--kills N] [--seed S] [--ranks R] [--minutes M]

A run is killed again and again (--kills-per-run) before it may end; a campaign is as many such runs as the kills need.
Every other run, the first one too, writes its checkpoints while it trains; the undisturbed one writes them at once.
"""

import argparse
import hashlib
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from tiny_run import TinyRun, program

STEPS = 40
SETTINGS = {
    "train.steps": STEPS,
    "checkpoint.every_steps": 3,
    "checkpoint.keep_last": 2,
    "checkpoint.keep_best": 2,
    "eval.every_steps": 4,
}


def make_run(folder, ranks, beside):
    """`beside`: checkpoints are written while training goes on."""
    mesh = {"mesh.ep": 2} if ranks > 1 else {}
    run = TinyRun(folder, **SETTINGS, **mesh, **{"checkpoint.async": "true" if beside else "false"})
    lines = (folder / "train.jsonl").read_text().splitlines(keepends=True)
    (folder / "heldout.jsonl").write_text("".join(lines[:6]))
    run.values["data.eval"] = str(folder / "heldout.jsonl")
    return run


def ranks_of(process):
    """Process ids of the job's ranks: the process itself, or mpirun's children."""
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    return [int(child) for child in children] if process.args[0] == "mpirun" else [process.pid]


def kill(process, draw, ranks):
    """One rank, or mpirun and all of them, by their ids alone."""
    victims = ranks_of(process)
    whole = draw.random() < 0.3 or not victims
    for victim in [process.pid, *victims] if whole else [draw.choice(victims)]:
        try:
            os.kill(victim, signal.SIGKILL)
        except ProcessLookupError:
            pass
    process.communicate(timeout=60)
    # Ranks of a killed mpirun are nobody's children: they end on their own.
    end = time.time() + 30
    while any(pathlib.Path(f"/proc/{victim}").exists() for victim in victims) and time.time() < end:
        time.sleep(0.02)


def steps_of_this_life(run, lives):
    """Steps that the log has of a run that began `lives` times."""
    kinds = [json.loads(line)["kind"] for line in run.log.read_text().split("\n")[:-1]]
    if kinds.count("start") < lives:
        return 0
    return kinds[len(kinds) - kinds[::-1].index("start") :].count("step")


def wait_for_instant(run, process, draw, start_s):
    """A random instant: while the run starts, some steps later, or in the middle of a save. False where the run ended
    before. Steps are counted, so that a busy machine changes nothing of how often a run can be killed."""
    when = draw.choices(["start", "step", "save"], [25, 40, 35])[0]
    steps, end = draw.randint(1, 6), time.time() + draw.uniform(0.0, start_s)
    checkpoints = run.folder / "run" / "checkpoints"
    lives = run.log.read_text().count('{"kind":"start"') + 1 if run.log.exists() else 1
    before = set(checkpoints.glob(".saving-*"))  # what the life before left, until the run clears it
    while process.poll() is None:
        if when == "start" and time.time() > end:
            return True
        if when == "step" and run.log.exists() and steps_of_this_life(run, lives) >= steps:
            time.sleep(draw.choice([0.0, 0.002, 0.01, 0.03]))
            return process.poll() is None
        if when == "save" and set(checkpoints.glob(".saving-*")) - before:
            time.sleep(draw.choice([0.0, 0.0, 0.001, 0.003, 0.01, 0.03]))
            return process.poll() is None
        time.sleep(0.0005 if when == "save" else 0.005)
    return False


def adapter_digest(run, to):
    subprocess.run([program(), "export", str(run.folder / "run"), "--to", str(to)], check=True, capture_output=True)
    return hashlib.sha256((to / "adapter_model.safetensors").read_bytes()).hexdigest()


def result_of(run):
    """What must not depend on having been killed."""
    return {
        "adapter": adapter_digest(run, run.folder / "exported"),
        "state": run.state(),
        "losses": run.losses(),
        "evaluations": {line["step"]: line["loss"] for line in run.lines("eval")},
        "checkpoints": [path.name for path in run.checkpoints()],
    }


def leftovers(run):
    names = [path.name for path in (run.folder / "run").rglob("*")]
    return [name for name in names if name.startswith((".saving", ".removing", "run.lock")) or ".tmp-" in name]


def disturbed_run(folder, ranks, beside, draw, kills, start_s, deadline):
    """A run killed so often; (run, kills that hit it, of these while a checkpoint was written)."""
    run, hits, in_saves = make_run(folder, ranks, beside), 0, 0
    process = run.start(ranks)
    while hits < kills and time.time() < deadline:
        if not wait_for_instant(run, process, draw, start_s):
            break
        kill(process, draw, ranks)
        hits += 1
        in_saves += bool(list((run.folder / "run" / "checkpoints").glob(".saving-*")))
        process = run.start(ranks, resume=True)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, f"after {hits} kills: exit code {process.returncode}\n{output[-3000:]}"
    return run, hits, in_saves


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", nargs="?", help="build folder; MOETUNE_BUILD or ./build if not given")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--kills-per-run", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=1e6, help="no further kill after so long")
    options = parser.parse_args()
    draw, total, number = random.Random(options.seed), 0, 0
    deadline = time.time() + 60 * options.minutes
    with tempfile.TemporaryDirectory() as root:
        root = pathlib.Path(root)
        whole = make_run(root / "whole", options.ranks, beside=False)
        begin = time.time()
        process = whole.start(options.ranks)
        whole.wait_for_step(1, process)
        start_s = time.time() - begin
        output, _ = process.communicate(timeout=240)
        assert process.returncode == 0, output
        expected = result_of(whole)
        assert sorted(expected["losses"]) == list(range(1, STEPS + 1)) and len(expected["state"]) > 20
        print(
            f"undisturbed: first step after {start_s:.1f} s, checkpoints {', '.join(expected['checkpoints'])}",
            flush=True,
        )
        while total < options.kills and time.time() < deadline:
            number += 1
            kills = min(options.kills_per_run, options.kills - total)
            beside = number % 2 == 1
            run, hits, in_saves = disturbed_run(
                root / f"run-{number}", options.ranks, beside, draw, kills, start_s, deadline
            )
            total += hits
            found = result_of(run)
            for what, value in expected.items():
                assert found[what] == value, f"run {number} (seed {options.seed}): {what} differs: {found[what]}"
            assert not leftovers(run), f"run {number}: left behind: {leftovers(run)}"
            how = "beside training" if beside else "at once"
            print(
                f"run {number}: {hits} kills, {in_saves} while a checkpoint was written ({how}), {total} in all: the "
                "same adapter, state, losses",
                flush=True,
            )
            shutil.rmtree(run.folder)
    print(f"{total} kills, {number} runs, all equal to the undisturbed one; adapter {expected['adapter'][:16]}")


if __name__ == "__main__":
    main()
