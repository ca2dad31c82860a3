"""Asks `moetune plan --json`, each question once, and several at a time.

asking = Asking("build/moetune")
plan = asking.plan("recipes/mixtral-8x7b.yaml", "--on", "8xH100", "train.batch=64")
plan["time"]["tokens_per_s"]
asking.all([("--model", "mixtral-8x7b", "--on", "1xH100"), ...])     # in their order
"""

import json
import os
import shlex
import subprocess
from concurrent.futures import ThreadPoolExecutor


class Refused(Exception):
    """The planner's answer to what cannot be planned: a mesh that does not go with the model, say."""


class Asking:
    def __init__(self, program):
        self.program = str(program)
        self.answers = {}

    def plan(self, *words):
        """The plan, whether it fits or not. Throws Refused."""
        if words not in self.answers:
            self.answers[words] = self._ask(words)
        answer = self.answers[words]
        if isinstance(answer, Refused):
            raise answer
        return answer

    def all(self, questions):
        """Plans of all; None where one is refused."""
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(self._plan_or_none, questions))

    def text(self, *words):
        return subprocess.run([self.program, "plan", *words], capture_output=True, text=True, check=True).stdout

    def _plan_or_none(self, words):
        try:
            return self.plan(*words)
        except Refused:
            return None

    def _ask(self, words):
        ran = subprocess.run([self.program, "plan", *words, "--json"], capture_output=True, text=True)
        if ran.returncode == 2:
            return Refused(ran.stderr.strip())
        if ran.returncode not in (0, 3):  # 3: it does not fit
            raise RuntimeError(f"{command(words)}: exit code {ran.returncode}: {ran.stderr.strip()}")
        answer = json.loads(ran.stdout)
        for plan in answer.get("plans", [answer]):
            plan["time"].pop("spans")  # long, and of no use here
        return answer


def command(words):
    return shlex.join(("moetune", "plan", *words))


class Numbered:
    """The questions of a table, numbered as they come, and printed above it."""

    def __init__(self, asking):
        self.asking, self.numbers = asking, {}

    def plan(self, *words):
        """(plan, its mark: "(3)")"""
        plan = self.asking.plan(*words)
        return plan, self._mark(words)

    def text(self, *words):
        return self.asking.text(*words), self._mark(words)

    def _mark(self, words):
        return f"({self.numbers.setdefault(words, len(self.numbers) + 1)})"

    def block(self):
        return "".join(f"    ({number}) {command(words)}\n" for words, number in self.numbers.items())


def markdown(head, rows, right=()):
    """A table; columns of `right` stand on the right."""
    rule = ["---:" if i in right else "---" for i in range(len(head))]
    lines = [head, rule, *([str(cell) for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
