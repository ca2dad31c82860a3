"""Runs moetune_parity on the recipe of a CONFIG and reads what it wrote.

program.choose_build()                      # once per test file: takes the build folder off the command line
tensors = program.run(config)               # starts dp * ep * tp ranks under mpirun, or one without it
"""

import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile

import yaml
from safetensors.torch import load_file

TIMEOUT_S = 300
build = None


def choose_build():
    """The first argument, or MOETUNE_BUILD, or ./build; the argument is removed, the rest is unittest's."""
    global build
    given = sys.argv.pop(1) if len(sys.argv) > 1 and pathlib.Path(sys.argv[1]).is_dir() else None
    build = pathlib.Path(given or os.environ.get("MOETUNE_BUILD", "build")).resolve()
    if not (build / "moetune_parity").exists():
        sys.exit(f"{build}/moetune_parity does not exist: give the build folder as first argument or in MOETUNE_BUILD")


def environment():
    return os.environ | {"OMP_NUM_THREADS": "1"}


def recipe(config, folder):
    """The recipe of a CONFIG, with its documents in `folder`. Without steps it takes one that changes nothing, with
    gradients as they are."""
    data, moves = folder / "train.jsonl", config["steps"] > 0
    data.write_text("".join(json.dumps(document) + "\n" for document in config["documents"]))
    return dict(
        run=dict(dir=str(folder / "run"), device=config["device"], threads=1, check_replicas_every=1),
        model=dict(path=config["model"], base=config["base"], compute=config["compute"]),
        adapter=config["adapter"] or "none",
        data=dict(train=str(data), max_tokens=config["max_tokens"], shuffle=False),
        train=dict(
            steps=max(1, config["steps"]),
            parts=config["parts"],
            experts=config["experts"],
            batch=config["batch"],
            slice_tokens=config["slice_tokens"],
            keep=config["keep"],
            clip=config["clip"] if moves else 0.0,
            optimizer=dict(lr=config["lr"] if moves else 0.0, eps=config["eps"], weight_decay=config["weight_decay"]),
            schedule=dict(kind="constant"),
        ),
        mesh=config["mesh"] | dict(expert_tp=config["expert_tp"], shard=config["shard"]),
        offload=dict(frozen=config["offload"], activations=config["activations"]),
        exchange=dict(buffer_rows=config["buffer_rows"]),
        router=dict(
            train=config["router_train"],
            bias=config["router_bias"],
            bias_rate=config["bias_rate"],
            balance=dict(kind=config["balance"], weight=config["balance_loss"]) if config["balance_loss"] else {},
        ),
        mtp=dict(loss_weight=config["mtp_loss_weight"]),
    )


def run(config):
    """{name: tensor} that moetune_parity wrote for `config` (README.md says which); raises with its output when it
    fails."""
    ranks = math.prod(config["mesh"].values())
    launch = (
        ["mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-np", str(ranks)]
        if ranks > 1
        else []
    )
    with tempfile.TemporaryDirectory() as folder:
        file, out = pathlib.Path(folder, "recipe.yaml"), pathlib.Path(folder, "out.safetensors")
        file.write_text(yaml.safe_dump(recipe(config, pathlib.Path(folder))))
        done = subprocess.run(
            [*launch, str(build / "moetune_parity"), str(file), str(out)],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            env=environment(),
        )
        if done.returncode != 0:
            said = (done.stdout + done.stderr)[-4000:]
            raise RuntimeError(f"moetune_parity on {ranks} ranks ended with {done.returncode}:\n{said}")
        return load_file(out)
