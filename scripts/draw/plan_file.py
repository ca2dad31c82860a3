"""What `moetune plan --json` prints, checked as it is read (trainer/plan/plan_json.cpp).

for plan in read_plans("plan.json"): plan.step_s.expected, plan.parts, plan.dollars

A file that is no plan, or a damaged one, is a UserError that names the place.
"""

import json
import math
from dataclasses import dataclass

from draw.errors import UserError
from draw.units import count_text

LANES = ("compute", "copy", "network", "host")
PHASES = ("run", "load", "step", "save")


@dataclass(frozen=True)
class Outlook:
    low: float
    expected: float
    high: float


@dataclass(frozen=True)
class MemoryPart:
    name: str
    bytes: float
    on_host: bool
    phase: str
    formula: str


@dataclass(frozen=True)
class TimePart:
    name: str
    busy_s: float
    exposed_s: float


@dataclass(frozen=True)
class LaneSpan:
    lane: str
    name: str
    begin_s: float
    end_s: float


@dataclass(frozen=True)
class Pass:
    """A group's way down or up through a stage."""

    group: int
    up: bool
    begin_s: float
    end_s: float
    update_wait_s: float  # in it, for the optimizer
    arrives_s: float  # of what it sends on, at its neighbour; 0: it sends nothing


@dataclass(frozen=True)
class PlannedStage:
    holds: str
    passes: list


@dataclass(frozen=True)
class Pipeline:
    groups: int
    bubble: float  # share of a step, of stages alike
    step_s: float
    stages: list


@dataclass(frozen=True)
class Rate:
    name: str
    value: float
    source: str


class Entry:
    """A value of the file with the place where it stands, which errors name."""

    def __init__(self, value, place):
        self.value, self.place = value, place

    def wrong(self, wanted):
        shown = json.dumps(self.value)
        shown = shown if len(shown) <= 40 else shown[:39] + "…"
        return UserError(f"{self.place}: is {shown}, must be {wanted}; let moetune plan --json write it anew")

    def has(self, key):
        return isinstance(self.value, dict) and key in self.value

    def entry(self, key):
        if not isinstance(self.value, dict):
            raise self.wrong("an object")
        if key not in self.value:
            raise UserError(f'{self.place}: there is no "{key}"; let moetune plan --json write it anew')
        return Entry(self.value[key], f"{self.place}: {key}")

    def items(self):
        if not isinstance(self.value, list):
            raise self.wrong("a list")
        return [Entry(value, f"{self.place}[{i}]") for i, value in enumerate(self.value)]

    def named(self):
        if not isinstance(self.value, dict):
            raise self.wrong("an object")
        return [(name, Entry(value, f"{self.place}: {name}")) for name, value in self.value.items()]

    def text(self):
        if not isinstance(self.value, str):
            raise self.wrong("text")
        return self.value

    def one_of(self, words):
        if self.value not in words:
            raise self.wrong("one of " + ", ".join(words))
        return self.value

    def truth(self):
        if not isinstance(self.value, bool):
            raise self.wrong("true or false")
        return self.value

    def number(self):
        """0 or more: nothing in a plan is less."""
        is_number = isinstance(self.value, (int, float)) and not isinstance(self.value, bool)
        if not is_number or not 0 <= self.value <= 1e30:  # NaN is neither
            raise self.wrong("a number of 0 or more")
        return self.value

    def number_or_none(self):
        return None if self.value is None else self.number()


