"""`train --profile N`: every rank leaves a trace of N steps, whose ranges are those of the step program, one inside the
other, and the run is the same as without. On a GPU the trace also counts what a step gives it to do, which does not
grow with the number of experts (design contract 9).

.venv/bin/python tests/faults/profile_test.py [BUILD_FOLDER]
"""

import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from tiny_run import CONFIG, TinyRun

SMALL = {"train.steps": 5, "checkpoint.every_steps": 5}
# tiny_run.py's model: a dense layer, two of experts, and the MTP module, which has experts too.
DENSE, MOE = ["layer 0"], ["layer 1", "layer 2", "MTP"]
BLOCKS = DENSE + MOE


class Range:
    def __init__(self, event):
        self.name, self.thread = event["name"], (event["pid"], event["tid"])
        self.begin, self.end = event["ts"], event["ts"] + event["dur"]

    def holds(self, other):
        """In time and on its thread; a trace counts in thousandths of a microsecond."""
        slack = 0.002
        return (
            other is not self
            and other.thread == self.thread
            and self.begin <= other.begin + slack
            and other.end <= self.end + slack
        )


def ranges(path):
    events = json.loads(path.read_text())["traceEvents"]
    return [Range(event) for event in events if event["ph"] == "X" and event.get("cat") == "user_annotation"]


class ProfileTest(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)

    def run_of(self, name, profile=None, ranks=1, resume=False, **changes):
        run = TinyRun(self.folder / name, **SMALL | ({"mesh.ep": 2} if ranks > 1 else {}) | changes)
        run.options = [] if profile is None else ["--profile", str(profile)]
        self.output = run.finish(ranks, resume)
        return run

    def traces(self, run):
        return sorted(path.name for path in (run.folder / "run" / "profile").iterdir())

    def check_step(self, step, found):
        inside = [r for r in found if step.holds(r)]

        def named(name, place=None):
            return [r for r in inside if r.name == name and (place is None or place.holds(r))]

        for block in BLOCKS:
            for way in ("down", "up"):
                layers = named(f"{block} {way}")
                self.assertEqual(len(layers), 1, f"{block} {way} in {step.name}")
                # Slices are the least that mixing is called for; this batch is one.
                self.assertEqual(len(named("mixing", layers[0])), 1, f"{block} {way}")
                for part in ("send", "experts", "home"):
                    self.assertEqual(len(named(part, layers[0])), int(block in MOE), f"{part} in {block} {way}")
        for name, count in {
            "mixing": 2 * len(BLOCKS),
            "send": 2 * len(MOE),
            "experts": 2 * len(MOE),
            "home": 2 * len(MOE),
            "head": 2,  # the trunk's and that of MTP
            "reduce": len(BLOCKS) + 1,  # and the turn; nothing of the embedding trains
            "optimizer wait": len(BLOCKS) + 2,  # and turn and embedding
        }.items():
            self.assertEqual(len(named(name)), count, f"{name} in {step.name}")
        order = [f"{block} down" for block in DENSE + MOE[:-1]] + ["head", "MTP down", "head", "MTP up"]
        order += [f"{block} up" for block in reversed(DENSE + MOE[:-1])]
        top = sorted((r for r in inside if r.name in order), key=lambda r: r.begin)
        self.assertEqual([r.name for r in top], order)

    def check_trace(self, path, steps):
        found = ranges(path)
        whole = [r for r in found if r.name.startswith("step ")]
        self.assertEqual([r.name for r in sorted(whole, key=lambda r: r.begin)], steps)
        for step in whole:
            self.check_step(step, found)
        self.assertEqual(len([r for r in found if r.name == "mixing"]), 2 * len(BLOCKS) * len(steps))

    def check_same(self, run, plain):
        self.assertEqual(run.losses(), plain.losses())
        self.assertEqual(run.state(), plain.state())

    def test_one_rank(self):
        plain, run = self.run_of("plain"), self.run_of("profiled", profile=2)
        self.assertIn("profile/rank-0.json", self.output)
        self.assertNotIn("ERROR", self.output)
        self.assertEqual(self.traces(run), ["rank-0.json"])
        self.check_trace(run.folder / "run/profile/rank-0.json", ["step 3", "step 4"])
        self.check_same(run, plain)
        self.assertFalse((plain.folder / "run/profile").exists())

    def test_two_ranks(self):
        plain, run = self.run_of("plain", ranks=2), self.run_of("profiled", profile=2, ranks=2)
        self.assertEqual(self.traces(run), ["rank-0.json", "rank-1.json"])
        for rank in range(2):
            path = run.folder / f"run/profile/rank-{rank}.json"
            self.check_trace(path, ["step 3", "step 4"])
            self.assertEqual(json.loads(path.read_text())["distributedInfo"], {"rank": rank, "world_size": 2})
        self.check_same(run, plain)
        # Those of two ranks are not taken for those of the run that goes on with one; steps count from where it does.
        run.values |= {"train.steps": 8, "mesh.ep": 1}
        run.options = ["--profile", "1"]
        run.finish(resume=True)
        self.assertEqual(self.traces(run), ["rank-0.json"])
        self.check_trace(run.folder / "run/profile/rank-0.json", ["step 8"])

    def test_few_steps(self):
        run = self.run_of("run", profile=4, **{"train.steps": 2})
        self.check_trace(run.folder / "run/profile/rank-0.json", ["step 1", "step 2"])

    def test_what_is_refused(self):
        for number in ("0", "101", "two"):
            run = TinyRun(self.folder / "number", **SMALL)
            run.options = ["--profile", number]
            self.assertIn("--profile", run.finish(expect=2))
            self.assertFalse((run.folder / "run").exists())
        run = TinyRun(self.folder / "own", **SMALL)
        run.options = ["--profile", "1"]
        own = run.folder / "run" / "profile" / "rank-0.json"
        own.parent.mkdir(parents=True)
        own.write_text("mine")
        self.assertIn("profile: holds traces of no run that is here", run.finish(expect=2))
        self.assertEqual(own.read_text(), "mine")


