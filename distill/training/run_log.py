"""metrics.jsonl: one JSON object per line and logged step; accelerate's trackers get the same values."""

from __future__ import annotations

import json
from pathlib import Path

from accelerate import Accelerator

from distill.errors import UserError, writing
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
        with writing(self._path), self._path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        self._accelerator.log(values, step=step)


def read_log(folder: Path) -> list[dict[str, float]]:
    """The records of a run, oldest first. An incomplete last line (from a killed process) is left out.

    Raises: UserError, which names the line, where one is no record.
    """
    path = folder / FILE
    if not path.is_file():
        return []
    lines = path.read_bytes().splitlines(keepends=True)
    return [_record(path, i, line) for i, line in enumerate(lines, 1) if line.endswith(b"\n")]


def _record(path: Path, number: int, line: bytes) -> dict[str, float]:
    try:
        record = json.loads(line)
        if not isinstance(record, dict) or type(record.get("step")) is not int:
            raise ValueError("it holds no step, a whole number")
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}, line {number} is damaged: {error}; remove the line") from error
    wrong = [name for name, value in record.items() if type(value) not in (int, float)]
    if wrong:
        raise UserError(
            f"{path}, line {number}: {wrong[0]} must be a number; got {record[wrong[0]]!r}; remove the line"
        )
    return record
