"""Measures a trained job: drawn images and the three symptoms along depth."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dar import SiT
from dar.diagnostics import symptoms
from distill.comparison.config import Job, MeasuringConfig
from distill.comparison.training import MODEL_FOLDER, HeldOut
from distill.conditions import to_device
from distill.config import TeacherConfig, merge_values
from distill.errors import reading
from distill.evaluation.drawing import draw
from distill.evaluation.evaluator import Evaluator
from distill.files import read_json, write_text
from distill.metrics import Interval
from distill.processes import default_device
from distill.sampling.samplers import teacher_sampler

MEASURES_FILE = "measures.json"


@dataclass(frozen=True)
class MeasuredJob:
    """Measurements of a job.

    measures: by the names of `distill.metrics.MEASURES`. symptoms: profiles along depth, by name.
    """

    settings: dict[str, Any]
    measures: dict[str, Interval]
    symptoms: dict[str, list[float]]

    def save(self, path: Path) -> None:
        measures = {name: value.to_json() for name, value in self.measures.items()}
        write_text(path, json.dumps({**asdict(self), "measures": measures}, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> MeasuredJob:
        values = read_json(path, {"settings": dict, "measures": dict})
        with reading(path):
            values["measures"] = {name: Interval.from_json(entry) for name, entry in values["measures"].items()}
            return cls(**values)


def is_measured(job: Job, config: MeasuringConfig) -> bool:
    """Whether the job was measured with these settings. With other settings it is measured again, without an error."""
    path = job.folder / MEASURES_FILE
    if not path.is_file():
        return False
    # A setting that did not exist at the time of the measurement had its default value.
    saved = merge_values(_settings(MeasuringConfig()), MeasuredJob.load(path).settings)
    return saved == _settings(config)


def measure_job(job: Job, config: MeasuringConfig, evaluator: Evaluator, samples: HeldOut) -> None:
    """Draw from the job's final EMA model, measure the images, and measure the symptoms on held-out samples."""
    model = SiT.from_pretrained(job.folder / MODEL_FOLDER).to(default_device()).eval()
    sampler = teacher_sampler(job.name, model, TeacherConfig(cfg_scale=config.cfg_scale), config.num_steps)
    (drawing,) = draw([(sampler, config.evaluate.num_images)], config.evaluate, evaluator.decoder)
    measured = evaluator.measure(drawing)
    profiles = profiles_of(model, samples.first(config.symptom_images))
    MeasuredJob(_settings(config), measured.measures, profiles).save(job.folder / MEASURES_FILE)


def profiles_of(model: SiT, samples: HeldOut) -> dict[str, list[float]]:
    """hidden_rms (K + 1), gradient_rms (K) and neighbour_cosine (K) of `dar.diagnostics.symptoms`."""
    device = next(model.parameters()).device
    x0, eps, t = (part.to(device) for part in (samples.x0, samples.eps, samples.t))
    found = symptoms(model, x0, eps, t, to_device(samples.y, device))
    return {name: getattr(found, name).tolist() for name in ("hidden_rms", "gradient_rms", "neighbour_cosine")}


def _settings(config: MeasuringConfig) -> dict[str, Any]:
    return json.loads(json.dumps(asdict(config)))
