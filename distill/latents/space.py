"""The space of latents: channels, scale and shift."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from distill.errors import UserError


@dataclass(frozen=True)
class LatentSpace:
    """Number of channels, scale and shift of latents (B, channels, ..); no other code applies scale and shift.

        latent = (raw - shift) scale,   raw = latent / scale + shift

    raw is the output of the encoder; models are trained on latents. scale, shift: a number, or one for each channel.
    The defaults are those of SD-VAE (stabilityai/sd-vae-ft-mse and -ema).

    Raises: UserError if channels, scale or shift are not valid.
    """

    channels: int = 4
    scale: float | tuple[float, ...] = 0.18215
    shift: float | tuple[float, ...] = 0.0

    def __post_init__(self) -> None:
        for name in ("scale", "shift"):
            numbers = getattr(self, name)
            if isinstance(numbers, (list, tuple)):  # a list in files
                object.__setattr__(self, name, tuple(numbers))
                if len(numbers) != self.channels:
                    raise UserError(f"latents of {self.channels} channels have {len(numbers)} numbers as their {name}")
        is_count = isinstance(self.channels, int) and self.channels >= 1
        are_scales = all(0 < scale < math.inf for scale in _numbers(self.scale))
        if not is_count or not are_scales or not all(map(math.isfinite, _numbers(self.shift))):
            raise UserError(f"latents need 1 channel or more, a scale above 0 and a finite shift; got {self!r}")

    @classmethod
    def normalised(cls, mean: list[float], std: list[float], scale: float = 1.0) -> LatentSpace:
        """That of latents which have mean 0 and standard deviation `scale` in each channel."""
        if not all(0 < value < math.inf for value in std):
            raise UserError(f"latents need a standard deviation above 0 in each channel; got {std}")
        return cls(len(mean), tuple(scale / value for value in std), tuple(mean))

    def latents(self, raw: Tensor) -> Tensor:
        return (raw - _along_channels(self.shift, raw)) * _along_channels(self.scale, raw)

    def raw(self, latents: Tensor) -> Tensor:
        return latents / _along_channels(self.scale, latents) + _along_channels(self.shift, latents)

    def __str__(self) -> str:
        return f"scale {_text(self.scale)}, shift {_text(self.shift)}"


def _numbers(value: float | tuple[float, ...]) -> tuple[float, ...]:
    return value if isinstance(value, tuple) else (value,)


def _along_channels(value: float | tuple[float, ...], like: Tensor) -> Tensor | float:
    return like.new_tensor(value).view(-1, *(1,) * (like.ndim - 2)) if isinstance(value, tuple) else value


def _text(value: float | tuple[float, ...]) -> str:
    return f"{min(value):g} to {max(value):g} by channel" if isinstance(value, tuple) else f"{value:g}"
