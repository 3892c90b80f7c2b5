"""The report of a comparison: Markdown, pictures, and a JSON file of all values, from the finished jobs."""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from distill.comparison.claims import Finding, judge
from distill.comparison.config import Comparison
from distill.comparison.gather import QUANTITIES, Gathered, gather
from distill.comparison.plots import curves_plot, differences_plot, symptoms_plot
from distill.comparison.sections import (
    claims_section,
    cost_section,
    images_section,
    loss_section,
    method_section,
    parts_section,
    symptoms_section,
)
from distill.errors import UserError
from distill.files import write_bytes, write_text
from distill.report.style import png
from distill.report.versions import versions

SIGNIFICANT_DIGITS = 6
DIFFERENCES = {"loss": "held-out loss", "frechet": "Fréchet distance", "redundancy": "redundancy"}


def write_report(comparison: Comparison) -> Path:
    """Write the Markdown file, and `<name>_*.png` and `<name>.json` beside it. Returns: the Markdown file.

    Raises: UserError if no job is finished.
    """
    gathered = gather(comparison)
    if not gathered.results:
        raise UserError(f"no job in {comparison.config.output} is finished; there is nothing to report")
    findings = judge(gathered)
    path = Path(comparison.config.report)
    pictures = {
        "curves": curves_plot(gathered),
        "differences": differences_plot(gathered, DIFFERENCES),
        "symptoms": symptoms_plot(gathered),
    }
    names = {name: f"{path.stem}_{name}.png" for name in pictures}
    for name, figure in pictures.items():
        write_bytes(path.with_name(names[name]), png(figure))
    write_text(path.with_suffix(".json"), as_json(gathered, findings))
    write_text(path, markdown(gathered, findings, names))
    return path


def markdown(gathered: Gathered, findings: Sequence[Finding], pictures: dict[str, str]) -> str:
    """The report as Markdown; `pictures` maps what is shown to file names."""
    where = f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, torch {versions()['torch']}"
    sections = [
        "# Routings compared",
        method_section(gathered, where),
        claims_section(gathered, findings),
        loss_section(gathered),
        f"![Held-out loss against updates and against time]({pictures['curves']})",
        f"![Differences from the first baseline, by seed]({pictures['differences']})",
        images_section(gathered),
        symptoms_section(gathered),
        f"![The three symptoms over depth]({pictures['symptoms']})",
        cost_section(gathered),
        parts_section(findings),
    ]
    return "\n\n".join(sections) + "\n"


def as_json(gathered: Gathered, findings: Sequence[Finding]) -> str:
    """All data of the report, one job per line; values to 6 significant digits, nan as null."""
    jobs = [
        {
            "size": result.job.size,
            "arm": result.job.arm,
            "seed": result.job.seed,
            "routing": asdict(result.job.model.routing),
            "hidden_size": result.job.model.hidden_size,
            "depth": result.job.model.depth,
            **asdict(result.trained),
            "measures": {name: asdict(value) for name, value in result.measured.measures.items()},
            "symptoms": result.measured.symptoms,
        }
        for result in gathered.results
    ]
    lists = {
        "jobs": jobs,
        "costs": [asdict(cost) for cost in gathered.costs.values()],
        "findings": [asdict(found) for found in findings],
    }
    parts = []
    for name, entries in lists.items():
        lines = ",\n".join(_line(entry) for entry in entries)
        parts.append(f'"{name}": [\n{lines}\n]')
    parts.append(f'"quantities": {_line({name: q.title for name, q in QUANTITIES.items()})}')
    parts.append(f'"figures": {_line(gathered.figures)}')
    parts.append(f'"missing": {_line([job.name for job in gathered.missing])}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _line(value: Any) -> str:
    return json.dumps(_rounded(value), ensure_ascii=False)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.{SIGNIFICANT_DIGITS}g}") if math.isfinite(value) else None
    return value
