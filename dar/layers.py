"""The sublayers of a SiT block. B batch, T tokens, d width, H heads."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:  # routings are built of these layers
    from dar.routing.base import Stream


def linear(in_features: int, out_features: int) -> nn.Linear:
    """Xavier-uniform weight, zero bias: the trunk's initialisation in SiT."""
    layer = nn.Linear(in_features, out_features)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def zero_linear(in_features: int, out_features: int) -> nn.Linear:
    """All zeros: adaLN-Zero's gates and the output, so that a new model predicts velocity = 0."""
    layer = nn.Linear(in_features, out_features)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """adaLN: x (1 + scale) + shift; x is (B, T, d), shift and scale are (B, d)."""
    return torch.addcmul(shift.unsqueeze(1), x, 1 + scale.unsqueeze(1))


class Attention(nn.Module):
    """Multi-head self-attention over tokens; with `qk_norm`, queries and keys of each head pass a LayerNorm."""

    def __init__(self, dim: int, num_heads: int, qk_norm: bool = False) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = linear(dim, 3 * dim)
        self.proj = linear(dim, dim)
        self.q_norm, self.k_norm = (
            nn.LayerNorm(dim // num_heads, eps=1e-5) if qk_norm else nn.Identity() for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.num_heads, dim // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, H, T, d / H) each
        mixed = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)
        return self.proj(mixed.transpose(1, 2).reshape(batch, tokens, dim))


class Mlp(nn.Module):
    """Two linear layers around a GELU."""

    def __init__(self, dim: int, hidden: int, gelu: str) -> None:
        super().__init__()
        self.fc1 = linear(dim, hidden)
        self.fc2 = linear(hidden, dim)
        self.gelu = gelu

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate=self.gelu))


class Block(nn.Module):
    """Attention and MLP with adaLN-Zero. The two sublayers are exposed; who feeds them is the routing's."""

    def __init__(
        self, dim: int, num_heads: int, mlp_ratio: float, gelu: str, qk_norm: bool = False, norm2_eps: float = 1e-6
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.attn = Attention(dim, num_heads, qk_norm)
        self.norm2 = nn.LayerNorm(dim, elementwise_affine=False, eps=norm2_eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), gelu)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), zero_linear(dim, 6 * dim))

    def forward(self, h: Tensor, c: Tensor, stream: Stream, run: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
        """Attention of what the caller read, h (B, T, d), and the MLP of what is read after it; both are written.

        c: condition (B, d). run: run(sublayer, *inputs) calls a sublayer.

        Returns: what was written. Tensors come in and go out so that what hangs on a block (FSDP's hooks) knows when
        its parameters are needed, in the backward pass too.
        """
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(c)
        attended = run(self.attention, h, shift1, scale1, gate1)
        stream.write(attended)
        transformed = run(self.feed_forward, stream.read(), shift2, scale2, gate2)
        stream.write(transformed)
        return attended, transformed

    def modulation(self, c: Tensor) -> tuple[Tensor, ...]:
        """shift, scale, gate of attention, then of the MLP, (B, d) each."""
        return self.adaLN_modulation(c).chunk(6, dim=1)

    def attention(self, h: Tensor, shift: Tensor, scale: Tensor, gate: Tensor) -> Tensor:
        return gate.unsqueeze(1) * self.attn(modulate(self.norm1(h), shift, scale))

    def feed_forward(self, h: Tensor, shift: Tensor, scale: Tensor, gate: Tensor) -> Tensor:
        return gate.unsqueeze(1) * self.mlp(modulate(self.norm2(h), shift, scale))


class FinalLayer(nn.Module):
    """adaLN, then one linear layer to the pixels of a patch, channel fastest."""

    def __init__(self, dim: int, patch_size: int, out_channels: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.linear = zero_linear(dim, patch_size**2 * out_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), zero_linear(dim, 2 * dim))

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=1)
        return self.linear(modulate(self.norm_final(h), shift, scale))
