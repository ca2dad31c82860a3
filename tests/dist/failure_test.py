"""How a failing rank ends the job: exit code, one message, no waiting.

failure_test.py FAILING_RANK_BINARY cpu|cuda [MPIRUN ARGUMENT...]
"""

import os
import subprocess
import sys
import unittest

BINARY = sys.argv[1]
DEVICE = sys.argv[2]
MPIRUN = sys.argv[3:] or ["mpirun"]
LIMIT_S = 40  # a job that waits for a rank that will not come


class FailureTest(unittest.TestCase):
    def run_job(self, ranks, who, kind):
        command = [*MPIRUN, "-np", str(ranks), BINARY, DEVICE, str(who), kind]
        if ranks == 0:
            command = [BINARY, DEVICE, str(who), kind]
        # A rank of one job must not look like a rank of another.
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMPI_COMM", "PMIX", "PRTE"))}
        return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, env=environment)

    def check(self, ranks, who, kind, code, message, speaker=None):
        job = self.run_job(ranks, who, kind)
        everything = job.stdout + job.stderr
        self.assertEqual(job.returncode, code, everything)
        self.assertEqual(everything.count("error: "), 1, everything)
        prefix = "" if speaker is None else f"[rank {speaker}] "
        self.assertIn(f"{prefix}error: {message}", everything)
        self.assertNotIn("is done", everything)

    def test_one_rank_ends_all(self):
        self.check(2, 1, "user", 2, "the recipe is wrong", speaker=1)
        self.check(2, 0, "nonfinite", 4, "the loss is nan", speaker=0)

    def test_a_mistake_of_all_ranks_is_printed_once(self):
        self.check(2, "all", "user", 2, "the recipe is wrong", speaker=0)
        self.check(2, "all", "lost", 5, "a rank was lost", speaker=0)

    def test_the_cause_is_printed_before_the_consequence(self):
        self.check(2, "none", "user_then_lost", 2, "the recipe is wrong", speaker=1)

    def test_exit_codes_of_foreign_exceptions(self):
        self.check(2, 0, "torch_memory", 3, "the GPU is out of memory", speaker=0)
        self.check(2, 0, "standard", 1, "something broke", speaker=0)

    def test_without_mpirun(self):
        for kind, code, message in [
            ("user", 2, "the recipe is wrong"),
            ("fit", 3, "the model does not fit"),
            ("nonfinite", 4, "the loss is nan"),
            ("lost", 5, "a rank was lost"),
            ("torch_memory", 3, "the GPU is out of memory"),
            ("host_memory", 3, "the host is out of memory"),
            ("host_memory_torch", 3, "the host is out of memory"),
            ("torch", 1, "a check of torch failed"),
            ("standard", 1, "something broke"),
            ("unknown", 1, "an exception that is no std::exception"),
        ]:
            with self.subTest(kind):
                self.check(0, 0, kind, code, message)

    def test_tasks_that_do_not_know_of_each_other(self):
        """srun without --mpi=pmix: each task would be a run of its own, in the same folder."""
        for tasks, code in (("1", 0), ("2", 2)):
            job = subprocess.run(
                [BINARY, DEVICE, "none", "user"],
                capture_output=True,
                text=True,
                timeout=LIMIT_S,
                env=os.environ | {"SLURM_STEP_NUM_TASKS": tasks},
            )
            self.assertEqual(job.returncode, code, job.stderr)
        self.assertIn("error: srun started 2 tasks that do not know of each other", job.stderr)

    def test_a_stall_is_told_by_who_watches(self):
        """Stopped, asleep for ever, in an endless loop: exit code 5, and the rank, the collective and who waits are
        named."""
        for kind, ranks, who, what in [
            ("stop", 3, 2, "silent for 3 s"),
            ("stop", 3, 0, "silent for 3 s"),
            ("sleep", 2, 1, "stalls: without progress for 3 s, asleep"),
            ("loop", 3, 1, "stalls: without progress for 3 s, busy"),
            ("sleep", 3, 0, "stalls: without progress for 3 s, asleep"),
        ]:
            with self.subTest(kind, who=who):
                job = self.run_job(ranks, who, kind)
                everything = job.stdout + job.stderr
                self.assertEqual(job.returncode, 5, everything)
                self.assertEqual(everything.count("error: "), 1, everything)
                speaker = 1 if (kind, who) == ("stop", 0) else 0
                self.assertRegex(
                    everything,
                    rf"\[rank {speaker}\] error: rank {who} of {ranks} \(host .*, process \d+\)"
                    rf" {what.replace('3 s', '[34] s')}",
                )
                others = [str(rank) for rank in range(ranks) if rank != who]
                self.assertRegex(
                    everything,
                    rf"ranks? {' and '.join(others)} waits? for it, at step 3, in all_reduce_sum #1 of group world"
                    rf" \({ranks} ranks\), 4 bytes",
                )

    def test_a_slow_rank_is_waited_for(self):
        for kind in ("slow", "nap"):
            with self.subTest(kind):
                job = self.run_job(2, 1, kind)
                self.assertEqual(job.returncode, 0, job.stdout + job.stderr)
                self.assertEqual(job.stdout.count("is done"), 2)

    def test_a_job_without_failure(self):
        for ranks in (0, 1, 2):
            job = self.run_job(ranks, "none", "user")
            self.assertEqual(job.returncode, 0, job.stderr)
            self.assertEqual(job.stdout.count("is done"), max(ranks, 1))


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
