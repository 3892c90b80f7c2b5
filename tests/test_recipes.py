"""The recipes: their commands work as they are written, and their figures are the plan's."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils.dataclasses import get_module_class_from_name
from PIL import Image

from dar import SiT
from distill.cli import main
from distill.config import read_values
from distill.planning import Launch, named_shape
from distill.planning.tables import plan_to_json
from distill.verbs.plan import plan_of
from tests.checkpoint_files import official_state, projectors, training_file
from tests.conftest import tiny_config
from tests.test_cli import refused

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "configs/imagenet256").glob("*.yaml"))
STAND_INS = {"SiT-XL-2-256.pt": 8, "DiT-XL-2-256x256.pt": 8, "last.pt": 4}  # rows of the head, by public name
GB = 1e9


def commands(recipe: Path) -> list[list[str]]:
    """The lines of the header that a person would type, continued ones joined, split as a shell would."""
    header = [line for line in recipe.read_text().splitlines() if line.startswith("#   ")]
    text = re.sub(r"\\\n +", "", "\n".join(line.removeprefix("#   ") for line in header))
    known = ("dar-distill ", "python ", "accelerate ")
    return [shlex.split(line.split("   ")[0]) for line in text.splitlines() if line.startswith(known)]


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the recipes, a few images, and tiny files under the names of the public checkpoints."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    for name, channels in STAND_INS.items():
        state = official_state(channels) | (projectors() if name == "last.pt" else {})
        torch.save(training_file(state, state, num_heads=2), tmp_path / name)
    (tmp_path / "imagenet256_10k" / "n01440764").mkdir(parents=True)
    for i in range(4):
        Image.new("RGB", (32, 32), (60 * i, 90, 120)).save(tmp_path / "imagenet256_10k" / "n01440764" / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_there_are_recipes() -> None:
    names = {path.stem for path in RECIPES}
    students = {"dit_xl_dmd", "sit_xl_dmd", "sit_xl_dmd_1step", "sit_xl_dmd_4step", "sit_xl_dmd_lora"}
    assert names == students | {"repa_xl_dar_finetune", "sit_b_dar_teacher"}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_its_commands_work_as_they_are_written(recipe: Path, desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Folders are made by the header's own commands; what would train is run with --dry-run."""
    verbs = []
    for words in commands(recipe):
        if words[0] == "python":
            script = (ROOT / words[1]).read_text()
            assert all(word in script for word in words if word.startswith("--")), words
            continue
        if words[0] == "accelerate":
            assert words[:3] == ["accelerate", "launch", "--config_file"] and Path(words[3]).is_file()
            assert words[4:6] == ["-m", "distill"]
            words = words[5:]
        trains = words[1] in ("run", "train")
        assert main([*words[1:], *(["--dry-run"] if trains else [])]) == 0, (words, capsys.readouterr().err)
        verbs.append(words[1])
    assert "plan" in verbs and {"run", "train"} & set(verbs)
    out = capsys.readouterr().out
    assert f"-> {read_values(recipe)['output']}" in out
    assert not (desk / "runs").exists()


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_missing_folder_is_named_with_the_way_out(
    recipe: Path, desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = read_values(recipe)
    if "model" in values:
        return
    verb, field = ("train", "start.path") if "start" in values else ("run", "teacher.path")
    message = refused(capsys, verb, str(recipe), "--dry-run")
    assert f"{field} = models/" in message and "convert" in message and "plan" in message


def planned(recipe: Path, processes: int, strategy: str, *overrides: str) -> dict:
    """The plan at the real size, with the shape that the header's own plan command names."""
    words = next(words for words in commands(recipe) if words[1] == "plan")
    shape = named_shape(words[words.index("--model") + 1 :]) if "--model" in words else None
    return json.loads(plan_to_json(plan_of(read_values(recipe, overrides), shape, Launch(processes, strategy))))


EXPECTED = re.compile(
    r"#   (\d+) process(?:es, (\w+))?(?:, ([\w.=]+))?: ([\d.]+) GiB(?: each)?, ([\d.]+) hours on (.+)"
)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_its_expected_figures_are_the_plans(recipe: Path) -> None:
    text = recipe.read_text()
    assert "estimates of `plan`" in text and "not measured" in text
    lines = [match.groups() for line in text.splitlines() if (match := EXPECTED.fullmatch(line))]
    assert len(lines) >= 2
    for processes, strategy, override, gib, hours, device in lines:
        plan = planned(recipe, int(processes), strategy or "ddp", *([override] if override else []))
        assert float(gib) == pytest.approx(plan["peak"] / 2**30, abs=0.05)
        of_device = next(entry for entry in plan["devices"] if entry["name"] == device)
        assert float(hours) == pytest.approx(of_device["hours"], abs=0.05)
        assert of_device["fits"]


def test_eight_images_at_once_fit_where_they_should() -> None:
    """SiT-XL/2 at 256: adapters within 16 GB, all weights within 40 GB, without checkpointing, by estimate."""
    lora, whole = (planned(ROOT / f"configs/imagenet256/{name}.yaml", 1, "ddp", "train.batch_size=8",
                           "train.accumulation=1") for name in ("sit_xl_dmd_lora", "sit_xl_dmd"))  # fmt: skip
    assert lora["rows"] == whole["rows"] == 8
    assert lora["peak"] < 16 * GB and whole["peak"] < 40 * GB
    assert not whole["train"]["gradient_checkpointing"]


@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
def test_accelerate_reads_its_files(name: str) -> None:
    config = load_config_from_file(str(ROOT / f"configs/accelerate/{name}.yaml"))
    assert config.num_processes == 8
    assert config.distributed_type == {"ddp": "MULTI_GPU", "fsdp2": "FSDP"}[name]
    assert config.fsdp_config.get("fsdp_version") == {"ddp": None, "fsdp2": 2}[name]


def test_fsdp_cuts_where_modules_are_called() -> None:
    """FSDP puts a module's weights together when the module itself is called, not a method of it."""
    config = load_config_from_file(str(ROOT / "configs/accelerate/fsdp2.yaml"))
    names = config.fsdp_config["fsdp_transformer_layer_cls_to_wrap"].split(",")
    model = SiT(tiny_config())
    classes = [get_module_class_from_name(model, name) for name in names]
    wrapped = {module for module in model.modules() if type(module) in classes}
    called = set()
    for module in wrapped:
        module.register_forward_hook(lambda module, *_: called.add(module))
    model(torch.zeros(1, 1, 8, 8), torch.zeros(1), torch.zeros(1, dtype=torch.int64))
    assert called == wrapped and len(wrapped) == model.config.depth


def test_the_batch_script_says_what_it_would_start(tmp_path: Path) -> None:
    """With SLURM's programs replaced by ones that print: two machines of eight, resumed where there is a checkpoint."""
    for name, text in {
        "srun": 'exec "$@"',
        "scontrol": "printf 'node1\\nnode2\\n'",
        "accelerate": 'printf "%s\\n" "$*"',
    }.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "run.yaml").write_text(f"output: {tmp_path / 'out'}\n")
    environment = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_GPUS_PER_NODE": "h100:8",
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_NNODES": "2",
        "SLURM_NODEID": "1",
    }

    def started(*overrides: str) -> str:
        command = ["bash", str(ROOT / "configs/slurm/launch.sbatch"), "run", str(tmp_path / "run.yaml"), *overrides]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()

    start = (
        "launch --config_file configs/accelerate/ddp.yaml --num_machines 2 --num_processes 16 --machine_rank 1 "
        f"--main_process_ip node1 --main_process_port 29500 -m distill run {tmp_path / 'run.yaml'}"
    )
    assert started() == start
    (tmp_path / "out" / "checkpoints" / "step_00000100").mkdir(parents=True)
    assert started() == f"{start} --resume"
    assert started("output=elsewhere") == f"{start} output=elsewhere"
