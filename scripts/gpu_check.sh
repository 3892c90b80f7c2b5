#!/usr/bin/env bash
# What only a GPU can show, in order of worth and in under 8 minutes: each part has a time limit of its own, and its
# result is written as soon as it is known.
#
#   scripts/gpu_check.sh [FOLDER]      logs, tables and the quickstart's measures go to FOLDER (runs/gpu_check)
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
part tests 170 python -m pytest -o addopts= -m gpu -q
part quickstart 200 python -m distill run quickstart output="$work/quickstart"
cp "$work"/quickstart/measures/*.json "$folder" 2>/dev/null
cp "$work/quickstart/metrics.jsonl" "$folder" 2>/dev/null
part sample 40 python -m distill sample "$work/quickstart" --num-images 2000 --output "$work/drawn"
part update 170 python scripts/bench_update.py --repeats 5 --output "$folder/update_gpu.md"
rm -rf "$work"
