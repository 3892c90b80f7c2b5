"""metrics.jsonl: one JSON object per line and logged step; accelerate's trackers get the same values."""

from __future__ import annotations

import json
from pathlib import Path

from accelerate import Accelerator

from distill.files import write_text

FILE = "metrics.jsonl"


class RunLog:
    """Appends to `folder/metrics.jsonl`; a resumed run first drops the records after its checkpoint."""

    def __init__(self, folder: Path, accelerator: Accelerator, resumed_step: int) -> None:
        self._path = folder / FILE
        self._accelerator = accelerator
        if accelerator.is_main_process:
            kept = [r for r in read_log(folder) if r["step"] <= resumed_step] if resumed_step else []
            write_text(self._path, "".join(json.dumps(record) + "\n" for record in kept))

    def write(self, step: int, values: dict[str, float]) -> None:
        if not self._accelerator.is_main_process:
            return
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        self._accelerator.log(values, step=step)


def read_log(folder: Path) -> list[dict[str, float]]:
    """The records of a run, oldest first. An incomplete last line (from a killed process) is left out."""
    path = folder / FILE
    if not path.is_file():
        return []
    lines = path.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]
