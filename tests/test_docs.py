"""README and docs: their commands work as they are written, links lead somewhere, and the front door is short.

Blocks of `bash run` and `python run` are executed, page by page, in a folder with the files that pages speak of. Any
other block of commands says why it is not.
"""

from __future__ import annotations

import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from dar import RoutingConfig, SiT
from dar.embeddings import sincos_positions
from distill.assets import asset
from distill.cli import main
from distill.progress import show_progress
from tests.checkpoint_files import DIM, PATCH, official_state, projectors, training_file
from tests.conftest import perturbed, shipped, tiny_config
from tests.vae_files import save_vae

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(.*)\n((?:.*\n)*?)```$", re.MULTILINE)
KINDS = {"bash run", "python run", "bash", "python", "yaml", "text", "mermaid", "bibtex"}
# What makes a command a matter of seconds.
SHORT = {
    "run": "train.steps=1 train.batch_size=2 objective.fake_score.warmup_updates=0 teacher.steps=2 "
    "evaluate.num_images=10 evaluate.bootstrap=2 watch.num_images=10 watch.teacher_steps=2",
    "train": "train.steps=1 train.batch_size=4 grid_steps=2",
    "sample": "--num-images 10 --steps 2",
    "evaluate": "--num-images 10 --steps 2",
    "compare": "--num-images 10 --steps 2",
    "diagnose": "--num-images 20",
}
STAND_INS = {"SiT-XL-2-256.pt": 8, "DiT-XL-2-256x256.pt": 8, "last.pt": 4}


class Block(NamedTuple):
    kind: str
    text: str


def blocks(page: Path) -> list[Block]:
    return [Block(kind.strip(), text) for kind, text in FENCE.findall(page.read_text())]


def commands(text: str) -> list[list[str]]:
    """The commands of a block, continued lines joined, comments dropped."""
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


@pytest.fixture(scope="module")
def small_teacher(small_assets: Path) -> Iterator[None]:
    with shipped(small_assets):
        yield


@pytest.fixture(scope="module")
def desk(small_teacher: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a reader: pictures by class, their statistics, tiny public checkpoints, two finished runs."""
    from tests.text_pipelines import save_pipeline  # transformers take seconds

    folder = tmp_path_factory.mktemp("desk")
    shutil.copytree(ROOT / "configs", folder / "configs")
    rng = np.random.default_rng(0)
    for label in range(10):
        (folder / "photos" / f"class_{label}").mkdir(parents=True)
        for i in range(12):
            pixels = rng.integers(0, 256, (28, 28), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "photos" / f"class_{label}" / f"{i}.png")
    shutil.copy(asset("data.npz"), folder / "photos.npz")
    for name, channels in STAND_INS.items():
        state = official_state(channels) | (projectors() if name == "last.pt" else {})
        state["pos_embed"] = sincos_positions(DIM, 32 // PATCH)  # for latents of 32 x 32, as the published files
        torch.save(training_file(state, state, num_heads=2), folder / name)
    (folder / "backgrounds" / "nature").mkdir(parents=True)
    for name in ("Aqua", "Storm"):
        pixels = rng.integers(0, 256, (3, 4, 3), dtype=np.uint8)
        photo = Image.fromarray(pixels).resize((400, 310), Image.Resampling.BICUBIC)
        photo.save(folder / "backgrounds" / "nature" / f"{name}.jpg")
    save_vae(folder / "vae", levels=4, scaling_factor=4.0)
    save_pipeline(folder / "sd3", "StableDiffusion3Pipeline")
    (folder / "prompts.txt").write_text("# animals\na red fox in the snow\ntwo owls\n")
    plain = SiT(tiny_config(input_size=28, patch_size=7, num_classes=10, routing=RoutingConfig(kind="residual")))
    perturbed(plain).save_pretrained(folder / "plain")
    run = folder / "runs" / "quickstart"
    assert main(["run", "quickstart", f"output={run}", *SHORT["run"].split()]) == 0
    shutil.copytree(run, folder / "runs" / "b")
    return folder


@pytest.fixture
def at_desk(desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of it for one page."""
    folder = tmp_path / "desk"
    shutil.copytree(desk, folder)
    monkeypatch.chdir(folder)
    yield folder
    show_progress(False)


def shortened(words: list[str]) -> list[str]:
    more = SHORT.get(words[0], "").split()
    if {"--dry-run", "--resume"} & set(words):
        more = []
    if words[:2] == ["train", "photos/teacher"] and "model=null" not in words:
        more = [*more, "model.depth=2"]
    if any(word.startswith("objective.name=") for word in words):  # which may train no critic
        more = [word for word in more if not word.startswith("objective.fake_score")]
    # What the page says of a setting that has to be short is left out; of all others it stands.
    given = {word.split("=")[0] for word in more}
    kept: list[str] = []
    skip = False
    for word in words:
        if skip or (word.split("=")[0] in given and "=" in word):
            skip = False
            continue
        if word in given:
            skip = True
            continue
        kept.append(word)
    return [*kept, *more]


def ran(words: list[str]) -> int:
    """Exit code of `dar-distill ..` or `python scripts/ ..`."""
    if words[0] == "python" and words[1].startswith("scripts/"):
        return runpy.run_path(str(ROOT / words[1]))["main"](words[2:])
    assert words[0] == "dar-distill", f"only dar-distill and scripts are run here, not {words}"
    return main(shortened(words[1:]))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_its_commands_work_as_they_are_written(page: Path, request: pytest.FixtureRequest) -> None:
    runnable = [block for block in blocks(page) if block.kind.endswith(" run")]
    if not runnable:
        return
    desk = request.getfixturevalue("at_desk")
    if page.name == "README.md":
        request.getfixturevalue("rendered")  # the one whose pictures are made as a reader's are
    if page.name == "photos_to_student.md":
        shutil.rmtree(desk / "photos")  # it makes its own
    names: dict = {}
    for block in runnable:
        if block.kind == "python run":
            exec(compile(block.text, str(page), "exec"), names)
            continue
        for words in commands(block.text):
            assert ran(words) == 0, f"{page.name}: {' '.join(words)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_is_run_or_says_why_not(page: Path) -> None:
    for block in blocks(page):
        assert block.kind in KINDS, f"{page.name}: unknown kind of block {block.kind!r}"
        if block.kind in ("bash", "python"):
            assert block.text.lstrip().startswith("# not run: "), f"{page.name}: {block.text[:80]!r}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_its_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", page.read_text())):
        if not target.startswith(("http", "#")):
            assert (page.parent / target.split("#")[0]).exists(), f"{page.name}: {target}"


def test_files_and_modules_that_are_named_are_there() -> None:
    for page in PAGES:
        if page.name == "CHANGELOG.md":
            continue
        for name in re.findall(r"`((?:dar|distill|scripts|tests|configs|benchmarks)/[\w./-]*)`", page.read_text()):
            assert (ROOT / name).exists(), f"{page.name}: {name}"


def test_the_front_door_is_short_and_leads_to_every_page() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 180
    for page in (ROOT / "docs").glob("*.md"):
        assert f"docs/{page.name}" in text, f"README.md does not lead to docs/{page.name}"


@pytest.mark.slow
def test_the_wheel_is_enough_in_an_empty_folder(tmp_path: Path) -> None:
    """Built, unpacked beside this environment's libraries, and run by a recipe's name."""
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
        str(ROOT),
    ]
    subprocess.run(build, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    shutil.unpack_archive(wheel, tmp_path / "site", format="zip")
    (tmp_path / "empty").mkdir()
    site = str(tmp_path / "site")
    code = f"import sys; sys.path.insert(0, {site!r}); from distill.cli import main; sys.exit(main({{}}))"
    for argv in (["recipes"], ["run", "quickstart", *SHORT["run"].split()]):
        done = subprocess.run([sys.executable, "-c", code.format(argv)], cwd=tmp_path / "empty", check=False)
        assert done.returncode == 0
    assert (tmp_path / "empty/runs/quickstart/report/report.html").is_file()
