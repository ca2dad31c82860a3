"""A rank that is stopped, killed, or stands still in training ends the job soon, with one message that names it.

.venv/bin/python tests/faults/stall_test.py [BUILD_FOLDER]
"""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from tiny_run import TinyRun

HEARD_S = 1.5  # ranks report twice a second: until then the last report may be of the time before the first step
STALL_S = 4
# Stops the thread that works and no other, as a lock that is never released would. Its own process, because the kernel
# tells the end of a traced thread to the tracer before the parent.
TRACER = """
import ctypes, os, sys
libc, pid = ctypes.CDLL(None, use_errno=True), int(sys.argv[1])
assert libc.ptrace(0x4206, pid, 0, 0) == 0, os.strerror(ctypes.get_errno())   # PTRACE_SEIZE
assert libc.ptrace(0x4207, pid, 0, 0) == 0, os.strerror(ctypes.get_errno())   # PTRACE_INTERRUPT
os.waitpid(pid, 0x40000000)
print("stopped", flush=True)
while os.WIFSTOPPED(os.waitpid(pid, 0x40000000)[1]):
    pass
"""


class JobTest(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)

    def pids(self, process):
        """Processes of the ranks, by rank."""
        children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
        by_rank = {}
        for pid in children:
            environment = dict(
                item.split("=", 1)
                for item in pathlib.Path(f"/proc/{pid}/environ").read_text(errors="replace").split("\0")
                if "=" in item
            )
            by_rank[int(environment["OMPI_COMM_WORLD_RANK"])] = int(pid)
        return by_rank


