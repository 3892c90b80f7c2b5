#!/usr/bin/env bash
# What only a GPU can show, in order of worth and in under 8 minutes: each part has a time limit of its own, and its
# result is written as soon as it is known.
#
#   scripts/gpu_check.sh [FOLDER]      logs and tables go to FOLDER (runs/gpu_check)
set -uo pipefail
cd "$(dirname "$0")/.."
folder="${1:-runs/gpu_check}"
work=$(mktemp -d)
mkdir -p "$folder"
export PYTHONUNBUFFERED=1 PYTHONPATH="$PWD"

part() { # name, seconds, command ...
    local name="$1" limit="$2" started=$SECONDS
    shift 2
    timeout "$limit" "$@" >"$folder/$name.log" 2>&1
    echo "$name: exit $?, $((SECONDS - started)) s"
    tail -n 3 "$folder/$name.log"
}

python - <<'PYTHON' | tee "$folder/machine.txt"
import torch, triton
print(torch.cuda.get_device_name(), "torch", torch.__version__, "triton", triton.__version__)
PYTHON
part tests 80 python -m pytest -o addopts= -m gpu -q
part update 110 python scripts/bench_update.py --repeats 5 --output "$folder/update_gpu.md"
part sampler 50 python scripts/bench_sampler.py --output "$folder/sampler_gpu.md"
part router 40 python scripts/bench_routing.py --tokens 16384 --arms "triton|liger" --repeats 5 --output "$folder/routing_gpu"

# The whole commands at SiT-XL/2, on made-up latents: their time and memory are real, their pictures are not.
python - "$work/latents/vae-sd" <<'PYTHON'
import json, sys
from pathlib import Path
import numpy as np
folder = Path(sys.argv[1])
folder.mkdir(parents=True)
moments = np.full((8, 32, 32), 1.0, np.float32)
names = [f"{i:04d}.npy" for i in range(64)]
for i, name in enumerate(names):
    np.save(folder / name, moments * (1 + i % 8))
(folder / "dataset.json").write_text(json.dumps({"labels": [[name, i % 8] for i, name in enumerate(names)]}))
PYTHON
part train_xl 90 python -m distill train configs/imagenet256/sit_b_dar_teacher.yaml output="$work/train" \
    data.path="$work/latents" data.vae=null model.hidden_size=1152 model.depth=28 model.num_heads=16 \
    train.batch_size=64 train.steps=150 train.save_every=150 train.log_every=10 train.grid_every=150
run_xl=(python -m distill run configs/imagenet256/sit_xl_dmd.yaml output="$work/run" teacher.path="$work/train"
    train.batch_size=8 train.accumulation=1 train.steps=10 train.save_every=5 train.log_every=1 train.grid_every=10
    objective.fake_score.warmup_updates=0 evaluate.num_images=0 evaluate.vae=null)
part run_xl 80 "${run_xl[@]}"
part resume_xl 40 "${run_xl[@]}" --resume --from 5
cp "$work/run/metrics.jsonl" "$folder/run_xl.jsonl" 2>/dev/null
cp "$work/train/metrics.jsonl" "$folder/train_xl.jsonl" 2>/dev/null
rm -rf "$work"
