"""Weak and strong scaling of the cookbook's recipes from 8 to 4,096 H100, as the planner sees it.

Weak: as many sequences more as there are GPUs more. Strong: the recipe's own batch, spread over more GPUs until each
group of a tensor axis of eight has one sequence. At every size the layout that plans fastest of those listed here.
"""

from dataclasses import dataclass

from planner.asking import markdown
from planner.layouts import Layout, Planned, fastest

SIZES = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
DATA = ("--documents", "1000000", "--tokens-per-document", "4096")
SHOWN = {"weak": (8, 64, 512, 4096), "strong": SIZES}  # in tables; the picture has all
# Parts of a step beside products: what a GPU does alone, and where it waits for others or for what they hold.
OWN = ("row kernels", "dequantise", "launches")
WAITS = (
    "imbalance",
    "exchange",
    "tensor axis",
    "gathers of weights",
    "host copies of weights",
    "gradient reduction",
    "optimizer",
)


@dataclass(frozen=True)
class Recipe:
    name: str
    path: str
    batch: int  # of the recipe
    sequences_a_gpu: int  # of weak scaling
    layouts: tuple


@dataclass
class Size:
    gpus: int
    batch: int
    planned: Planned
    efficiency: float  # tokens/s of a GPU, over those with the fewest GPUs

    def largest(self, among):
        """The part of those that the step is longest for, and its share."""
        time = self.planned.plan["time"]
        exposed = {part["name"]: part["exposed_s"] / time["step_s"]["expected"] for part in time["parts"]}
        name = max(among, key=lambda name: exposed.get(name, 0.0))
        share = exposed.get(name, 0.0)
        return f"{name} {share:.0%}" if share >= 0.005 else "–"


def _axes(*eps, tps=(1, 2, 4, 8)):
    return tuple(Layout(ep, tp) for ep in eps for tp in tps)


DEEPSEEK = (*_axes(8, 16), Layout(1, 1, "all"), Layout(8, 1, "all"))
RECIPES = (
    Recipe("DeepSeek-V3, attention", "recipes/deepseek-v3-attention.yaml", 64, 4, DEEPSEEK),
    Recipe("DeepSeek-V3, experts", "recipes/deepseek-v3-experts.yaml", 64, 4, DEEPSEEK),
    Recipe("Mixtral-8x7B", "recipes/mixtral-8x7b.yaml", 8, 8, (*_axes(1), Layout(8, 1))),
)


def _sizes(asking, recipe, batch_of, layouts):
    sizes, first = [], None
    for gpus in SIZES:
        batch = batch_of(gpus)
        planned = fastest(asking, recipe.path, gpus, layouts, batch, DATA)
        if planned is None:
            continue
        first = first or planned.tokens_per_s_per_gpu
        sizes.append(Size(gpus, batch, planned, planned.tokens_per_s_per_gpu / first))
    return sizes


def weak(asking, recipe):
    # A tensor axis of more than two sends more than any of these recipes gains by it.
    layouts = [layout for layout in recipe.layouts if layout.tp <= 2]
    return _sizes(asking, recipe, lambda gpus: recipe.sequences_a_gpu * gpus, layouts)


def strong(asking, recipe):
    return _sizes(asking, recipe, lambda gpus: recipe.batch, recipe.layouts)


def table(sizes_of, shown=SIZES):
    """sizes_of: {recipe: its sizes}; `shown`: numbers of GPUs."""
    rows = []
    for recipe, sizes in sizes_of.items():
        for size in (size for size in sizes if size.gpus in shown):
            plan = size.planned.plan
            rows.append(
                (
                    recipe.name if size is sizes[0] else "",
                    f"{size.gpus:,}",
                    size.planned.layout.text(size.gpus),
                    f"{plan['time']['step_s']['expected']:.2f} s",
                    f"{plan['time']['tokens_per_s']:,.0f}",
                    f"{plan['time']['tokens_per_s_per_gpu']:,.0f}",
                    f"{size.efficiency:.0%}",
                    size.largest(OWN),
                    size.largest(WAITS),
                )
            )
    head = ["recipe", "H100", "mesh", "step", "tokens/s", "a GPU", "efficiency", "beside products", "waits"]
    return markdown(head, rows, right={1, 3, 4, 5, 6})