class StallTest(JobTest):
    def start(self, ranks, **changes):
        self.run_ = TinyRun(
            self.folder,
            **{"mesh.ep": 2, "train.steps": 100000, "checkpoint.every_steps": 0, "run.stall_timeout_s": STALL_S}
            | changes,
        )
        process = self.run_.start(ranks)
        self.addCleanup(process.kill)
        self.run_.wait_for_step(5, process)
        time.sleep(HEARD_S)
        return process, self.pids(process)

    def ended(self, process, within_s):
        """The output of a job that ends by itself within the time."""
        start = time.time()
        output, _ = process.communicate(timeout=within_s + 30)
        self.assertLess(time.time() - start, within_s, output)
        self.assertEqual(output.count("error: "), 1, output)
        self.assertRegex(output, r"the last checkpoint stands")
        return output

    def assert_names(self, output, rank, ranks, pid, what):
        self.assertRegex(
            output, rf"error: rank {rank} of {ranks} \(host {re.escape(os.uname().nodename)}, process {pid}\) {what}"
        )
        self.assertRegex(output, rf"rank {rank} (is|was last heard of) at (end of )?step \d+")
        # Who waits, in which collective of which group, how large.
        self.assertRegex(output, r"(waits? for it,|is) at .*, in \w+ #\d+ of group \w+.* \(\d ranks\), \d+ bytes")
        self.assertRegex(output, r"rank.* wait.* for it|in the same collective: rank")

    def check_stopped(self, rank, speaker):
        process, pids = self.start(4)
        os.kill(pids[rank], signal.SIGSTOP)
        output = self.ended(process, 20)
        self.assertEqual(process.returncode, 5, output)
        self.assertIn(f"[rank {speaker}] error", output)
        self.assert_names(output, rank, 4, pids[rank], r"silent for \d+ s")

    def test_stopped_rank(self):
        self.check_stopped(3, speaker=0)

    def test_stopped_rank_0(self):
        """Rank 0 watches over the others; when it is the one that is stopped, rank 1 speaks."""
        self.check_stopped(0, speaker=1)

    def test_stopped_stage(self):
        """Its neighbour stands where it receives from it, or where all stages add up."""
        process, pids = self.start(2, **{"mesh.ep": 1, "mesh.pp": 2, "mesh.pp_groups": 3})
        os.kill(pids[1], signal.SIGSTOP)
        output = self.ended(process, 20)
        self.assertEqual(process.returncode, 5, output)
        self.assert_names(output, 1, 2, pids[1], r"silent for \d+ s")

    def test_rank_that_stands_still(self):
        """Its process lives and answers; only the thread that works does not get on."""
        process, pids = self.start(4)
        tracer = subprocess.Popen([sys.executable, "-c", TRACER, str(pids[2])], stdout=subprocess.PIPE, text=True)
        self.addCleanup(tracer.communicate)
        self.assertEqual(tracer.stdout.readline(), "stopped\n")
        output = self.ended(process, 25)
        self.assertEqual(process.returncode, 5, output)
        self.assert_names(output, 2, 4, pids[2], r"stalls: without progress for \d+ s")

    def test_killed_rank(self):
        process, pids = self.start(2)
        os.kill(pids[1], signal.SIGKILL)
        output = self.ended(process, 15)
        self.assertNotEqual(process.returncode, 0, output)
        self.assertRegex(output, rf"error: rank 1 of 2 \(host .*, process {pids[1]}\) died")
        self.assertRegex(output, r"rank 1 was last heard of at (end of )?step \d+")

    def test_whole_job_that_stood_still_goes_on(self):
        """All ranks stopped for longer than a stall may take, as a suspended job is: no rank is late."""
        process, pids = self.start(2)
        for pid in pids.values():
            os.kill(pid, signal.SIGSTOP)
        time.sleep(2 * STALL_S)
        before = max(self.run_.losses())
        for pid in pids.values():
            os.kill(pid, signal.SIGCONT)
        self.run_.wait_for_step(before + 50, process)
        os.kill(pids[0], signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
        self.assertNotIn("error: ", output)


class StartTest(JobTest):
    """A rank that stops before the watchdog knows it: the others wait for it in MPI's start."""

    LIMIT_S = 3

    def start_and_stop(self, rank, ranks, after_s, **environment):
        """A job whose process of `rank` is stopped so long after it appeared."""
        run = TinyRun(self.folder, **{"train.steps": 100000, "run.stall_timeout_s": STALL_S})
        os.environ["MOETUNE_START_TIMEOUT_S"] = str(self.LIMIT_S)
        self.addCleanup(os.environ.pop, "MOETUNE_START_TIMEOUT_S", None)
        process = run.start(ranks)
        self.addCleanup(process.kill)
        end = time.time() + 20
        pids = {}
        while len(pids) < ranks and time.time() < end:
            try:
                pids = self.pids(process)
            except (KeyError, ValueError, FileNotFoundError, ProcessLookupError):
                pids = {}  # a child that mpirun has not made a rank of yet
        time.sleep(after_s)
        os.kill(pids[rank], signal.SIGSTOP)
        return process, pids

    def test_rank_that_stops_at_the_start(self):
        """At any moment from its first one on: while the program is loaded, in MPI, before the watchdog, after it."""
        for rank, after_s in ((1, 0.0), (0, 0.05), (2, 0.3), (0, 1.0)):
            with self.subTest(rank=rank, after_s=after_s):
                process, pids = self.start_and_stop(rank, 3, after_s)
                start = time.time()
                output, _ = process.communicate(timeout=60)
                self.assertEqual(process.returncode, 5, output)
                self.assertEqual(output.count("error: "), 1, output)
                self.assertRegex(output, rf"error: rank {rank} of 3 \(host [^ ]+, process {pids[rank]}\) ")
                self.assertLess(time.time() - start, self.LIMIT_S + 20, output)

    def test_whole_job_that_stood_still_at_its_start_goes_on(self):
        """What stops with the waiting rank is nobody's fault: that time does not count."""
        process, pids = self.start_and_stop(0, 2, 0.1)
        os.kill(pids[1], signal.SIGSTOP)
        time.sleep(self.LIMIT_S + 2)
        for pid in pids.values():
            os.kill(pid, signal.SIGCONT)
        run = TinyRun(self.folder)
        run.wait_for_step(5, process)
        os.kill(pids[0], signal.SIGTERM)
        self.assertNotIn("error: ", process.communicate(timeout=60)[0])


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], "-v", *(a for a in sys.argv[1:] if not pathlib.Path(a).is_dir())])
