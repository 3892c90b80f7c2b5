"""What cfg_scale does to a student of distribution matching, and to a sampler: one Gaussian class, in closed form.

    python scripts/plot_guidance.py docs/guidance.png

The class is N(0.5, 0.4^2), the null class N(0, 1). The guided ODE keeps Gaussians Gaussian, so its end is exact. The
student is x0 = mean + std eps with an exact critic, moved by the code's own gradient until it stands still.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from distill.objectives import dmd_gradient
from distill.sampling import interpolate
from distill.seeds import generator_for

CLASS, NULL = (0.5, 0.4), (0.0, 1.0)
SCALES = np.linspace(1, 4, 13)


def posterior(x_t: Tensor, t: Tensor, mean: float, std: float) -> Tensor:
    """E[x0 | x_t] of data N(mean, std^2)."""
    gain = (1 - t) * std**2 / ((1 - t) ** 2 * std**2 + t**2)
    return mean + gain * (x_t - (1 - t) * mean)


def guided_x0(x_t: Tensor, t: Tensor, cfg_scale: float) -> Tensor:
    null = posterior(x_t, t, *NULL)
    return null + cfg_scale * (posterior(x_t, t, *CLASS) - null)


def end_of_ode(cfg_scale: float, num_steps: int = 4000) -> tuple[float, float]:
    """Mean and standard deviation that the guided ODE takes N(0, 1) to: velocity is a + b x, at every t."""
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)  # x_1 = 0 and 1; the map of x_1 to x_0 is affine
    grid = torch.linspace(1, 0, num_steps + 1, dtype=torch.float64)
    for t, t_next in pairwise(grid):
        ends = ends + (t_next - t) * (ends - guided_x0(ends, t, cfg_scale)) / t
    return float(ends[0]), float((ends[1] - ends[0]).abs())


def end_of_student(cfg_scale: float, num_updates: int = 800, size: int = 128, values: int = 64) -> tuple[float, float]:
    """Mean and standard deviation of a one-step student that the distribution-matching gradient leaves as it is.

    values: of a sample, each of that law; the gradient's normaliser is their mean.
    """
    mean, std = CLASS
    for step in range(num_updates):
        generator = generator_for(0, "guidance", step)
        noise, eps = torch.randn(2, size, values, generator=generator, dtype=torch.float64)
        t = 0.02 + 0.96 * torch.rand(size, 1, generator=generator, dtype=torch.float64)
        x0 = mean + std * noise
        x_t = interpolate(x0, eps, t[:, 0])
        gradient = dmd_gradient(x0, guided_x0(x_t, t, cfg_scale), posterior(x_t, t, mean, std))
        rate = 0.05 * (1 - step / num_updates)
        mean, std = mean - rate * float(gradient.mean()), std - rate * float((gradient * noise).mean())
    return mean, std


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", metavar="PNG")
    args = parser.parse_args(argv)
    found = {"guided ODE": [end_of_ode(w) for w in SCALES], "student of DMD": [end_of_student(w) for w in SCALES]}
    figure = Figure(figsize=(7.2, 2.8), dpi=150)
    for ax, what, index in zip(figure.subplots(1, 2), ("mean", "standard deviation"), (0, 1), strict=True):
        for (name, values), colour in zip(found.items(), ("#0072b2", "#d55e00"), strict=True):
            ax.plot(SCALES, [value[index] for value in values], color=colour, label=name)
        ax.axhline(CLASS[index], color="#6b7078", linewidth=1, linestyle=":", label="the class")
        ax.set(xlabel="cfg_scale", title=what)
        ax.spines[["top", "right"]].set_visible(False)
    figure.axes[1].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(args.output)
    print("| cfg_scale | " + " | ".join(found) + " |\n|---|---|---|")
    for i, scale in enumerate(SCALES):
        cells = [f"{values[i][0]:.3f}, {values[i][1]:.3f}" for values in found.values()]
        print(f"| {scale:g} | " + " | ".join(cells) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
