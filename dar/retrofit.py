"""Routing for models that were trained without it.

Sublayer inputs pass a LayerNorm without affine parameters, so with uniform weights a routed model sees what
the plain one saw; with weights that count (scale = "count") not even the LayerNorm's epsilon tells them apart.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from dar.diagnostics.profile import interpolated
from dar.routing import RoutingConfig
from dar.sit import SiT

NUM_SAMPLES = 16
T_RANGE = (0.05, 1.0)


def retrofit(model: SiT, routing: RoutingConfig) -> SiT:
    """A plain SiT with `routing`, computing the same function until it is trained on.

    Returns: a new model with copies of the weights; parameters of the routing are fresh.
    Raises: ValueError where `model` is not plain, or `routing` cannot start as the plain residual stream.
    """
    routed = replace_routing(model, routing)
    if not routed.routing.starts_as_residual:
        raise ValueError(
            f"routing.kind {routing.kind!r} with scale {routing.scale!r}, summary {routing.summary!r} and "
            f"chunk_size {routing.chunk_size!r} does not preserve the function of a plain model; for dar, "
            "scale count with summary sum (or chunk_size 1) does; replace_routing (--lossy) takes any"
        )
    return routed


def replace_routing(model: SiT, routing: RoutingConfig) -> SiT:
    """As `retrofit`, but for any routing: what comes out may compute something else.

    Raises: ValueError where `model` is not plain.
    """
    kind = model.config.routing.kind
    if kind != "residual":
        raise ValueError(f"only a plain model (routing.kind residual) can be given a routing; this one has {kind!r}")
    reference = next(model.parameters())
    routed = SiT(replace(model.config, routing=routing)).to(reference)
    fresh = {f"routing.{name}": tensor for name, tensor in routed.routing.state_dict().items()}
    routed.load_state_dict(model.state_dict() | fresh)
    return routed.train(model.training)


@torch.no_grad()
def function_error(model: SiT, other: SiT, seed: int = 0) -> tuple[float, float]:
    """How far `other`'s velocity is from `model`'s, on noise mixed into the model's own one-step estimates.

    Returns: largest absolute and root-mean-square error, both over the RMS of the model's velocity.
    """
    generator = torch.Generator().manual_seed(seed)
    reference = next(model.parameters())
    eps = torch.randn(NUM_SAMPLES, *model.sample_shape, generator=generator).to(reference)
    low, high = max(T_RANGE[0], model.t_range[0]), min(T_RANGE[1], model.t_range[1])
    t = torch.linspace(low, high, NUM_SAMPLES).to(reference)
    y = (torch.arange(NUM_SAMPLES) % (model.null_label + 1)).to(reference.device)
    x0 = eps - high * model(eps, torch.full_like(t, high), y)
    x_t = interpolated(x0, eps, t)
    velocity = model(x_t, t, y).double()
    difference = other(x_t, t, y).double() - velocity
    rms = velocity.square().mean().sqrt()
    return float(difference.abs().max() / rms), float(difference.square().mean().sqrt() / rms)
