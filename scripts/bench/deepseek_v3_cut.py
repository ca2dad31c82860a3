#!/usr/bin/env python3
"""Times training steps at DeepSeek-V3's true dimensions, cut to a few layers, with weights drawn from the seed.

    python scripts/bench/deepseek_v3_cut.py [--ranks 1] [--tokens 16384] [--document 4096] [--lognormal MEDIAN,SIGMA]
        [--steps 20] [key.sub=value ...]

Makes a model folder with config.json alone and documents of random tokens in a temporary folder, runs `moetune train`
(under mpirun for more than one rank, experts spread over them), and prints the median tokens/s of all steps but the
first three, their spread, peak memory and what was set. Random tokens skew the router less than text does, so expert
loads are near balance: the printed imbalance says how near.
"""

import argparse
import pathlib
import tempfile

from v3_rows import size_text
from v3_runs import PROGRAM, Layers, Machine, Run, RunFailed, figures

WARM_UP_STEPS = 3

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("--ranks", type=int, default=1)
parser.add_argument("--tokens", type=int, default=16384, help="of a step on each rank")
parser.add_argument("--document", type=int, default=4096, help="tokens of a document")
parser.add_argument(
    "--lognormal",
    type=lambda text: tuple(map(float, text.split(","))),
    metavar="MEDIAN,SIGMA",
    help="documents of such lengths, packed to --document, other ones in each step",
)
parser.add_argument("--steps", type=int, default=20)
parser.add_argument("--dense", type=int, default=1, help="dense layers")
parser.add_argument("--moe", type=int, default=3, help="layers with routed experts")
parser.add_argument("--program", type=pathlib.Path, default=PROGRAM)
parser.add_argument("--rehearse", action="store_true", help="tiny dimensions on CPU ranks")
parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="recipe keys")
options = parser.parse_args()

layers = Layers(options.dense, options.moe)
with tempfile.TemporaryDirectory() as folder:
    values = {"train.steps": options.steps, "mesh.ep": options.ranks}
    run = Run(
        folder,
        Machine(options.program, options.rehearse),
        layers,
        options.ranks,
        options.tokens,
        options.document,
        values,
        options.overrides,
        options.lognormal,
    )
    try:
        run.finish()
    except RunFailed as failure:
        raise SystemExit(f"{failure}\n{failure.output[-4000:]}")
    f = figures(run, WARM_UP_STEPS)

print(
    f"{layers}, {options.ranks} rank(s), {run.tokens} tokens a rank in documents of {options.lognormal or run.document},"
    f" {' '.join(options.overrides) or 'recipe as it is'}:\n  {f['tokens_per_s']:,.0f} tokens/s a rank (min"
    f" {f['tokens_per_s_min']:,.0f}, max {f['tokens_per_s_max']:,.0f}, {f['counted_steps']} steps of {f['step_s']:.3f}"
    f" s), peak {size_text(f['peak_bytes'])} (planned {size_text(f['planned_bytes'])}), expert max/mean"
    f" {f['expert_max_over_mean']:.2f}, loss {f['first_loss']:.4f} -> {f['last_loss']:.4f}\n  a step copied"
    f" {size_text(f['weights_copied_bytes'])} and gathered {size_text(f['weights_gathered_bytes'])} of weights, stood"
    f" {f['weights_wait_s']:.3f} s waiting for them; exchange sent {size_text(f['exchange_sent_bytes'])} in"
    f" {f['exchange_s']:.3f} s, tensor axis {size_text(f['tensor_axis_sent_bytes'])} in {f['tensor_axis_s']:.3f} s;"
    f" optimizer waited for {f['optimizer_wait_s']:.3f} s, replicas compared in {f['replica_check_s']:.3f} s\n  weights"
    f" made or read in {f['load_s']:.0f} s (cache: {size_text(f['cache_read_bytes'])} read,"
    f" {size_text(f['cache_written_bytes'])} written); all that was no step took {f['besides_s']:.0f} s",
    flush=True,
)
