"""What a SiT is told: patches, positions, the timestep and the class. Keys as in the public checkpoints."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dar.predictions import Prediction


def sincos_positions(dim: int, grid_size: int) -> Tensor:
    """Fixed 2-D sin-cos table (1, grid_size^2, dim): first half the column, second half the row.

    Each half is [sin(x w_j), cos(x w_j)] with w_j = 10000^(-j / (dim / 4)).
    """
    omega = 1e4 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim / 4))
    angles = torch.arange(grid_size, dtype=torch.float64)[:, None] * omega
    one_axis = torch.cat([angles.sin(), angles.cos()], dim=1)
    columns = one_axis[None, :, :].expand(grid_size, -1, -1)
    rows = one_axis[:, None, :].expand(-1, grid_size, -1)
    return torch.cat([columns, rows], dim=-1).reshape(1, grid_size**2, dim).float()


class PatchEmbedding(nn.Module):
    """Images (B, C, H, W) to tokens (B, (H / p)^2, d)."""

    def __init__(self, patch_size: int, in_channels: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, dim, kernel_size=patch_size, stride=patch_size)
        nn.init.xavier_uniform_(self.proj.weight.view(dim, -1))
        self.proj.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        # Contiguous, or every later elementwise product with it walks memory in two orders at once.
        return self.proj(x).flatten(2).transpose(1, 2).contiguous()


class TimestepEmbedding(nn.Module):
    """e(t): t in [0, 1], unscaled, through 128 frequencies and a two-layer MLP; (B) to (B, d).

    prediction: turns t into the time that the network was trained with.
    frequency_shift: frequency i of 128 is 10000^(-i / (128 - frequency_shift)): 0 in SiT and DiT, 1 in diffusers.
    """

    num_frequencies = 128
    max_period = 1e4

    def __init__(self, dim: int, prediction: Prediction, frequency_shift: int) -> None:
        super().__init__()
        self.prediction = prediction
        self.frequency_shift = frequency_shift
        layers = nn.Linear(2 * self.num_frequencies, dim), nn.Linear(dim, dim)
        for layer in layers:
            nn.init.normal_(layer.weight, std=0.02)
        self.mlp = nn.Sequential(layers[0], nn.SiLU(), layers[1])

    def forward(self, t: Tensor) -> Tensor:
        return self.mlp(self.sinusoid(t).to(next(self.mlp.parameters()).dtype))

    def sinusoid(self, t: Tensor) -> Tensor:
        """Cosines, then sines, of t at all frequencies, (B, 256)."""
        # In float32 or better: neighbouring timesteps fall together in bf16.
        t = self.prediction.embedded_time(t.to(torch.promote_types(t.dtype, torch.float32)))
        index = torch.arange(self.num_frequencies, device=t.device, dtype=t.dtype)
        last = self.num_frequencies - self.frequency_shift
        angles = t[:, None] * torch.exp(-math.log(self.max_period) * index / last)
        return torch.cat([angles.cos(), angles.sin()], dim=-1)


class LabelEmbedding(nn.Module):
    """Classes 0..K-1 and the null class K; (B) int64 to (B, d).

    Labels are never dropped here: dropping is a decision of the training step, and a module that does it
    in `.train()` feeds null labels to a student or critic that asked for none.
    """

    def __init__(self, num_classes: int, dim: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + 1, dim)
        nn.init.normal_(self.embedding_table.weight, std=0.02)

    def forward(self, y: Tensor) -> Tensor:
        return self.embedding_table(y)
