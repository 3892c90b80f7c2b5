"""Few-step students of diffusion transformers, and what becomes of their detail.

    import distill

    teacher = distill.load("embedded")
    distill.sample(teacher, num_images=16, classes=[0, 5]).grid()
    student = distill.run("quickstart", ["output=runs/mine"]).student
    distill.evaluate(student).measured.measures["frechet"]

What the command line does, as functions that return objects and print nothing; `show_progress()` turns on bars and
lines on stderr. Everything in `__all__` is public. Names are imported when they are first used: torch takes a second.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from distill.conditions import ClassLabels, Condition, Prompts
    from distill.config import DataConfig, EvalConfig, RoutingConfig, TeacherConfig, TrainConfig
    from distill.conformance import check_backbone
    from distill.data import DATASETS
    from distill.errors import NonFiniteError, UserError
    from distill.metrics import MEASURES
    from distill.models import FAMILIES, Backbone, load_model
    from distill.objectives import OBJECTIVES, RunConfig
    from distill.progress import show_progress
    from distill.sampling import Sampler
    from distill.verbs.compare import compare
    from distill.verbs.convert import convert
    from distill.verbs.diagnose import diagnose
    from distill.verbs.evaluate import evaluate, evaluate_images
    from distill.verbs.export import export
    from distill.verbs.inspect import inspect
    from distill.verbs.load import load
    from distill.verbs.plan import plan
    from distill.verbs.retrofit import retrofit
    from distill.verbs.run import run
    from distill.verbs.sample import sample
    from distill.verbs.sample_npz import sample_npz
    from distill.verbs.statistics import statistics
    from distill.verbs.train import train

_HOMES = {
    "conditions": ("ClassLabels", "Condition", "Prompts"),
    "config": ("DataConfig", "EvalConfig", "RoutingConfig", "TeacherConfig", "TrainConfig"),
    "conformance": ("check_backbone",),
    "data": ("DATASETS",),
    "errors": ("NonFiniteError", "UserError"),
    "metrics": ("MEASURES",),
    "models": ("FAMILIES", "Backbone", "load_model"),
    "objectives": ("OBJECTIVES", "RunConfig"),
    "progress": ("show_progress",),
    "sampling": ("Sampler",),
    "verbs.compare": ("compare",),
    "verbs.convert": ("convert",),
    "verbs.diagnose": ("diagnose",),
    "verbs.evaluate": ("evaluate", "evaluate_images"),
    "verbs.export": ("export",),
    "verbs.inspect": ("inspect",),
    "verbs.load": ("load",),
    "verbs.plan": ("plan",),
    "verbs.retrofit": ("retrofit",),
    "verbs.run": ("run",),
    "verbs.sample": ("sample",),
    "verbs.sample_npz": ("sample_npz",),
    "verbs.statistics": ("statistics",),
    "verbs.train": ("train",),
}

__all__ = [
    "DATASETS",
    "FAMILIES",
    "MEASURES",
    "OBJECTIVES",
    "Backbone",
    "ClassLabels",
    "Condition",
    "DataConfig",
    "EvalConfig",
    "NonFiniteError",
    "Prompts",
    "RoutingConfig",
    "RunConfig",
    "Sampler",
    "TeacherConfig",
    "TrainConfig",
    "UserError",
    "check_backbone",
    "compare",
    "convert",
    "diagnose",
    "evaluate",
    "evaluate_images",
    "export",
    "inspect",
    "load",
    "load_model",
    "plan",
    "retrofit",
    "run",
    "sample",
    "sample_npz",
    "show_progress",
    "statistics",
    "train",
]


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"distill.{home}"), name)
    raise AttributeError(f"module 'distill' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
