"""Models with the sampler they were made for."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from distill.config import TeacherConfig
from distill.errors import UserError
from distill.processes import default_device
from distill.sampling.samplers import Sampler, configured_vae, load_sampler


def load(
    path: str | Path,
    *,
    cfg_scale: float = 1.5,
    cfg_channels: int | None = None,
    cfg_rescale: float = 0.0,
    steps: int = 50,
    solver: str = "euler",
    prompts: str | None = None,
) -> Sampler:
    """A model, in eval mode on the first accelerator there is, and how it draws.

    A student draws by its own timesteps; the other arguments are for a model without them.

    Args:
        path: a model folder, a run folder (its student), a training's folder (its teacher), or `embedded`.
        cfg_scale: guidance; 1.0 is none. cfg_channels: guide the first so many channels only; None is all.
        cfg_rescale: how far guided velocities get the norm of the conditional ones, from 0 to 1.
        steps: of the solver. solver: `euler`, `heun`, or `sde` (Euler-Maruyama).
        prompts: a folder of encoded prompts, in place of those that the model's folder names.

    Raises: FileNotFoundError and ValueError, naming what is wrong with the folder.
    """
    settings = TeacherConfig(
        path=str(path),
        cfg_scale=cfg_scale,
        cfg_channels=cfg_channels,
        cfg_rescale=cfg_rescale,
        steps=steps,
        solver=solver,
        prompts=prompts,
    )
    return placed(load_sampler(str(path), settings))


def placed(sampler: Sampler) -> Sampler:
    """The sampler, its model in eval mode on the first accelerator there is."""
    sampler.model.to(default_device()).eval()
    return sampler


def vae_of(given: str | None, paths: Iterable[str]) -> str | None:
    """The autoencoder that was given, or else the one that the configurations of the runs name.

    Raises: UserError where they name several.
    """
    if given:
        return given
    found = {vae: path for path in paths if path and (vae := configured_vae(path))}
    if len(found) > 1:
        named = ", ".join(f"{vae} ({path})" for vae, path in found.items())
        raise UserError(f"the runs name several autoencoders, {named}: choose one with --vae")
    return next(iter(found), None)
