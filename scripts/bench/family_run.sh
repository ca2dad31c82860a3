#!/usr/bin/env bash
# Twenty steps of a flagship at its true dimensions, weights drawn from the seed: tokens/s and peak beside the plan.
#
#   scripts/bench/family_run.sh RECIPE CONFIG.json FOLDER [key=value ...]
set -euo pipefail
cd "$(dirname "$0")/../.."
recipe=$1 config=$2 folder=$3
shift 3
mkdir -p "$folder/model"
cp "$config" "$folder/model/config.json"
python3 - "$folder" <<'PYTHON'
import json, random, sys
vocabulary = json.load(open(f"{sys.argv[1]}/model/config.json"))["vocab_size"]
draw = random.Random(7)
with open(f"{sys.argv[1]}/data.jsonl", "w") as file:
    for _ in range(128):
        tokens = [draw.randrange(vocabulary) for _ in range(4096)]
        file.write(json.dumps({"input_ids": tokens, "labels": tokens}) + "\n")
PYTHON
build/moetune train "$recipe" model.path="$folder/model" model.weights=random data.train="$folder/data.jsonl" \
  data.eval=null eval.every_steps=0 run.dir="$folder/run" train.steps=20 train.epochs=null data.max_tokens=4096 "$@"
python3 - "$folder" <<'PYTHON'
import json, statistics, sys
log = [json.loads(line) for line in open(f"{sys.argv[1]}/run/log.jsonl")]
steps = [entry for entry in log if entry["kind"] == "step"]
rates = [entry["tokens_per_s"] for entry in steps[5:]]
print(f"tokens/s: median {statistics.median(rates):.0f}, {min(rates):.0f} to {max(rates):.0f} over steps 6 to 20;",
      f"peak {max(entry['memory_bytes'] for entry in steps) / 2**30:.2f} GiB; loss {steps[0]['loss']:.3f} to {steps[-1]['loss']:.3f}")
PYTHON
