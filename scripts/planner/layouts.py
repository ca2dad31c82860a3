"""The layout of a recipe on so many GPUs that plans fastest and fits, among those that a cook would try.

best = fastest(asking, recipe, gpus=64, layouts=[Layout(8, 1), Layout(8, 2)], words=("train.batch=256",))
best.plan["time"]["tokens_per_s"], best.layout
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    ep: int
    tp: int
    shard: str = "none"

    def words(self):
        return (f"mesh.ep={self.ep}", f"mesh.tp={self.tp}", f"mesh.shard={self.shard}")

    def data_ranks(self, gpus):
        """Ranks that take documents of their own."""
        return gpus // self.tp

    def text(self, gpus):
        shape = f"dp {gpus // (self.ep * self.tp)} ep {self.ep} tp {self.tp}"
        return shape + ("" if self.shard == "none" else ", sharded")


@dataclass
class Planned:
    layout: Layout
    words: tuple
    plan: dict

    @property
    def tokens_per_s_per_gpu(self):
        return self.plan["time"]["tokens_per_s_per_gpu"]


def fastest(asking, recipe, gpus, layouts, batch, words=()):
    """None where none fits. Every rank that takes documents gets as many sequences as the others, at least one."""
    tried = []
    for layout in layouts:
        if gpus % (layout.ep * layout.tp) == 0 and batch % layout.data_ranks(gpus) == 0:
            tried.append((layout, (recipe, "--on", f"{gpus}xH100", f"train.batch={batch}", *layout.words(), *words)))
    plans = asking.all([question for _, question in tried])
    fitting = [
        Planned(layout, question, plan)
        for (layout, question), plan in zip(tried, plans)
        if plan is not None and plan["memory"]["fits"]
    ]
    return max(fitting, key=lambda planned: planned.tokens_per_s_per_gpu, default=None)
