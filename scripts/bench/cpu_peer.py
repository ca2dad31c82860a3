#!/usr/bin/env python3
"""Fine-tunes the quickstart's model with moetune and with transformers + PEFT in turn on this CPU: tokens/s, losses.

    .venv/bin/python scripts/bench/cpu_peer.py [--repeats 5] [--steps 60] [--at-least 2.0]
    .venv/bin/python scripts/bench/cpu_peer.py --quick        # one short run of each, no ratio demanded

Both sides do recipes/quickstart.yaml's work: its steps of four sequences of at most 512 tokens (data.shuffle=false, so
that both take the same documents in each), LoRA of rank 32 on attention and on each map of each routed expert, LoRA+,
clipping, AdamW, schedule, in fp32. Ours is started as the recipe says, two ranks of a thread each on NF4 weights. The
peer gets those very weights dense, as moetune exports them, so it pays nothing for quantisation; the adapters that ours
begins with, as exported; and as many threads as ours has ranks. PEFT turns the adapters of an expert's gate_proj and
up_proj into one of twice the rank with zeros beside the diagonal; to train what is asked for, these are held at zero.

The peer's best setting is found first, by short runs: documents a row each and padded to the longest, all at once or
in four batches sorted by length, or packed behind each other; transformers' loop over experts or its grouped product.
Attention is sdpa, AdamW torch's fused one.

A run waits until other processes leave the cores alone, and is made again where they did not (--others, --tries): with
two threads on one core's time each side waits for its slower half.

Losses of the same steps are printed beside each other: that they agree says that it was the same work. Tokens are those
of documents, without padding. Exit code 1: our median is below --at-least times the peer's, or losses differ.

Takes quickstart/ where scripts/quickstart left data and base; otherwise makes the data (WordNet) and trains a base for
--base-steps steps. Exit code 77: there is no WordNet.
"""

import argparse
import json
import math
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
QUESTIONS = HERE.parent / "quickstart_data.py"
RECIPE = REPOSITORY / "recipes" / "quickstart.yaml"
SETTINGS = {
    f"{rows_name}, experts {experts}": {"rows": rows, "rows_at_once": at_once, "experts": experts}
    for rows_name, rows, at_once in (
        ("a document a row", "padded", 0),
        ("a document a row, 12 rows at once", "padded", 12),
        ("packed", "packed", 0),
    )
    for experts in ("eager", "grouped_mm")
}
QUICK_SETTING = "packed, experts grouped_mm"
TRIAL_STEPS = 10
NO_WORDNET = 77
# Of the first steps: in fp32 two programs part slowly, and once a token has another expert in one of them, for good.
# Four steps differed by 2e-7; with adapters of rank 64 instead of two of 32, by 5e-3 from the second on.
COMPARED_STEPS, LOSS_TOLERANCE = 10, 1e-3


class Failed(Exception):
    pass


def call(command, threads, cwd=None):
    """Output of a command that must end well; OpenMP in it has so many threads."""
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    done = subprocess.run(list(map(str, command)), text=True, capture_output=True, env=environment, cwd=cwd)
    if done.returncode != 0:
        raise Failed(
            f"{' '.join(map(str, command))}: exit code {done.returncode}\n{(done.stdout + done.stderr)[-3000:]}"
        )
    return done.stdout


def busy_s():
    """Seconds of all cores since the start of the machine that somebody computed."""
    numbers = [int(word) for word in open("/proc/stat").readline().split()[1:9]]
    idle, waiting = numbers[3:5]
    return (sum(numbers) - idle - waiting) / os.sysconf("SC_CLK_TCK")


class Others:
    """Cores that processes other than our children take: what makes two runs incomparable."""

    def __init__(self):
        self.begin, self.busy, self.own = time.monotonic(), busy_s(), self.own_s()

    @staticmethod
    def own_s():
        usages = [resource.getrusage(who) for who in (resource.RUSAGE_CHILDREN, resource.RUSAGE_SELF)]
        return sum(usage.ru_utime + usage.ru_stime for usage in usages)

    def cores(self):
        """Mean since the beginning, once the children have ended."""
        passed = time.monotonic() - self.begin
        return max(0.0, (busy_s() - self.busy - (self.own_s() - self.own)) / passed)

    @classmethod
    def wait(cls, allowed, patience_s):
        """Until they take no more than `allowed` cores, or for so long."""
        end = time.monotonic() + patience_s
        while time.monotonic() < end:
            others = cls()
            time.sleep(1)
            if others.cores() <= allowed:
                return


