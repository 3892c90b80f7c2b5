#!/usr/bin/env bash
# Wheel and sdist: what is in them, and whether each works where there is no checkout. A minute, no network.
#
#   scripts/try_wheel.sh      with the python of an environment that has the extra `test`
#
# Each is installed in an environment of its own, which finds all that they depend on in the environment that runs
# this, but not the checkout: what one environment sees of another are its folders, not its editable installs.
set -Eeuo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'echo "$0: line $LINENO failed" >&2' ERR
unset PYTHONPATH
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1

python -m build --no-isolation --outdir "$work/dist" . >"$work/build.log" 2>&1 || { cat "$work/build.log"; exit 1; }
python - "$work/dist" <<'PYTHON'
import subprocess, sys, tarfile, zipfile
from pathlib import Path

folder = Path(sys.argv[1])
(wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
tracked = set(subprocess.run(["git", "ls-files", "-z"], capture_output=True, text=True, check=True).stdout.split("\0")) - {""}
shipped = {name for name in tracked if name.startswith(("dar/", "distill/"))}
shipped |= {f"distill/assets/{name}" for name in tracked if name.startswith("configs/")}
in_wheel = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
with tarfile.open(sdist) as archive:
    in_sdist = {member.name.partition("/")[2] for member in archive if member.isfile()}
made = {name for name in in_sdist if name in ("PKG-INFO", "setup.cfg") or ".egg-info/" in name}
wrong = False
for name, there, meant in ((wheel.name, in_wheel, shipped), (sdist.name, in_sdist - made, tracked)):
    for words, files in (("holds what git does not track:", there - meant), ("lacks", meant - there)):
        if files:
            wrong = True
            print(name, words, ", ".join(sorted(files)), file=sys.stderr)
    print(f"{name}: {len(there)} files")
sys.exit(wrong)
PYTHON

version=$(python -c 'import distill; print(distill.__version__)')
here=$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
for dist in "$work"/dist/*; do
    env="$work/env" try="$work/try"
    rm -rf "$env" "$try"
    python -m venv --without-pip "$env"
    "$env/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' >"$work/there"
    echo "$here" >"$(cat "$work/there")/dependencies.pth"
    python -m pip --python "$env/bin/python" install --quiet --disable-pip-version-check --no-deps --no-index \
        --no-build-isolation --ignore-installed "$dist"
    mkdir "$try"
    (
        cd "$try"
        PATH="$env/bin:$PATH"
        found=$(python -c 'import dar, distill; print(dar.__file__, distill.__file__)')
        [ "$found" = "$(cat "$work/there")/dar/__init__.py $(cat "$work/there")/distill/__init__.py" ]
        [ "$(dar-distill --version)" = "dar-distill $version" ]
        dar-distill --help >/dev/null
        dar-distill recipes | grep quickstart >/dev/null
        dar-distill recipes --write quickstart >/dev/null
        dar-distill run quickstart --dry-run >/dev/null
        # The teacher, the extractor, the stored statistics and the templates.
        dar-distill run quickstart output=run train.steps=1 train.batch_size=2 objective.fake_score.warmup_updates=0 \
            teacher.steps=2 evaluate.num_images=10 evaluate.bootstrap=2 watch.num_images=10 watch.teacher_steps=2 \
            >"$work/said" 2>&1 || { cat "$work/said"; false; }
        [ -s run/report/report.html ]
        dar-distill sample embedded --output images --num-images 2 --steps 1 >"$work/said" 2>&1 || { cat "$work/said"; false; }
        [ -s images/000001_trouser.png ]
    )
    echo "$(basename "$dist"): it works"
done
