"""Weights of published networks: from torch hub's cache, or downloaded into it once."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import torch

from distill.progress import logger, on_terminal

TIMEOUT_S = 10  # without an answer, as on a machine without network
OFFLINE = "HF_HUB_OFFLINE"  # the variable that huggingface_hub reads


def is_offline() -> bool:
    """Whether the environment forbids downloads."""
    return os.environ.get(OFFLINE, "").lower() in ("1", "on", "yes", "true")


def cache_path(url: str) -> Path:
    """Where torch hub keeps the file of a URL."""
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]


def published_weights(url: str, *, sha256: str, offline: bool = False) -> Path:
    """The file of `url` in torch hub's cache, downloaded where it is not there.

    Args:
        sha256: how the file's digest begins; a download with another is refused.
        offline: download nothing, as where the environment says so (`is_offline`).

    Raises: FileNotFoundError saying what is missing and how to get it.
    """
    path = cache_path(url)
    if path.is_file():
        return path
    if offline or is_offline():
        raise FileNotFoundError(
            f"{path.name} is not in {path.parent} and downloads are off: get it from {url}, or allow downloads"
        )
    logger.info(f"downloading {url}")
    path.parent.mkdir(parents=True, exist_ok=True)
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT_S)
    try:
        torch.hub.download_url_to_file(url, str(path), hash_prefix=sha256, progress=on_terminal())
    except (OSError, RuntimeError) as error:  # no network; another file than the published one
        reason = " ".join(str(error).split())
        raise FileNotFoundError(
            f"{path.name} could not be downloaded ({reason}); put it from {url} into {path.parent}"
        ) from error
    finally:
        socket.setdefaulttimeout(before)
    return path