class Bench:
    def __init__(self, options, folder):
        import yaml

        self.options, self.folder, self.weights, self.runs = options, folder, "pretrained", 0
        self.recipe = yaml.safe_load(RECIPE.read_text())
        self.ranks = math.prod(self.recipe["mesh"].values())

    def moetune(self, verb, *words):
        ranks = ["mpirun", "-np", self.ranks, "--oversubscribe", "--bind-to", "none"] if verb == "train" else []
        return call([*ranks, self.options.program, verb, *words], threads=1, cwd=self.folder)

    # What both sides are given.

    def prepare(self):
        """Data, base, initial adapters; returns what the base is, in words."""
        data, said = self.find_base()
        self.documents(data)
        # The weights and adapters that a run begins with: a step of learning rate 0, exported.
        self.train("start", "train.steps=1", "train.optimizer.lr=0", "train.schedule.warmup_steps=0")
        self.moetune("export", "start", "--to", "adapter")
        self.moetune("export", "start", "--to", "base-nf4", "--base")
        return said

    def find_base(self):
        """The folder of the data, and what the base is, in words; sets self.base and how its weights are had."""
        given = self.options.quickstart
        if (given / "base" / "config.json").is_file() and (given / "data" / "train.jsonl").is_file():
            self.base, data, said = given / "base", given / "data", f"base and data of {given.name}/"
        else:
            data = self.folder / "quickstart" / "data"
            wordnet = pathlib.Path("/usr/share/wordnet/data.noun")
            if not wordnet.is_file():
                print(f"there is neither {given} (scripts/quickstart makes it) nor {wordnet} (wordnet-base)")
                raise SystemExit(NO_WORDNET)
            call([sys.executable, QUESTIONS, data], threads=1)
            steps = self.options.base_steps
            if not steps:
                self.base, self.weights = data / "base", "random"
                return data, "base drawn from the seed"
            words = (f"train.steps={steps}", f"train.schedule.warmup_steps={min(20, steps)}", "data.eval=null")
            self.moetune("train", REPOSITORY / "recipes" / "quickstart-base.yaml", *words)
            self.base = self.folder / "quickstart" / "base"
            self.moetune("export", "quickstart/runs/base", "--to", self.base, "--base")
            said = f"base trained for {steps} steps"
        return data, said

    def documents(self, data):
        """The first documents of train.jsonl: as they are for moetune, tokenised and packed for the peer."""
        sys.path.insert(0, str(HERE.parent))
        from quickstart_report import load_tokenizer, read_questions

        limit, batch = self.recipe["data"]["max_tokens"], self.recipe["train"]["batch"]
        wanted = self.options.steps * batch
        with open(data / "train.jsonl", encoding="utf-8") as lines:
            (self.folder / "train.jsonl").write_text(
                "".join(line for line, _ in zip(lines, range(wanted * limit // 20)))
            )
        sequences, length = [[]], 0
        for _, _, ids, prompt in read_questions(self.folder / "train.jsonl", load_tokenizer(self.base)):
            if length + len(ids) > limit:
                sequences.append([])
                length = 0
                if len(sequences) > wanted:
                    break
            sequences[-1].append({"input_ids": ids, "labels": [-100] * prompt + ids[prompt:]})
            length += len(ids)
        if len(sequences) <= wanted:
            raise Failed(f"{data / 'train.jsonl'} has too few documents for {self.options.steps} steps")
        steps = [sequences[begin : begin + batch] for begin in range(0, wanted, batch)]
        (self.folder / "steps.jsonl").write_text("".join(json.dumps({"sequences": step}) + "\n" for step in steps))

    # The sides: each returns the lines of its steps.

    def train(self, name, *words):
        values = {
            "run.dir": name,
            "model.path": self.base,
            "model.weights": self.weights,
            "data.train": "train.jsonl",
            "data.eval": "null",
            "data.shuffle": "false",
            "eval.at_start": "false",
        }
        self.moetune("train", RECIPE, *(f"{key}={value}" for key, value in values.items()), *words)
        lines = map(json.loads, (self.folder / name / "log.jsonl").read_text().splitlines())
        return [line for line in lines if line["kind"] == "step"]

    def ours(self):
        steps = self.options.steps
        self.runs += 1
        return self.train(f"ours-{self.runs}", f"train.steps={steps}", f"train.schedule.warmup_steps={self.warmup()}")

    def warmup(self):
        return min(self.recipe["train"]["schedule"]["warmup_steps"], self.options.steps)

    def learning_rates(self):
        """Warm-up (s + 1) / W, then half a cosine down to the least (trainer/update/schedule.h)."""
        schedule, top = self.recipe["train"]["schedule"], float(self.recipe["train"]["optimizer"]["lr"])
        assert schedule["kind"] == "cosine"
        least, rates, warmup = schedule["min_lr_ratio"], [], self.warmup()
        for s in range(self.options.steps):
            down = (1 + math.cos(math.pi * (s - warmup) / max(1, self.options.steps - warmup))) / 2
            rates.append(top * ((s + 1) / warmup if s < warmup else least + (1 - least) * down))
        return rates

    def peer(self, setting, steps=None):
        lrs = self.learning_rates()[:steps]
        lines = (self.folder / "steps.jsonl").read_text().splitlines(keepends=True)[: len(lrs)]
        (self.folder / "peer-steps.jsonl").write_text("".join(lines))
        spec = {
            "model": str(self.folder / "base-nf4"),
            "adapter": str(self.folder / "adapter"),
            "steps": str(self.folder / "peer-steps.jsonl"),
            "lrs": lrs,
            "lr_b_ratio": self.recipe["train"]["optimizer"]["lr_b_ratio"],
            "threads": self.ranks,
            "untangle": True,
            **SETTINGS[setting],
        }
        (self.folder / "spec.json").write_text(json.dumps(spec))
        output = call([sys.executable, HERE / "peft_side.py", self.folder / "spec.json"], threads=self.ranks)
        start, *rest = map(json.loads, output.splitlines())
        self.peer_versions = start["versions"]
        return rest

    def undisturbed(self, name, side, *arguments):
        """A run while others leave the cores alone; one in which they did not is made again, --tries times at most."""
        for left in reversed(range(self.options.tries)):
            Others.wait(self.options.others, self.options.patience)
            others = Others()
            lines = side(*arguments)
            cores = others.cores()
            if cores <= self.options.others or not left:
                return lines, cores
            print(f"  {name}: others took {cores:.2f} cores, again ({self.speed(lines, 3):,.0f} tokens/s)", flush=True)

    def speed(self, lines, warm_up=None):
        """Tokens/s over the counted steps together."""
        counted = lines[self.options.warm_up if warm_up is None else warm_up :]
        return sum(line["tokens"] for line in counted) / sum(line["step_s"] for line in counted)

    def best_setting(self):
        if self.options.setting:
            return self.options.setting
        print("The peer's settings, a short run each:", flush=True)
        speeds = {}
        for setting in SETTINGS:
            lines, cores = self.undisturbed(setting, self.peer, setting, min(TRIAL_STEPS, self.options.steps))
            speeds[setting] = self.speed(lines, min(3, len(lines) - 1))
            print(f"  {setting}: {speeds[setting]:,.0f} tokens/s (others took {cores:.2f} cores)", flush=True)
        return max(speeds, key=speeds.get)


def machine(program):
    cpu = next(line for line in open("/proc/cpuinfo") if line.startswith("model name")).split(":")[1].strip()
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    about = ", ".join(" ".join(line.split()) for line in call([program, "--version"], threads=1).split("\n")[:2])
    return f"{cpu}, {len(os.sched_getaffinity(0))} cores, load average {load}; {about}"


def row(name, speeds):
    median = statistics.median(speeds)
    return f"{name}: {median:,.0f} tokens/s, median of {len(speeds)} runs ({min(speeds):,.0f} - {max(speeds):,.0f})"


def compare(ours, peer):
    """Losses side by side; the greatest relative difference of the first steps. Failed where the data differ."""
    greatest, shown = 0.0, {1, 2, 3, 5, 10, 20, 30, 40, 50, 60, 80, 100, len(ours)}
    print(f"\n{'step':>6} {'tokens':>7} {'targets':>7} {'ours':>9} {'peer':>9} {'difference':>11}")
    for a, b in zip(ours, peer, strict=True):
        if (a["tokens"], a["target_tokens"]) != (b["tokens"], b["target_tokens"]):
            raise Failed(
                f"step {a['step']}: ours took {a['tokens']} tokens, {a['target_tokens']} of them targets, the peer"
                f" {b['tokens']} and {b['target_tokens']}: not the same data"
            )
        difference = abs(a["loss"] - b["loss"]) / abs(b["loss"])
        if a["step"] <= COMPARED_STEPS:
            greatest = max(greatest, difference)
        if a["step"] in shown:
            print(
                f"{a['step']:>6} {a['tokens']:>7} {a['target_tokens']:>7} {a['loss']:>9.5f} {b['loss']:>9.5f}"
                f" {difference:>11.1e}"
            )
    return greatest


def measure(bench, options):
    print(machine(options.program), flush=True)
    print(f"Work: {bench.prepare()}; {options.steps} steps a run, the first {options.warm_up} not counted.", flush=True)
    setting = bench.best_setting()
    ours, peer = [], []
    for repeat in range(options.repeats):
        mine, my_others = bench.undisturbed("ours", bench.ours)
        its, its_others = bench.undisturbed("peer", bench.peer, setting)
        ours.append(mine)
        peer.append(its)
        print(
            f"Run {repeat + 1}: ours {bench.speed(mine):,.0f} tokens/s (others took {my_others:.2f} cores), peer"
            f" {bench.speed(its):,.0f} ({its_others:.2f}); load average {os.getloadavg()[0]:.1f}",
            flush=True,
        )
    tokens = sum(line["tokens"] for line in peer[-1])
    print(
        f"\nPeer: {bench.peer_versions}, {bench.ranks} threads, fp32, sdpa, {setting};"
        f" {1 - tokens / sum(line['positions'] for line in peer[-1]):.0%} of its positions are padding."
    )
    greatest = compare(ours[-1], peer[-1])
    ours_speeds, peer_speeds = list(map(bench.speed, ours)), list(map(bench.speed, peer))
    ratio = statistics.median(ours_speeds) / statistics.median(peer_speeds)
    pairs = [a / b for a, b in zip(ours_speeds, peer_speeds)]
    print(f"\n{row('ours', ours_speeds)}\n{row('peer', peer_speeds)}")
    print(f"ratio of medians {ratio:.2f}, of runs that followed each other {min(pairs):.2f} - {max(pairs):.2f}")
    print(f"losses of the first {COMPARED_STEPS} steps differ by {greatest:.1e} at most")
    if greatest > LOSS_TOLERANCE:
        raise Failed(f"that is more than {LOSS_TOLERANCE}: it was not the same work")
    if ratio < options.at_least:
        raise Failed(f"ours is {ratio:.2f} times the peer, asked for was {options.at_least}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="runs of each side")
    parser.add_argument("--steps", type=int, default=60, help="of a run")
    parser.add_argument("--warm-up", type=int, default=10, help="of them, not counted")
    parser.add_argument("--at-least", type=float, default=2.0, help="times the peer's speed; 0 demands nothing")
    parser.add_argument(
        "--base-steps", type=int, default=100, help="where there is no quickstart/base; 0: weights drawn"
    )
    parser.add_argument("--quickstart", type=pathlib.Path, default=REPOSITORY / "quickstart")
    parser.add_argument("--program", type=pathlib.Path, default=REPOSITORY / "build" / "moetune")
    parser.add_argument("--setting", choices=SETTINGS, help="the peer's, instead of finding its best one")
    parser.add_argument("--others", type=float, default=0.25, help="cores that other processes may take in a run")
    parser.add_argument("--patience", type=float, default=60, help="seconds to wait for that before a run")
    parser.add_argument("--tries", type=int, default=4, help="runs to make of one, where others took more")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    options.program, options.quickstart = options.program.resolve(), options.quickstart.resolve()
    if not options.program.exists():
        parser.error(f"{options.program} does not exist: scripts/build makes build/moetune, --program names another")
    if options.quick:
        options.repeats, options.steps, options.warm_up, options.at_least = 1, 4, 1, 0.0
        options.setting = options.setting or QUICK_SETTING
        options.base_steps, options.others, options.tries, options.patience = 0, math.inf, 1, 0
    if not 0 <= options.warm_up < options.steps:
        parser.error("--warm-up must leave steps to count")
    with tempfile.TemporaryDirectory() as folder:
        try:
            measure(Bench(options, pathlib.Path(folder)), options)
        except Failed as failure:
            print(f"FAILED {failure}")
            raise SystemExit(1)


if __name__ == "__main__":
    main()