class Plan:
    def __init__(self, file):
        model, mesh, machine = file.entry("model"), file.entry("mesh"), file.entry("machine")
        self.path = model.entry("path").text()
        self.model_type = model.entry("model_type").text()
        self.parameters = model.entry("parameters").number()
        self.active_parameters = model.entry("active_parameters").number()
        self.layers = model.entry("layers").number()
        self.experts = model.entry("experts").number()
        self.adapter_parameters = file.entry("adapter").entry("parameters").number()
        self.gpus = mesh.entry("gpus").number()
        self.mesh = {axis: mesh.entry(axis).number() for axis in ("pp", "dp", "ep", "tp")}
        self.shard = mesh.entry("shard").text()
        self.machine = machine.entry("name").text()
        self.device = machine.entry("device").text()
        self.gpus_per_host = machine.entry("gpus_per_host").number()
        self.network = machine.entry("network").text()
        self.rates = [
            Rate(name, rate.entry("value").number(), rate.entry("source").text())
            for name, rate in machine.entry("figures").named()
        ]
        self._read_memory(file.entry("memory"))
        self._read_time(file.entry("time"))
        self._read_run(file.entry("run"), file.entry("cost"))
        said = file.entry("changes_to_fit").items() if file.has("changes_to_fit") else []
        self.changes_to_fit = [change.text() for change in said]

    def _read_memory(self, memory):
        self.memory = [
            MemoryPart(
                part.entry("name").text(),
                part.entry("bytes").number(),
                part.entry("where").one_of(("host", "device")) == "host",
                part.entry("phase").one_of(PHASES),
                part.entry("formula").text(),
            )
            for part in memory.entry("parts").items()
        ]
        self.fits = memory.entry("fits").truth()
        self.bytes = {place: memory.entry(f"{place}_bytes").number() for place in ("device", "host")}
        self.limits = {place: memory.entry(f"{place}_limit_bytes").number() for place in ("device", "host")}

    def _read_time(self, time):
        step = time.entry("step_s")
        self.step_s = Outlook(*(step.entry(outlook).number() for outlook in ("low", "expected", "high")))
        if self.step_s.expected == 0:
            raise step.entry("expected").wrong("above 0")
        self.tokens_per_s = time.entry("tokens_per_s").number()
        self.tokens_per_s_per_gpu = time.entry("tokens_per_s_per_gpu").number()
        self.calibrated = time.entry("calibrated").truth()
        self.computing = time.entry("computing").number()
        self.parts = [
            TimePart(part.entry("name").text(), part.entry("s").number(), part.entry("exposed_s").number())
            for part in time.entry("parts").items()
        ]
        self.spans = [self._span(span) for span in time.entry("spans").items()]
        pipeline = time.entry("pipeline")
        self.pipeline = None if pipeline.value is None else self._pipeline(pipeline)

    def _span(self, span):
        fields = span.items()
        if len(fields) != 4:
            raise span.wrong("[lane, operation, begin, end]")
        lane, name, begin, end = fields
        if end.number() < begin.number():
            raise span.wrong("a span that ends behind its begin")
        return LaneSpan(lane.one_of(LANES), name.text(), begin.number(), end.number())

    def _pipeline(self, pipeline):
        step_s = pipeline.entry("step_s")
        stages = [
            PlannedStage(
                stage.entry("holds").text(), [self._pass(one, step_s) for one in stage.entry("passes").items()]
            )
            for stage in pipeline.entry("stages").items()
        ]
        if step_s.number() == 0 or len(stages) < 2 or not all(stage.passes for stage in stages):
            raise pipeline.wrong("of a step and two stages at least, each with passes")
        bubble = pipeline.entry("bubble")
        if bubble.number() > 1:
            raise bubble.wrong("a share of 1")
        return Pipeline(pipeline.entry("groups").number(), bubble.number(), step_s.number(), stages)

    def _pass(self, one, step_s):
        fields = one.items()
        if len(fields) != 6:
            raise one.wrong("[group, way, begin, end, wait, arrival]")
        group, way, begin, end, wait, arrives = fields
        if not begin.number() + wait.number() <= end.number() * (1 + 1e-9) <= step_s.number() * (1 + 2e-9):
            raise one.wrong("a pass within the step, as long as its wait at least")
        is_up = way.one_of(("down", "up")) == "up"
        return Pass(group.number(), is_up, begin.number(), end.number(), wait.number(), arrives.number())

    def _read_run(self, run, cost):
        self.steps = run.entry("steps").number()
        self.tokens = run.entry("tokens").number()
        self.hours = Outlook(*(run.entry(key).number() for key in ("hours_low", "hours", "hours_high")))
        self.load_s = run.entry("load_s").number()
        self.evaluation_s = run.entry("evaluation_s").number()
        self.save_s = run.entry("save_s").number()
        self.sequences_a_step = run.entry("sequences_a_step").number()
        self.max_tokens = run.entry("max_tokens").number()
        self.data = run.entry("data").text()
        self.price = cost.entry("price_per_gpu_hour").number_or_none()
        self.dollars = cost.entry("dollars").number_or_none()
        self.dollars_per_million_tokens = cost.entry("dollars_per_million_tokens").number_or_none()
        self.price_source = cost.entry("price_source").text() if self.price is not None else ""

    @property
    def model(self):
        """The last part of its path: "deepseek-v3"."""
        return self.path.rstrip("/").rsplit("/", 1)[-1] or self.model_type

    @property
    def machines(self):
        return f"{self.gpus:,} x {self.machine.upper()}"

    @property
    def mesh_text(self):
        axes = " ".join(f"{axis} {size}" for axis, size in self.mesh.items() if axis != "pp" or size > 1)
        return axes + ("" if self.shard == "none" else ", sharded")

    @property
    def method(self):
        if self.adapter_parameters == 0:
            return "all weights train"
        return f"adapters of {count_text(self.adapter_parameters)} parameters train"


def _no_number(text):
    raise ValueError(f"{text} is no number that JSON has")


def read_plans(path):
    """One plan, or those of {"plans": [...]}; at least one."""
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file, parse_constant=_no_number)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # no UTF-8, no JSON
        raise UserError(f"{path}: is no JSON: {error}") from None
    whole = Entry(content, str(path))
    if not whole.has("plans"):
        return [Plan(whole)]
    plans = [Plan(plan) for plan in whole.entry("plans").items()]
    if not plans:
        raise UserError(f"{path}: there is no plan in it: no layout fitted")
    return plans


def cost_order(plans):
    """Those that fit first; the cheapest first, where prices are not known the shortest."""

    def key(plan):
        spent = plan.hours.expected if plan.dollars is None else plan.dollars
        return not plan.fits, spent if math.isfinite(spent) else math.inf

    return sorted(plans, key=key)
