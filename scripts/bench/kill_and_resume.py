"""A rank of a training run dies in the middle of a step: the others must end soon with one message, and --resume go on.

kill_and_resume(run)     # prints what happened and how long it took; Unexpected says what should have been
                         otherwise
"""

import os
import pathlib
import signal
import subprocess
import time

CHECKPOINT_STEPS = 2
KILLED_AFTER_STEP = 5
STEPS = 8
VALUES = {"train.steps": STEPS, "checkpoint.every_steps": CHECKPOINT_STEPS}
ENDED_WITHIN_S = 60.0


class Unexpected(Exception):
    pass


def ranks_of(job):
    """Processes of the ranks that an mpirun started, by rank."""
    found = {}
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == job.pid:
                environment = dict(
                    item.split("=", 1)
                    for item in (folder / "environ").read_text(errors="replace").split("\0")
                    if "=" in item
                )
                found[int(environment["OMPI_COMM_WORLD_RANK"])] = int(folder.name)
        except (OSError, KeyError):
            continue  # ended meanwhile, or no rank
    return found


def wait_until(condition, job, output):
    while not condition():
        if job.poll() is not None:
            raise Unexpected(f"the run ended too early, with exit code {job.returncode}:\n{output.read_text()[-2000:]}")
        time.sleep(0.01)


def kill_and_resume(run):
    """`run` has two ranks or more and VALUES in its recipe."""
    output = run.folder / "output.txt"
    with open(output, "w") as file:
        job = subprocess.Popen(run.command(), stdout=file, stderr=subprocess.STDOUT, env=run.machine.environment())
        wait_until(lambda: len(run.lines("step")) >= KILLED_AFTER_STEP, job, output)
        time.sleep(run.lines("step")[-1]["step_s"] / 2)
        victim = run.ranks - 1
        os.kill(ranks_of(job)[victim], signal.SIGKILL)
        killed = time.monotonic()
        job.wait()
    ended_s = time.monotonic() - killed
    before = {line["step"]: line["loss"] for line in run.lines("step")}
    messages = [line for line in output.read_text().splitlines() if "error: " in line]
    print(
        f"rank {victim} of {run.ranks} killed half a step after step {max(before)}: the job ended {ended_s:.1f} s later"
        f" with exit code {job.returncode}, saying\n    " + "\n    ".join(messages),
        flush=True,
    )
    if ended_s > ENDED_WITHIN_S or job.returncode == 0 or len(messages) != 1:
        raise Unexpected(
            f"the job should end within {ENDED_WITHIN_S:.0f} s, in failure, with one"
            f" message:\n{output.read_text()[-2000:]}"
        )

    with open(output, "w") as file:
        begin = time.monotonic()
        job = subprocess.Popen(
            run.command("train", "--resume"), stdout=file, stderr=subprocess.STDOUT, env=run.machine.environment()
        )
        saved = max(before) // CHECKPOINT_STEPS * CHECKPOINT_STEPS
        # The resumed run takes the lines behind its checkpoint out of the log before it writes its own.
        wait_until(lambda: len(run.lines("start")) == 2 and run.lines("step")[-1]["step"] > saved, job, output)
        first_step_s = time.monotonic() - begin
        job.wait()
    after = {line["step"]: line["loss"] for line in run.lines("step")}
    resumed = run.lines("start")[-1]["step"]
    again = max(abs(after[step] - before[step]) / before[step] for step in before if step in after)
    print(
        f"--resume: from step {resumed}; its first step was done {first_step_s:.1f} s after the command,"
        f" {run.lines('step')[resumed]['step_s']:.2f} s of them the step itself; losses of the steps done twice differ"
        f" by {again:.1e} at the most",
        flush=True,
    )
    if job.returncode != 0 or resumed != saved or max(after) != STEPS:
        raise Unexpected(
            f"the resumed run should go on behind step {saved} and end after step {STEPS} with exit code 0, not"
            f" {job.returncode}:\n{output.read_text()[-2000:]}"
        )
