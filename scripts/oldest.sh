#!/usr/bin/env bash
# The suite with the oldest versions that pyproject.toml allows: does each lower bound tell the truth?
#
#   scripts/oldest.sh [PYTHON [ARGUMENT OF PYTEST ...]]      python3.11 and all tests
#
# Of what pyproject.toml names, the lowest version that it allows; of what that needs in turn, the newest. The extras
# need newer versions of some than the package alone, so what reads and writes files is tried once more without them.
# It takes 6 GB of disk beside the suite's time, and leaves nothing. What came of it: benchmarks/versions.md.
set -euo pipefail
cd "$(dirname "$0")/.."
python="${1:-python3.11}"
shift || true
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export UV_CACHE_DIR="$work/cache" OMP_NUM_THREADS=1
unset PYTHONPATH
"$python" -m venv "$work/tool"
"$work/tool/bin/pip" install --quiet --disable-pip-version-check uv
uv="$work/tool/bin/uv"
oldest=(--quiet --resolution lowest-direct)

"$uv" venv --quiet --python "$python" "$work/env"
export PATH="$work/env/bin:$PATH" VIRTUAL_ENV="$work/env"
"$uv" pip install "${oldest[@]}" --compile-bytecode -e '.[test,lora,latents,export,text]'
"$uv" pip list
failed=0
python -m pytest "$@" || failed=1

"$uv" pip compile "${oldest[@]}" pyproject.toml >"$work/package.txt"
"$uv" pip uninstall --quiet diffusers transformers peft
"$uv" pip install --quiet -r "$work/package.txt"
"$uv" pip list | grep -E "^(accelerate|huggingface|safetensors)"
python -m pytest -k "not lora and not another_model and not weights_of_others" tests/test_checking.py \
    tests/test_checksums.py tests/test_families.py tests/test_folders.py tests/test_resume.py \
    tests/hostile/test_pickles.py || failed=1
exit "$failed"
