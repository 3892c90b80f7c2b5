"""Every sample of a data set is read once before training, and the verdict is kept.

A damaged file, a value that is not finite and an absurd scale are found in minutes here, and else in hours or never.
"""

from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from distill.conditions import Condition, Prompts
from distill.config import DataConfig
from distill.data.base import Dataset
from distill.errors import UserError
from distill.files import write_text
from distill.processes import Processes, default_device
from distill.progress import logger, progress_bar

STD_RANGE = (0.05, 3.0)  # images in [-1, 1] have 0.2 to 0.7, latents at their scale 1, and SD's without it 5.5
BATCH = 64
MAX_WORKERS = 8


def check_fits(data: Dataset, sample_shape: tuple[int, ...], condition: Condition, path: str) -> None:
    """See that a model of such samples and conditions can learn from the data in `path`. Raises: UserError."""
    if tuple(data.sample_shape) != tuple(sample_shape):
        raise UserError(f"{path} has samples of shape {data.sample_shape}; the model takes {sample_shape}")
    if not condition.includes(data.condition):
        how = "start.classes of `train` gives a pretrained model others"
        if isinstance(condition, Prompts):
            how = "both have to be of one encoder, and of one length"
        raise UserError(f"{path} has {data.condition}; the model is conditioned on {condition} ({how})")


def check_samples(data: Dataset, config: DataConfig) -> float:
    """Read all samples, unless these files passed before. All processes share the work.

    Returns: standard deviation of all values, of latents without the noise of their posterior.
    Raises: as the data set; UserError if a value is not finite, or the standard deviation is out of `STD_RANGE`.
    """
    processes = Processes.all()
    # The main process alone looks: with a home per machine, some would read the samples and wait for the others.
    verdict = _verdict_file(config) if processes.is_main else None
    std = processes.agreed(_read_verdict(verdict))
    if std is None:
        std = _measured_std(data, config.path, processes)
        if not STD_RANGE[0] <= std <= STD_RANGE[1]:
            raise UserError(
                f"{config.path}: the samples have std {std:.3g}; expected {STD_RANGE[0]:g} to {STD_RANGE[1]:g}, about "
                "0.5 for images and 1 for latents. Are latents without their scale, or pictures as good as blank?"
            )
        if verdict is not None:
            _keep(verdict, {"path": config.path, "num_samples": len(data), "std": std})
    logger.info(f"{config.path}: {len(data):,} samples, std {std:.2f}")
    return std


def check_prompts(prompts: Prompts) -> None:
    """Read all prompts once. All processes share the work. Raises: UserError, which names a file that is damaged."""
    processes = Processes.all()
    mine = prompts.index.numbers[processes.index :: processes.number]
    workers = min(MAX_WORKERS, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool, progress_bar(main_process=processes.is_main) as progress:
        bar = progress.add_task("checking prompts", total=len(mine))
        for _ in pool.map(prompts.check, mine):
            progress.advance(bar)


def fingerprint(path: Path) -> str:
    """A hash of file names, sizes and modification times: it changes if a file is added, removed or modified."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in files:
        name = file.relative_to(path).as_posix() if path.is_dir() else ""
        status = file.stat()
        digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
    return digest.hexdigest()[:16]


def _verdict_file(config: DataConfig) -> Path | None:
    """Where the verdict on the files of this data set is kept; None for data that are no files."""
    path = Path(config.path).expanduser().resolve()
    if not path.exists():
        return None
    made_of = json.dumps([asdict(config) | {"path": str(path)}, fingerprint(path)])
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dar-distill"
    cache = Path(os.environ.get("DAR_DISTILL_CACHE") or home)
    return cache / "checked" / f"{hashlib.sha256(made_of.encode()).hexdigest()[:16]}.json"


def _read_verdict(file: Path | None) -> float | None:
    if file is None or not file.is_file():
        return None
    try:
        return float(json.loads(file.read_text())["std"])
    except (ValueError, KeyError, TypeError):
        return None  # a damaged verdict is none: the samples are read again


def _keep(file: Path, verdict: dict[str, object]) -> None:
    try:
        write_text(file, json.dumps(verdict) + "\n")
    except (OSError, UserError) as error:  # a home that cannot be written is no reason not to train
        logger.warning(f"the samples are sound, but will be read again next time: {error}")


def _measured_std(data: Dataset, path: str, processes: Processes) -> float:
    mine = torch.arange(processes.index, len(data), processes.number)
    total = torch.zeros(3, dtype=torch.float64)
    workers = min(MAX_WORKERS, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool, progress_bar(main_process=processes.is_main) as progress:
        bar = progress.add_task("checking samples", total=len(mine))
        for sums in pool.map(lambda indices: _sums(data, indices, path), mine.split(BATCH)):
            total += sums
            progress.advance(bar, BATCH)
    # float32 holds the means of a billion values well enough, and some devices know no float64.
    number, mean, square = total[0], total[1] / total[0], total[2] / total[0]
    everyone = processes.gather(torch.stack([number, mean, square]).float().to(default_device())[None]).double().cpu()
    weights = everyone[:, 0] / everyone[:, 0].sum()
    return float(((weights * everyone[:, 2]).sum() - (weights * everyone[:, 1]).sum().square()).clamp(min=0).sqrt())


def _sums(data: Dataset, indices: Tensor, path: str) -> Tensor:
    """Number, sum and sum of squares of the values of some samples."""
    samples, _ = data.batch(indices, torch.zeros)
    finite = samples.isfinite().flatten(1).all(1)
    if not bool(finite.all()):
        raise UserError(f"{path}: sample {int(indices[~finite][0])} holds values that are not finite")
    values = samples.double()
    return torch.stack([values.new_tensor(values.numel()), values.sum(), values.square().sum()])
