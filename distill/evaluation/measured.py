"""The measured values of one sampler, stored as a JSON file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from distill.errors import reading
from distill.metrics import Interval


@dataclass(frozen=True)
class Measured:
    """Measurements of one sampler; `measures` has the names of `distill.metrics.MEASURES`."""

    name: str
    description: str
    num_images: int
    num_steps: int
    evaluations: int
    images_per_second: float
    measures: dict[str, Interval]

    def to_bytes(self) -> bytes:
        """The content of a JSON file."""
        measures = {name: value.to_json() for name, value in self.measures.items()}
        return (json.dumps({**asdict(self), "measures": measures}, indent=2) + "\n").encode()

    @classmethod
    def load(cls, path: Path) -> Measured:
        """Raises: UserError if the file is damaged."""
        with reading(path, "is no file of measured values"):
            values: dict[str, Any] = json.loads(path.read_bytes())
            values["measures"] = {name: Interval.from_json(entry) for name, entry in values["measures"].items()}
            return cls(**values)
