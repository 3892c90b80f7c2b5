"""One model on one batch: what runs through its depth, forward and backward.

Legend: B samples, T tokens, d width, K blocks, L sublayers (2 K in a SiT). Samples are (B, C, H, W) or (B, C, F, H, W);
y is what the model takes, with a row per sample.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dar.diagnostics.capture import Record, capture, without
from dar.diagnostics.measures import cosine_matrix
from dar.diagnostics.views import View, view_of
from dar.route import at_least_float32
from dar.sit import SiT


@dataclass(frozen=True, eq=False)
class Pass:
    """A recorded forward pass and the gradients of its loss.

    record: reads and writes, without gradients any more.
    loss: flow matching loss of each sample, (B).
    gradients: d loss_b / dv of each block's last write v, (B, T, d) each; K of them.
    """

    view: View
    record: Record
    loss: Tensor
    gradients: list[Tensor]

    @property
    def weights(self) -> list[Tensor]:
        """What each reader gave its sources, (N, B, T) each; none for a routing without weights over depth."""
        return [weights.detach() for weights in self.record.stream.weights] if self.view.readers else []


def interpolated(x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """x_t = (1 - t) x0 + t eps for t (B); the convention of `SiT`."""
    t = t.view(-1, *[1] * (x0.dim() - 1))
    return (1 - t) * x0 + t * eps


def sample_losses(model: SiT | View, x0: Tensor, eps: Tensor, t: Tensor, y: Any) -> Tensor:
    """Flow matching loss of each sample: mean_CHW |model(x_t, t, y) - (eps - x0)|^2, (B), float32 or better."""
    error = model(interpolated(x0, eps, t), t, y) - (eps - x0)
    return at_least_float32(error).square().flatten(1).mean(1)


def recorded_pass(model: SiT | View, x0: Tensor, eps: Tensor, t: Tensor, y: Any) -> Pass:
    """Forward and backward through the stream; the model's own gradients are neither read nor written.

    The gradient is that of each sample's own loss, mean_CHW |velocity - (eps - x0)|^2, with respect to what
    block k writes last (v_2k in a SiT). No sample sees another, so the gradient of the sum over the batch is, sample
    by sample, the gradient of its own loss, whatever the batch size. Why v: every routing has it, and in the
    plain residual stream it reaches the loss through z_k = z_{k-1} + .. + v alone, so there dL/dv = dL/dz_k
    exactly. Elsewhere z_k is one reader's mixture among several, and dL/dv is what all readers of the block's
    output ask of it together.

    Args:
        x0, eps: data and noise (B, C, H, W). t: (B), 0 is data. y: labels (B), or what else the model takes.
    """

    def tracked(_: int, output: Tensor) -> Tensor:
        # In a frozen model no output would have a gradient; then the first write begins the graph.
        return output if output.requires_grad else output.requires_grad_()

    view = view_of(model)
    # Of a mean, half precision would lose the smallest; a power of two changes no digit.
    scale = 2.0 ** round(math.log2(x0[0].numel()))
    with torch.enable_grad(), capture(view, tracked) as record:
        loss = sample_losses(view, x0, eps, t, y)
        gradients = torch.autograd.grad(scale * loss.sum(), record.block_writes)
    assert record.embedding is not None
    record.embedding = record.embedding.detach()
    record.reads = [h.detach() for h in record.reads]
    record.writes = [v.detach() for v in record.writes]
    return Pass(view, record, loss.detach(), [at_least_float32(gradient) / scale for gradient in gradients])


@torch.no_grad()
def source_similarity(model: SiT | View, x_t: Tensor, t: Tensor, y: Any) -> Tensor:
    """Mean cosine of the outputs v_i and v_j of every two sublayers over tokens and samples, (L, L).

    A sublayer that writes zeros has cosine 0 with all, itself included.
    """
    with capture(model) as record:
        model(x_t, t, y)
    return cosine_matrix(record.writes)


@torch.no_grad()
def hidden_features(model: SiT | View, x_t: Tensor, t: Tensor, y: Any) -> Tensor:
    """Mean over the tokens of z_0..z_K, (K + 1, B, d): what the probe of t is fed."""
    with capture(model) as record:
        model(x_t, t, y)
    return torch.stack([at_least_float32(z).mean(1) for z in record.hidden])


@torch.no_grad()
def removal_costs(model: SiT | View, x0: Tensor, eps: Tensor, t: Tensor, y: Any) -> Tensor:
    """How much the loss rises when a sublayer writes zeros, everything else being the same: (L, B).

    Args: as `recorded_pass`.
    """
    view = view_of(model)
    intact = sample_losses(view, x0, eps, t, y)
    costs = []
    for sublayer in range(1, view.num_sublayers + 1):
        with capture(view, without(sublayer)):
            costs.append(sample_losses(view, x0, eps, t, y) - intact)
    return torch.stack(costs)