def has_gpu():
    try:
        return subprocess.run(["nvidia-smi", "-L"], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


@unittest.skipUnless(has_gpu(), "counts what a GPU is given to do")
class LaunchesTest(unittest.TestCase):
    WAITS = ("cudaStreamSynchronize", "cudaEventSynchronize", "cudaDeviceSynchronize")

    def counts(self, **config):
        """(kernels, copies, host waits) of a step."""
        folder = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, folder)
        run = TinyRun(folder, **SMALL | {"run.device": "cuda", "model.compute": "bf16", "router.bias": "frozen"})
        (folder / "model" / "config.json").write_text(json.dumps(CONFIG | config))
        run.options = ["--profile", "1"]
        run.finish()
        events = json.loads((folder / "run/profile/rank-0.json").read_text())["traceEvents"]
        of = lambda *kinds: sum(event.get("cat") in kinds for event in events)
        waits = sum(event.get("name") in self.WAITS for event in events)
        return of("kernel"), of("gpu_memcpy", "gpu_memset"), waits

    def test_a_layer_gives_the_same_work_to_do_whatever_its_experts(self):
        few, many, deeper = self.counts(), self.counts(n_routed_experts=64), self.counts(num_hidden_layers=4)
        print("kernels, copies, waits of a step:", few, "with 8 times the experts", many, "with a layer more", deeper)
        # A sort of more bins may take a pass more; a kernel an expert would be hundreds.
        self.assertLessEqual(many[0], few[0] + 4 * len(MOE))
        self.assertLessEqual(many[1], few[1] + len(MOE))
        self.assertLessEqual(many[2], few[2])
        self.assertGreater(deeper[0], few[0] + 50)  # that the trace counts at all


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], "-v"])
