"""Data whose velocity is known in closed form, and that velocity as a model: what conventions are held against."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from distill.sampling.flow import t_like

WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "config.json"


class GaussianClasses(nn.Module):
    """The exact velocity of data N(mean_y, std^2) of class y; the null class is their mixture in equal parts.

    Of one class E[x0 | x_t] = mean + (1-t) std^2 / var_t (x_t - (1-t) mean) with var_t = (1-t)^2 std^2 + t^2, and
    E[eps | x_t] = t / var_t (x_t - (1-t) mean). A mixture weighs its classes by how likely each makes x_t.

    A backbone without a network: its parameters are the means, (K, C, H, W), and ln std.
    """

    t_range = (0.0, 1.0)

    def __init__(self, means: Tensor, std: float) -> None:
        super().__init__()
        self.gradient_checkpointing = False
        self.means = nn.Parameter(means.clone())
        self.log_std = nn.Parameter(torch.tensor(float(std)).log())

    @property
    def null_label(self) -> int:
        return len(self.means)

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        _, channels, height, width = self.means.shape
        return channels, height, width

    def forward(self, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        x_t, means = x_t.unsqueeze(1), self.means  # (B, 1, C, H, W), (K, C, H, W)
        t = t_like(t, x_t)
        variance = (1 - t).square() * (2 * self.log_std).exp() + t.square()
        away = x_t - (1 - t) * means  # (B, K, C, H, W)
        velocities = (t - (1 - t) * (2 * self.log_std).exp()) / variance * away - means
        likelihood = (-away.square() / (2 * variance)).flatten(2).sum(-1).softmax(dim=1)  # (B, K)
        own = torch.eye(self.null_label, device=y.device)[y.clamp(max=self.null_label - 1)]
        weights = torch.where((y == self.null_label)[:, None], likelihood, own.to(likelihood))
        return (weights[:, :, None, None, None] * velocities).sum(1)

    @torch.no_grad()
    def draw(self, num: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Samples x0 (B, C, H, W) and their classes (B)."""
        y = torch.randint(self.null_label, (num,), generator=generator)
        return self.means[y] + self.log_std.exp() * torch.randn(num, *self.sample_shape, generator=generator), y

    def save_pretrained(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(dict(self.state_dict()), folder / WEIGHTS_FILE)
        (folder / CONFIG_FILE).write_text(json.dumps({"shape": list(self.means.shape)}))

    @classmethod
    def from_pretrained(cls, folder: Path) -> GaussianClasses:
        shape = json.loads((folder / CONFIG_FILE).read_text())["shape"]
        model = cls(torch.zeros(shape), 1.0)
        model.load_state_dict(load_file(folder / WEIGHTS_FILE))
        return model
