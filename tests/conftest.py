"""What the tests of training share: models of a few thousand parameters and a run of seconds."""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from matplotlib.figure import Figure
from PIL import Image

from dar import RoutingConfig, SiT, SiTConfig
from distill.assets import FOLDER
from distill.config import EvalConfig, LoopConfig, OptimConfig, RolesConfig, StudentConfig, TeacherConfig
from distill.metrics import sets
from distill.objectives import DmdConfig, FakeScoreConfig, Network, RunConfig
from distill.objectives.task import DistillationTask, Models, build_models
from distill.training.learner import Learner
from distill.training.run_log import read_log

torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of what tests start: workers share the cores
sets.MOST_FEATURES = 500  # of the shipped statistics: all of them take seconds a page
os.environ["HF_HUB_OFFLINE"] = "1"  # no test waits for a network
os.environ["DAR_DISTILL_CACHE"] = tempfile.mkdtemp()  # verdicts on data are no one else's
if not torch.cuda.is_available():  # before any kernel is defined
    os.environ["TRITON_INTERPRET"] = "1"


RENDER = Figure.savefig


def blank(figure: Figure, file: IO[bytes] | Path, **_: object) -> None:
    """A white picture of the figure's size: to render those of a page takes seconds."""
    Image.new("L", figure.canvas.get_width_height(), 255).save(file, "PNG")


Figure.savefig = blank  # pyright: ignore[reportAttributeAccessIssue]


SLOW_FIRST = (
    "test_docs.py",
    "test_processes.py",
    "test_cli.py",
    "test_trunk.py",
    "test_more_objectives.py",
    "test_plan.py",
    "test_watch.py",
    "test_stock_runs.py",
    "test_python.py",
)  # so that none is left alone at the end


def pytest_configure(config: pytest.Config) -> None:
    config.option.loadscopereorder = False  # else workers would take files of many tests first


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: (*SLOW_FIRST, item.path.name).index(item.path.name))


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()  # libraries and tests are no garbage, and to look through them takes a third of a second


def tiny_config(**changes) -> SiTConfig:
    values = {
        "input_size": 8,
        "patch_size": 4,
        "in_channels": 1,
        "hidden_size": 16,
        "depth": 2,
        "num_heads": 2,
        "num_classes": 3,
        "gelu": "none",
        "routing": RoutingConfig(chunk_size=2),
    }
    return SiTConfig(**{**values, **changes})


def without_time(folder: Path) -> list[dict[str, float]]:
    """The log of a run, but for the seconds that things took."""
    return [{name: value for name, value in record.items() if not name.endswith("_s")} for record in read_log(folder)]


def perturbed(model: torch.nn.Module, seed: int = 0, std: float = 0.05) -> torch.nn.Module:
    """Away from adaLN-Zero's initialisation, at which a SiT gives zero whatever it is fed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(std * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return model


def build_roles(teacher: TeacherConfig, roles: RolesConfig) -> tuple[SiT, SiT, SiT]:
    """teacher, student and fake_score of a folder; the critic is not told the step."""
    objective = DmdConfig(fake_score=FakeScoreConfig(knows_step=False))
    models = build_models(RunConfig("unused", teacher=teacher, roles=roles, objective=objective))
    return models.teacher, models.student, models.networks["fake_score"].model


def models_of(config: RunConfig, roles: tuple[SiT, SiT, SiT]) -> Models:
    """teacher, student and fake_score as a task takes them."""
    teacher, student, fake_score = roles
    critic = config.objective.fake_score
    num_updates = critic.warmup_updates + config.train.steps * critic.updates
    return Models(teacher, student, {"fake_score": Network(fake_score, critic.optim, num_updates, copies_teacher=True)})


def critic(task: DistillationTask) -> Learner:
    return task.objective.setting.networks["fake_score"]


@pytest.fixture
def rendered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures as a reader gets them."""
    monkeypatch.setattr(Figure, "savefig", RENDER)


@pytest.fixture
def tiny_model() -> SiT:
    torch.manual_seed(0)
    model = SiT(tiny_config())
    perturbed(model)
    return model


@pytest.fixture(scope="session")
def small_assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is shipped, with a tiny model in the place of the teacher."""
    root = tmp_path_factory.mktemp("package")
    folder = root / "distill" / "assets"
    (root / "configs").symlink_to(Path(__file__).parents[1] / "configs")
    shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns("teacher", "__pycache__", "configs"))
    teacher = SiT(tiny_config(input_size=28, patch_size=7, num_classes=10))
    perturbed(teacher).save_pretrained(folder / "teacher")
    return folder


@contextmanager
def shipped(assets: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("distill.assets.FOLDER", assets)
        patch.setattr("distill.verbs.run.preflight", lambda *_: 1.0)  # it is not trained
        yield


@pytest.fixture
def small_teacher(small_assets: Path) -> Iterator[None]:
    """For what is tested of a command, and not of what it finds."""
    with shipped(small_assets):
        yield


@pytest.fixture
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


@pytest.fixture
def accelerator_in_bf16() -> Iterator[Accelerator]:
    AcceleratorState._reset_state(reset_partial_state=True)
    yield Accelerator(cpu=True, mixed_precision="bf16")
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def run_config(tmp_path: Path) -> RunConfig:
    """A distillation of a few updates; rates are large so that a few updates move the weights."""
    optim = {"lr": 1e-3, "betas": (0.0, 0.95)}
    return RunConfig(
        output=str(tmp_path / "run"),
        student=StudentConfig(steps=2, rollout="every_step", optim=OptimConfig(**optim)),
        objective=DmdConfig(
            fake_score=FakeScoreConfig(updates=2, warmup_updates=1, optim=OptimConfig(**optim)),
        ),
        train=LoopConfig(steps=4, batch_size=4, log_every=1, grid_every=100, save_every=100),
        evaluate=EvalConfig(num_images=20),
    )
